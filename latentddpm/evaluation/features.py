"""Features of sets of images: block by block, each kept for the next time.

    key of a block = what computes (release, label, digest) + the images' size and contents

Contents are the SHA-256 of the images' files, by which pixels are known whatever the files are
called. A call that was interrupted goes on from its last block, and of more images only those
are new that come after the last whole block.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from tqdm import tqdm

import latentddpm
from latentddpm.utils import signals
from latentddpm.utils.files import atomic_path

FEATURES = "features"
"""The folder of kept features, below that of an evaluation."""

BLOCK = 32
"""Images that are read, and whose features are computed and kept, together."""


class Images(Protocol):
    """Images of one size that are read when they are asked for.

    Attributes:
        size: (height, width).
    """

    size: tuple[int, int]

    def __len__(self) -> int: ...

    def read(self, numbers: np.ndarray) -> np.ndarray:
        """Some of them, uint8 (n, H, W, 3)."""

    def contents(self, numbers: np.ndarray) -> Sequence[str]:
        """The SHA-256 of the file of each, in hexadecimal."""


class Network(Protocol):
    """What turns images into features.

    Attributes:
        label: its name.
        digest: tells it from others of that name.
    """

    label: str
    digest: str

    def features(self, images: np.ndarray) -> np.ndarray:
        """Of uint8 (n, H, W, 3), n ≥ 1: float32 (n, d)."""


def kept_features(
    network: Network, images: Images, folder: Path, label: str, quiet: bool = False
) -> np.ndarray:
    """Features of all images, float32 (N, d), found in `folder` or computed and left there.

    Args:
        images: one or more.
        label: of the progress bar, which is shown after two seconds.

    Raises:
        signals.Stopped: a signal came; the blocks before it are kept.
    """
    key = [latentddpm.__version__, network.label, network.digest, images.size]
    blocks, kept = [], 0
    try:
        with tqdm(
            desc=label, total=len(images), unit="image", delay=2, leave=False, disable=quiet
        ) as bar:
            while kept < len(images):
                numbers = np.arange(kept, min(kept + BLOCK, len(images)))
                named = json.dumps([*key, list(images.contents(numbers))])
                path = folder / f"{hashlib.sha256(named.encode()).hexdigest()[:16]}.npy"
                features = _read(path)
                if features is None:
                    features = network.features(images.read(numbers))
                    with atomic_path(path) as temporary:
                        np.save(temporary, features)
                blocks.append(features)
                kept += len(numbers)
                bar.update(len(numbers))
    except signals.Stopped as signal:
        raise signals.Stopped(
            signal.number,
            f"stopped by a signal with {kept} of {len(images)} {label} done; the same command "
            f"goes on from there ({folder})",
        ) from None
    return np.concatenate(blocks)


def _read(path: Path) -> np.ndarray | None:
    """Features that were kept; None where there are none, or where the file is damaged."""
    try:
        return np.load(path, allow_pickle=False)
    except (FileNotFoundError, ValueError, EOFError):
        return None
