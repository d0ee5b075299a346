"""Which row has this key, in memory that does not grow with the number of rows.

Of every row, the high bits of a 64-bit hash of its key and, in the low bits, its number are one
integer. The integers stand in an unnamed file and are sorted where they are; a binary search
then gives the few rows a key can have, and the caller compares the keys themselves.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np


class KeyIndex:
    """Rows 0, 1, … by their keys' hashes.

    Args:
        hashes: uint64 arrays, one after the other those of all rows.
        count: of rows.
        folder: for the unnamed file, 8 bytes a row.
    """

    def __init__(self, hashes: Iterable[np.ndarray], count: int, folder: Path) -> None:
        self._bits = np.uint64(max(count, 1).bit_length())
        self._order = np.zeros(0, np.uint64)
        row = 0
        with tempfile.TemporaryFile(dir=folder) as file:
            for block in hashes:
                numbers = np.arange(row, row + len(block), dtype=np.uint64)
                file.write((block >> self._bits << self._bits) | numbers)
                row += len(block)
            file.flush()
            if row:
                self._order = np.memmap(file, np.uint64, "r+")  # outlives the file's handle
                self._order.sort()

    def rows(self, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For each hash, where its rows begin and end among `row_at`."""
        low = hashes >> self._bits << self._bits
        high = low | ((np.uint64(1) << self._bits) - np.uint64(1))
        return (
            np.searchsorted(self._order, low, "left"),
            np.searchsorted(self._order, high, "right"),
        )

    def row_at(self, places: np.ndarray | int) -> np.ndarray:
        """The rows at places that `rows` named."""
        mask = (np.uint64(1) << self._bits) - np.uint64(1)
        return (self._order[places] & mask).astype(np.int64)

    def alike(self, block: int = 1 << 16) -> Iterator[tuple[int, int]]:
        """Pairs of neighbours that may have the same key, the lower row first."""
        for start in range(0, max(len(self._order) - 1, 0), block):
            order = np.asarray(self._order[start : start + block + 1])
            same = np.flatnonzero((order[1:] >> self._bits) == (order[:-1] >> self._bits))
            for place in same:
                first, second = self.row_at(np.array([start + place, start + place + 1]))
                yield int(first), int(second)


def text_hash(text: str) -> int:
    """64 bits of a text."""
    data = text.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
