"""Signals that end a run: at once, or where work could be lost at the next safe place.

    listening()   SIGINT, SIGTERM, SIGUSR1 raise `Stopped`, as Ctrl-C raises KeyboardInterrupt
    deferred()    inside this block they are only recorded; code that can stop safely calls
                  `pending` or `check`

A cluster sends SIGTERM when the time of a job is up, or SIGUSR1 some time before. After the first
signal a training run saves a checkpoint and ends. A second Ctrl-C ends it at once; the
checkpoints on disk stay whole. Exit codes are those of a shell, 128 + the signal: 130, 143, 138.

A signal that the process was started to ignore stays ignored, as Ctrl-C is by what a script's
`&` puts into the background.
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
    """Interrupt by a signal that asks the process to end.

    Args:
        number: of the signal.
        message: its name by default.

    Attributes:
        number: of the signal.
        exit_code: of the process, 128 + `number`.
    """

    def __init__(self, number: int, message: str = "") -> None:
        super().__init__(message or f"{signal.Signals(number).name}: stopped")
        self.number, self.exit_code = number, 128 + number


class _State:
    """Signals that this process has received, and how it handles them."""

    listening = False
    received: int | None = None
    deferring = False
    checking = True


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """Handle the signals inside the block; also a decorator.

    Without effect inside another such block, and outside the main thread: Python lets only the
    main thread set handlers.
    """
    if _State.listening or threading.current_thread() is not threading.main_thread():
        yield
        return
    heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, _receive) for number in heard}
    _State.listening, _State.received = True, None
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _State.listening, _State.received = False, None


@contextlib.contextmanager
def deferred(checking: bool = True) -> Iterator[None]:
    """Record signals inside the block; one that is still pending at its end is raised there.

    Without effect outside the main thread, which receives all signals.

    Args:
        checking: let `check` raise inside the block. False where several processes have to stop
            at the same step.
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
    """Number of the signal that was received, or None.

    Args:
        agreed: answer → true in every process if it is true in one of them, such as
            `distribution.strategy.any_process`; all processes have to call this function. A
            process that received no signal itself returns SIGUSR1.
    """
    received = _State.received
    if agreed is None:
        return received
    return (received or SIGNALS[-1]) if agreed(received is not None) else None


def check(message: str = "") -> None:
    """Stop here if a signal was received.

    Args:
        message: of the error, such as the checkpoint to resume from.

    Raises:
        Stopped: a signal was received, and no `deferred(checking=False)` is around.
    """
    if _State.received is not None and _State.checking:
        raise Stopped(_State.received, message)


def _receive(number: int, frame: FrameType | None) -> None:
    first, _State.received = _State.received is None, _State.received or number
    hint = ""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        # The next Ctrl-C is the system's: it also ends a process that is inside a C library.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        hint = " (Ctrl-C stops at once, without saving)"
    if not _State.deferring:
        if first:
            raise Stopped(number)
        return
    if first:
        # Not through `sys.stderr`: the signal may have interrupted a write to it.
        name = signal.Signals(number).name
        text = f"\n{name}: saving, then stopping{hint}\n"
        os.write(2, text.encode())
