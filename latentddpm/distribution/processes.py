"""Processes of one job that share the preparation of data, on one filesystem."""

from __future__ import annotations

import os
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
    """Strategy, as `--strategy` names it, in its parts.

    Args:
        name: one of `STRATEGIES`, or mirrored:N. "auto" is "multi-worker" where TF_CONFIG or
            Slurm says so.

    Returns:
        One of `STRATEGIES`, and the number of devices; None for no number.

    Raises:
        UserError: an unknown name.
    """
    count = None
    if found := re.fullmatch(r"mirrored:(\d+)", name):
        name, count = "mirrored", int(found[1])
        if not count:
            raise UserError("--strategy mirrored:0: expected at least one device")
    check_choice("--strategy", name, STRATEGIES)
    several = "TF_CONFIG" in os.environ or int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1
    if name == "auto" and several:
        name = "multi-worker"
    return name, count
