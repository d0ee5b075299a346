"""Contents of a latents cache: the SHA-256 of the image of every row, and a search by it.

The search needs no memory that grows with the number of rows. Every row gets a 64-bit integer: its
high bits are those of the digest, its low bits are the number of the row. These integers are
sorted in a memory-mapped temporary file. A binary search finds the few rows with the high bits of
a digest, and their digests are compared in full.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from latentddpm.data.catalog.catalog import Catalog

BLOCK = 4096  # rows looked up at a time


class Contents:
    """Index of rows by the SHA-256 of their images.

    Args:
        digests: uint8 (rows, 32).
        scratch: folder for a temporary file of 8 bytes per row.
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
                self._order = np.memmap(file, np.uint64, "r+")  # valid after the file is closed
                self._order.sort()

    def rows(self, digests: np.ndarray) -> np.ndarray:
        """First row of each of `digests`, uint8 (B, 32), as int64 (B,); −1 where there is none."""
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
    """Difference between the images of a catalog and those of a cache, in words.

    Args:
        catalog: with the new images.
        old: digests of the images of the cache, uint8 (rows, 32).
        scratch: folder for temporary files.
    """
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
    """Number of images that are not in `known`, and names of the first three."""
    count, names = 0, []
    for start in range(0, len(digests), BLOCK):
        missing = np.flatnonzero(known.rows(digests[start : start + BLOCK]) < 0)
        count += len(missing)
        if name is not None:
            names += [name(start + int(i)) for i in missing[: 3 - len(names)]]
    return count, names
