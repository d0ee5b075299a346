"""Contents of a latents cache: the SHA-256 of every image, and which row holds an image.

A row is found in memory that does not grow with the number of rows. Of every row, the high bits
of 64 bits of its digest and, in the low bits, its number are one integer. The integers stand in
an unnamed file and are sorted where they are; a binary search then gives the few rows an image
can have, whose digests are compared in full.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from latentddpm.data.catalog.catalog import Catalog

BLOCK = 4096  # rows looked up together


class Contents:
    """Index of the rows of images, by the SHA-256 of their bytes.

    Args:
        digests: uint8 (rows, 32).
        scratch: folder for an unnamed file, 8 bytes a row.
    """

    def __init__(self, digests: np.ndarray, scratch: Path) -> None:
        self._digests = digests
        self._bits = np.uint64(max(len(digests), 1).bit_length())
        self._mask = (np.uint64(1) << self._bits) - np.uint64(1)
        self._order = np.zeros(0, np.uint64)
        with tempfile.TemporaryFile(dir=scratch) as file:
            for start in range(0, len(digests), BLOCK):
                high = self._high_bits(digests[start : start + BLOCK])
                file.write(high | np.arange(start, start + len(high), dtype=np.uint64))
            file.flush()
            if len(digests):
                self._order = np.memmap(file, np.uint64, "r+")  # outlives the file's handle
                self._order.sort()

    def rows(self, digests: np.ndarray) -> np.ndarray:
        """The first row of each image, int64 (B,); -1 where there is none."""
        high = self._high_bits(digests)
        starts = np.searchsorted(self._order, high, "left")
        stops = np.searchsorted(self._order, high | self._mask, "right")
        found = np.full(len(digests), -1, np.int64)
        for i in np.flatnonzero(stops > starts):
            rows = (self._order[starts[i] : stops[i]] & self._mask).astype(np.int64)
            same = (self._digests[rows] == digests[i]).all(axis=1)
            if same.any():
                found[i] = rows[same.argmax()]
        return found

    def _high_bits(self, digests: np.ndarray) -> np.ndarray:
        hashes = np.ascontiguousarray(digests[:, :8]).view("<u8")[:, 0]
        return hashes >> self._bits << self._bits


def difference(catalog: Catalog, old: np.ndarray, scratch: Path) -> str:
    """The difference between the images of a catalog and those of a cache, in a few words."""
    new = catalog.images["sha256"]
    added, names = _unknown(new, Contents(old, scratch), catalog.name)
    gone, _ = _unknown(old, Contents(new, scratch))
    parts = []
    if added:
        parts.append(f"{added} new ({', '.join(names)}{', ...' if added > len(names) else ''})")
    if gone:
        parts.append(f"{gone} gone")
    return f"images {', '.join(parts)}" if parts else "the order of the images has changed"


def _unknown(
    digests: np.ndarray, known: Contents, name: Callable[[int], str] | None = None
) -> tuple[int, list[str]]:
    """The number of images that are not in `known`, and the names of the first three."""
    count, names = 0, []
    for start in range(0, len(digests), BLOCK):
        missing = np.flatnonzero(known.rows(digests[start : start + BLOCK]) < 0)
        count += len(missing)
        if name is not None:
            names += [name(start + int(i)) for i in missing[: 3 - len(names)]]
    return count, names
