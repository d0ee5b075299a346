"""Features of sets of images: batch by batch, and kept for the next time."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Protocol

import numpy as np
from tqdm import tqdm

from latentddpm.evaluation.extractors import BATCH, Extractor
from latentddpm.evaluation.images import ImageSet
from latentddpm.files import atomic_path


class Images(Protocol):
    """Images of one size that are read when they are asked for."""

    def __len__(self) -> int: ...

    def read(self, numbers: np.ndarray) -> np.ndarray:
        """Some of them, uint8 (n, H, W, 3)."""


def features_of(
    extractor: Extractor, images: Images, label: str, quiet: bool = False
) -> np.ndarray:
    """Features of all images, float32 (N, d).

    Args:
        images: one or more.
        label: of the progress bar, which is shown after two seconds.
    """
    numbers, parts = np.arange(len(images)), []
    with tqdm(
        desc=label, total=len(images), unit="image", delay=2, leave=False, disable=quiet
    ) as bar:
        for start in range(0, len(images), BATCH):
            batch = images.read(numbers[start : start + BATCH])
            parts.append(extractor.features(batch))
            bar.update(len(batch))
    return np.concatenate(parts)


def kept_features(
    extractor: Extractor, images: ImageSet, folder: Path, label: str, quiet: bool = False
) -> np.ndarray:
    """The same, found again in `folder` by the next call for these images and this extractor."""
    key = [
        extractor.label,
        extractor.digest,
        images.catalog.digest,
        images.rows.tolist(),
        images.size,
    ]
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()
    path = folder / f"{digest[:16]}.npy"
    if path.is_file():
        return np.load(path, allow_pickle=False)
    features = features_of(extractor, images, label, quiet)
    with atomic_path(path) as temporary:
        np.save(temporary, features)
    return features
