"""Errors meant for people: one line that says what is wrong and what would be right.

`UserError` is the only exception the command line turns into a single line and exit
code 2. System faults (disk full, no permission) stay `OSError` and exit with code 1.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from typing import Any


class UserError(ValueError):
    """Bad input: a file, a key or a value, named with what was expected and the nearest choice.

    The command line prints it as one line and exits with code 2.

    Example:
        >>> try:
        ...     latentddpm.samplers.get("ddin")
        ... except latentddpm.UserError as error:
        ...     print(str(error)[:56])
        sampler: 'ddin' is not known (did you mean 'ddim'?); cho
    """


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


TYPES: dict[type, tuple[type, str]] = {
    str: (str, "text"),
    bool: (bool, "true or false"),
    int: (Integral, "a whole number"),
    float: (Real, "a number"),
    list: (list, "a list"),
    dict: (Mapping, "names with values"),
}
"""Each type that options and metadata have: all that passes for it, and its name for people."""


def check_type(name: str, value: Any, kind: type) -> Any:
    """`value` when it is a `kind`, one of `TYPES`; a whole number is a number as well.

    Numbers of NumPy become Python's own, which JSON can hold.

    Raises:
        UserError: naming `name`, what was expected and the value.
    """
    accepted, words = TYPES[kind]
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise UserError(f"{name}: expected {words}, got {value!r:.80}")
    return value if type(value) in (kind, int) else kind(value)


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
