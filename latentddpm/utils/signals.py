"""Signals that end a run: at once where nothing can be lost, else at the next safe place.

    listening()   SIGINT, SIGTERM, SIGUSR1 raise `Stopped`, as Ctrl-C raises KeyboardInterrupt
    deferred()    inside it they are noted; who can stop safely asks `pending` or `check`

A cluster sends SIGTERM, or SIGUSR1 some time before, when a job's time is up. The first signal
saves and ends; after it a second Ctrl-C ends at once, which a checkpoint survives like a power
cut. Exit codes are those of a shell, 128 + the signal: 130, 143, 138.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)
)


class Stopped(KeyboardInterrupt):
    """A signal asked the process to end.

    Attributes:
        exit_code: for the process.
    """

    def __init__(self, number: int, message: str = "") -> None:
        super().__init__(message or f"{signal.Signals(number).name}: stopped")
        self.number, self.exit_code = number, 128 + number


class _State:
    """The signals this process was sent. One main thread, one state."""

    listening = False
    received: int | None = None
    deferring = False
    checking = True


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """Take the signals over, inside the block; also as a decorator.

    Does nothing outside the main thread, which alone may, or when done already.
    """
    if _State.listening or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _receive) for number in SIGNALS}
    _State.listening, _State.received = True, None
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _State.listening, _State.received = False, None


@contextlib.contextmanager
def deferred(checking: bool = True) -> Iterator[None]:
    """Signals only note themselves inside the block; one that nobody asked for is raised after it.

    Does nothing outside the main thread, which alone is sent any.

    Args:
        checking: whether `check` raises inside; not where processes have to stop together.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    outside = _State.deferring, _State.checking
    _State.deferring, _State.checking = True, checking
    try:
        yield
    finally:
        _State.deferring, _State.checking = outside
    check()


def pending(agreed: Callable[[bool], bool] | None = None) -> int | None:
    """The signal that has been noted, if any.

    Args:
        agreed: whether any of several processes says yes; all of them have to ask. One that was
            not told itself answers SIGUSR1.
    """
    told = _State.received
    if agreed is None:
        return told
    return (told or SIGNALS[-1]) if agreed(told is not None) else None


def check(message: str = "") -> None:
    """Stop here if a signal has been noted.

    Args:
        message: what there is to go on from.

    Raises:
        Stopped: one has.
    """
    if _State.received is not None and _State.checking:
        raise Stopped(_State.received, message)


def _receive(number: int, frame: FrameType | None) -> None:
    first, _State.received = _State.received is None, _State.received or number
    # From here on the system ends the process itself, also while it is deep in a library.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if not _State.deferring:
        if first:
            raise Stopped(number)
        return
    if first:
        # Not through `sys.stderr`: the signal may have come in the middle of a write to it.
        name = signal.Signals(number).name
        text = f"\n{name}: saving, then stopping (Ctrl-C stops at once, without saving)\n"
        os.write(2, text.encode())
