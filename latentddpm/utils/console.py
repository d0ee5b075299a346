"""Console output: lines for people, on stderr."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator

PATIENCE_SECONDS = 1.5


def say(text: str, quiet: bool = False) -> None:
    """Print `text` on stderr, above a progress bar if there is one; nothing when `quiet`."""
    if quiet:
        return
    if "tqdm" not in sys.modules:  # then there is no bar
        print(text, file=sys.stderr, flush=True)
        return
    from tqdm import tqdm

    tqdm.write(text, file=sys.stderr)


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
