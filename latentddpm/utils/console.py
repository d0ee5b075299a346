"""Console output: lines for people, on stderr."""

from __future__ import annotations

import sys


def say(text: str, quiet: bool = False) -> None:
    """Print `text` on stderr, above a progress bar if there is one; nothing when `quiet`."""
    if quiet:
        return
    if "tqdm" not in sys.modules:  # then there is no bar
        print(text, file=sys.stderr, flush=True)
        return
    from tqdm import tqdm

    tqdm.write(text, file=sys.stderr)
