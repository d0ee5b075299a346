"""Processes of one job, that share a piece of work on one filesystem."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


def _no_barrier() -> None:
    pass


@dataclass(frozen=True)
class ProcessGroup:
    """The processes that share a piece of work on one filesystem.

    Attributes:
        index: which of them this is; 0 is the chief, which alone writes what all read.
        count: how many they are.
        barrier: returns when all of them have called it.
    """

    index: int = 0
    count: int = 1
    barrier: Callable[[], None] = _no_barrier

    @property
    def is_chief(self) -> bool:
        return self.index == 0

    def share(self, length: int) -> range:
        """The part of 0 … length − 1 that falls to this process: contiguous, even."""
        start, stop = (length * k // self.count for k in (self.index, self.index + 1))
        return range(start, stop)


ONE_PROCESS = ProcessGroup()
