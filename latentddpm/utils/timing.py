"""Timing of named blocks, measured only inside `collect`.

with collect() as spent:
    with timed("decode"): ...
spent                               {"decode": 0.41}
"""

from __future__ import annotations

import contextlib
import contextvars
import re
import time
from collections.abc import Iterator

from latentddpm.errors import UserError

UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
"""Letter of a unit of time → its seconds."""

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


def parse_duration(name: str, text: str) -> float:
    """Seconds of a duration such as "90s", "10m", "1h30m" or "2d".

    Args:
        name: of the option, for the message.
        text: numbers, each with the letter of its unit; larger units come first.

    Raises:
        UserError: it is none, or 0.
    """
    pattern = "".join(rf"(?:([0-9]+(?:\.[0-9]+)?){letter})?" for letter in UNITS)
    match = re.fullmatch(pattern, text.strip().lower())
    numbers = match.groups("0") if match else ["0"]
    seconds = sum(float(n) * size for n, size in zip(numbers, UNITS.values(), strict=False))
    if not seconds:
        raise UserError(f"{name}: {text!r}, expected a duration such as 90s, 10m, 2h or 1h30m")
    return seconds


def clock(seconds: float) -> str:
    """Duration as `parse_duration` reads it, to two units, such as "1h30m" or "45s".

    Args:
        seconds: the duration; less than a second counts as one.
    """
    left, parts = max(round(seconds), 1), []
    for letter, size in UNITS.items():
        count, left = divmod(left, size)
        if count or parts:
            parts.append(f"{count}{letter}" * bool(count))
        if len(parts) == 2:
            break
    return "".join(parts)
