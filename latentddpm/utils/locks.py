"""Locks on folders: one process at a time makes their files.

Locks are `flock`'s on `.lock` in the folder: the system ends them with their process, however that
ends, so that none is ever left behind.
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
    """Lock a folder, waiting until no other process is inside.

    Args:
        name: what the message calls the folder while one waits.
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
    """Lock a folder, or refuse: no other process may be inside.

    Where the filesystem cannot lock, a warning says so.

    Args:
        doing: what the other process does there, in the message.

    Raises:
        UserError: another process is inside.
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
