"""Errors meant for people: one line that says what is wrong and what would be right.

`UserError` is the only exception the command line turns into a single line and exit
code 2. System faults (disk full, no permission) stay `OSError` and exit with code 1.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input from the user: a file, a key or a value, named with what was expected."""


def nearest(value: object, choices: Iterable[str]) -> str:
    """The hint `" (did you mean 'x'?)"`, or an empty string when nothing is close."""
    found = difflib.get_close_matches(str(value), [str(c) for c in choices], n=1, cutoff=0.5)
    return f" (did you mean {found[0]!r}?)" if found else ""


def check_choice(name: str, value: str, choices: Iterable[str]) -> str:
    """`value` when it is one of `choices`.

    Raises:
        UserError: naming `name`, the value, the nearest choice and all of them.
    """
    choices = tuple(choices)
    if value not in choices:
        allowed = ", ".join(repr(c) for c in choices)
        raise UserError(
            f"{name}: {value!r} is not known{nearest(value, choices)}; choose one of {allowed}"
        )
    return value


def one_line(error: object, limit: int | None = None) -> str:
    """Message of an error or a warning in one line; of the system's errors, file and reason.

    Args:
        limit: characters after which it is cut off.
    """
    if isinstance(error, OSError) and error.strerror:
        name = f"{error.filename}: " if error.filename else ""
        text = f"{name}{error.strerror}"
    else:
        text = " ".join(str(error).split()) or type(error).__name__
    return text[:limit]
