"""Console output: lines for people, on stderr.

Only commands speak: a function called from Python prints what its own `quiet` allows, and what
has no such argument, such as the import of TensorFlow, prints only inside `speaking`.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from typing import TextIO

PATIENCE_SECONDS = 1.5


class _State:
    """State of the console, set by `speaking` and `held_stderr`; one for all threads."""

    speaks = False
    terminal: TextIO | None = None


def say(text: str, quiet: bool = False) -> None:
    """Print `text` on stderr, above a progress bar if there is one; nothing when `quiet`."""
    if quiet:
        return
    file = _State.terminal or sys.stderr
    if "tqdm" not in sys.modules:  # then there is no bar
        print(text, file=file, flush=True)
        return
    from tqdm import tqdm

    tqdm.write(text, file=file)


@contextlib.contextmanager
def activity(text: str, quiet: bool = False) -> Iterator[None]:
    """Say what is being done, where the block takes longer than a moment.

    The line ends in "…", which tells it from results and errors. A block that is over within
    `PATIENCE_SECONDS` prints nothing.

    Args:
        text: such as "loading emoji-128".
        quiet: print nothing.

    Example:
        >>> with activity("loading emoji-128"):
        ...     model = load()
    """
    timer = threading.Timer(PATIENCE_SECONDS, say, (f"{text} …", quiet))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()  # it may be printing


@contextlib.contextmanager
def speaking(quiet: bool = False) -> Iterator[None]:
    """Let the block print, as a command does unless it is `quiet`; see `speaks`."""
    before, _State.speaks = _State.speaks, not quiet
    try:
        yield
    finally:
        _State.speaks = before


def speaks() -> bool:
    """True inside a command that is not quiet, False in a call from Python."""
    return _State.speaks


@contextlib.contextmanager
def held_stderr() -> Iterator[None]:
    """Hide what this process, C++ included, writes to stderr, unless the block raises an error.

    Lines of `say` are shown.
    """
    sys.stderr.flush()
    stderr = os.dup(2)
    outside = _State.terminal
    with tempfile.TemporaryFile() as held, open(stderr, "w", encoding="utf-8") as terminal:
        if _is_stderr(sys.stderr):
            _State.terminal = outside or terminal
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            sys.stderr.flush()
            held.seek(0)
            os.write(stderr, held.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            _State.terminal = outside


def _is_stderr(stream: TextIO) -> bool:
    """True for a stream that writes to file descriptor 2; a test's, or a notebook's, does not."""
    try:
        return stream.fileno() == 2
    except (AttributeError, OSError, io.UnsupportedOperation):
        return False
