"""Processes of one job that share the preparation of data, on one filesystem.

Also the names of strategies, which are checked before TensorFlow is imported.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from latentddpm.errors import UserError, check_choice

STRATEGIES = ("auto", "one", "mirrored", "multi-worker")


def _no_barrier() -> None:
    pass


@dataclass(frozen=True)
class ProcessGroup:
    """Group of processes that share work on one filesystem.

    Attributes:
        index: of this process, 0 .. count − 1. Process 0 is the chief: it alone writes the files
            that all of them read.
        count: number of processes.
        barrier: function that returns when all of them have called it.
    """

    index: int = 0
    count: int = 1
    barrier: Callable[[], None] = _no_barrier

    @property
    def is_chief(self) -> bool:
        """True in process 0."""
        return self.index == 0

    def share(self, length: int) -> range:
        """Share of this process in indices 0 .. length − 1: contiguous, about equal in size."""
        start, stop = (length * k // self.count for k in (self.index, self.index + 1))
        return range(start, stop)


ONE_PROCESS = ProcessGroup()
"""Group of a command that runs in a single process."""


def parse_strategy(name: str) -> tuple[str, int | None]:
    """Name of a strategy without its number of devices, and that number.

    Args:
        name: as of `--strategy`, see `distribution.strategy`.

    Raises:
        UserError: an unknown name, or no device.
    """
    count = None
    if found := re.fullmatch(r"mirrored:(\d+)", name):
        name, count = "mirrored", int(found[1])
        if not count:
            raise UserError("--strategy mirrored:0: expected at least one device")
    return check_choice("--strategy", name, STRATEGIES), count
