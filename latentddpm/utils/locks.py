"""Locks on folders: one process at a time writes into a folder.

A lock is a `flock` on the file `.lock` in the folder. The system releases it when the process
ends, in whatever way, so no stale lock is left behind.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path

from latentddpm.errors import UserError
from latentddpm.utils.console import say

try:
    import fcntl
except ImportError:  # Windows: two processes must not make one folder at the same time
    fcntl = None


LOCK = ".lock"


@contextlib.contextmanager
def wait_for_lock(folder: Path, name: str, quiet: bool) -> Iterator[None]:
    """Lock on a folder for the length of the block; waits while another process holds it.

    Args:
        folder: to lock; it exists.
        name: of what the folder holds, for the message that is shown while waiting.
        quiet: do not show that message.
    """
    if fcntl is None:
        yield
        return
    with open(folder / LOCK, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"{name} {folder}: waiting for another process to finish it", quiet)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def require_lock(folder: Path, doing: str) -> Iterator[None]:
    """Lock on a folder for the length of the block; refused while another process holds it.

    A filesystem that cannot lock gives a warning.

    Args:
        folder: to lock; made when missing.
        doing: a verb for the message, what the other process does there, such as "trains".

    Raises:
        UserError: another process holds the lock.
    """
    if fcntl is None:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / LOCK, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder}: another process {doing} here; wait for its end") from None
        except OSError as error:
            warnings.warn(
                f"{folder}: cannot be locked ({error.strerror}); see that no other process "
                f"{doing} here",
                stacklevel=3,
            )
        yield
