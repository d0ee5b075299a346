"""Features of sets of images, computed in blocks and kept on disk.

    key of a block = version, network's label and digest, size and contents of the images

Contents are the SHA-256 digests of the images' files, so the key does not depend on their names.
An interrupted call goes on after its last block. With more images only the blocks after the last
complete one are computed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from tqdm import tqdm

import latentddpm
from latentddpm.utils import signals
from latentddpm.utils.files import atomic_path

FEATURES = "features"
"""Folder of kept features, in that of an evaluation."""

BLOCK = 32
"""Images of a block."""


class Images(Protocol):
    """Set of images of one size that are read on demand.

    Attributes:
        size: (height, width) in pixels.
    """

    size: tuple[int, int]

    def __len__(self) -> int: ...

    def read(self, numbers: np.ndarray) -> np.ndarray:
        """Read some of the images, by their `numbers` (n,): uint8 (n, H, W, 3)."""

    def contents(self, numbers: np.ndarray) -> Sequence[str]:
        """SHA-256 digests of the files of some images, by their `numbers`, in hexadecimal."""


class Network(Protocol):
    """Network that computes features of images.

    Attributes:
        label: its name.
        digest: of its graph and weights.
    """

    label: str
    digest: str

    def features(self, images: np.ndarray) -> np.ndarray:
        """Features float32 (n, d) of `images`, uint8 (n, H, W, 3), n ≥ 1."""


def kept_features(
    network: Network,
    images: Images,
    folder: Path,
    label: str,
    quiet: bool = False,
    read: Callable[[np.ndarray], np.ndarray] | None = None,
) -> np.ndarray:
    """Features of all images of a set, read from a folder or computed and written there.

    Args:
        network: to compute features with.
        images: the set, of N ≥ 1 images.
        folder: for the blocks.
        label: of the progress bar, which is shown after two seconds.
        quiet: show no progress.
        read: function of numbers of images, which gives what the network takes; None for
            `images.read`.

    Returns:
        float32 (N, d).

    Raises:
        signals.Stopped: a signal came; the finished blocks are kept.
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
                    features = network.features((read or images.read)(numbers))
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
    """Features of a block; None where there is no file, or a damaged one."""
    try:
        return np.load(path, allow_pickle=False)
    except (FileNotFoundError, ValueError, EOFError):
        return None
