"""First stage of a recipe: what it makes of the user's own images, in dB, and in which time."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from latentddpm.config import DiffusionData
from latentddpm.data.dataset import Dataset
from latentddpm.evaluation.autoencoder import reconstruct
from latentddpm.evaluation.metrics.similarity import psnr
from latentddpm.training.plan.first_stage import AutoencoderStage, read_first_stage
from latentddpm.utils.images.pixel_format import RGB

MEASURED = 32
"""Images that are reconstructed, spread evenly over the data."""
AT_A_TIME = 8


@dataclass(frozen=True)
class Reconstruction:
    """Reconstruction of some images of a data set by an autoencoder.

    Attributes:
        psnr: mean, in dB.
        images: how many.
        seconds: of an image, there and back.
    """

    psnr: float
    images: int
    seconds: float


def measure_reconstruction(
    dataset: Dataset, stage: AutoencoderStage, resolution: int
) -> Reconstruction:
    """Reconstruct some images and compare them with the originals.

    Args:
        dataset: opened; its images are read as 8-bit RGB, as the autoencoder takes them.
        stage: with the autoencoder.
        resolution: side that the images are scaled to, in pixels.

    Raises:
        UserError: the autoencoder cannot be read, or does not take the resolution.
    """
    autoencoder = stage.load(DiffusionData())
    autoencoder.check_size(resolution, resolution)
    count = min(len(dataset), MEASURED)
    rows = np.linspace(0, len(dataset) - 1, count).astype(int)
    images = np.stack([dataset.catalog.image(int(row), resolution, RGB) for row in rows])
    values, seconds = [], []
    for first in range(0, count, AT_A_TIME):
        part = images[first : first + AT_A_TIME]
        began = time.perf_counter()
        _, rebuilt = reconstruct(autoencoder, part)
        seconds.append((time.perf_counter() - began) / len(part))
        values.append(psnr(rebuilt, part))
    mean = float(np.mean(np.concatenate(values)))
    return Reconstruction(mean, count, min(seconds))  # the first batch compiles


def ready_stage(model: str | Path) -> AutoencoderStage:
    """First stage of a model by its folder or name.

    Args:
        model: see `pipeline.model_folder.read_model_folder`.

    Raises:
        UserError: there is none, or it has no autoencoder.
    """
    return read_first_stage(model, None)
