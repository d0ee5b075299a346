"""Who makes a folder's files: one process at a time, or the processes of one job together."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from latentddpm.notes import say

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


@contextlib.contextmanager
def alone(folder: Path, name: str, quiet: bool) -> Iterator[None]:
    """Wait until no other process is inside; the lock ends with its process, however it ends.

    Args:
        name: what the message calls the folder while one waits.
    """
    if fcntl is None:
        yield
        return
    with open(folder / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"{name} {folder}: waiting for another process to finish it", quiet)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
