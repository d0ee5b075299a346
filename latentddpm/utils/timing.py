"""Timing of named blocks, measured only inside `collect`.

with collect() as spent:
    with timed("decode"): ...
spent                               {"decode": 0.41}
"""

from __future__ import annotations

import contextlib
import contextvars
import time
from collections.abc import Iterator

_spent: contextvars.ContextVar[dict[str, float] | None] = contextvars.ContextVar(
    "spent", default=None
)


@contextlib.contextmanager
def collect() -> Iterator[dict[str, float]]:
    """Measure the `timed` blocks inside this one: a dictionary, name → total seconds."""
    token = _spent.set({})
    try:
        yield _spent.get()
    finally:
        _spent.reset(token)


@contextlib.contextmanager
def timed(name: str) -> Iterator[None]:
    """Add the seconds that the block takes to `name`."""
    spent = _spent.get()
    start = time.perf_counter()
    try:
        yield
    finally:
        if spent is not None:
            spent[name] = spent.get(name, 0.0) + time.perf_counter() - start


def duration(seconds: float) -> str:
    """Duration in the largest unit that fits, such as "5 hours".

    Args:
        seconds: the duration.
    """
    for size, unit in ((86400 * 365, "years"), (86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 1):.0f} seconds"
