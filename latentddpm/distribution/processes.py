"""Who makes a folder's files: one process at a time, or the processes of one job together.

Locks are `flock`'s on `.lock` in the folder: the system ends them with their process, however that
ends, so that none is ever left behind.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

try:
    import fcntl
except ImportError:  # Windows: two processes must not make one folder at the same time
    fcntl = None


def _no_barrier() -> None:
    pass


@dataclass(frozen=True)
class Crew:
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
    def chief(self) -> bool:
        return self.index == 0

    def share(self, length: int) -> range:
        """The part of 0 … length − 1 that falls to this process: contiguous, even."""
        start, stop = (length * k // self.count for k in (self.index, self.index + 1))
        return range(start, stop)


ALONE = Crew()
