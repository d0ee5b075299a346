"""Errors for people: one line that says what is wrong and what would be right.

The command line prints a `UserError` as that line and exits with code 2. System faults (disk
full, no permission) stay `OSError` and exit with code 1.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from typing import Any, get_args


class UserError(ValueError):
    """Error in the input: names the file, key or value, what was expected and the nearest choice.

    The command line prints it as one line and exits with code 2.

    Example:
        >>> try:
        ...     latentddpm.samplers.get("ddin")
        ... except latentddpm.UserError as error:
        ...     print(str(error)[:56])
        sampler: 'ddin' is not known (did you mean 'ddim'?); cho
    """


def nearest(value: object, choices: Iterable[str]) -> str:
    """Hint `" (did you mean 'x'?)"` for a misspelled `value`, empty when no choice is close.

    Args:
        value: what was given.
        choices: what would have been valid.
    """
    found = difflib.get_close_matches(str(value), [str(c) for c in choices], n=1, cutoff=0.5)
    return f" (did you mean {found[0]!r}?)" if found else ""


def check_choice(name: str, value: str, choices: Iterable[str]) -> str:
    """Check that `value` is one of `choices`, and return it.

    Args:
        name: of the option or key, for the message.
        value: what was given.
        choices: what is valid.

    Raises:
        UserError: it is none of them; the message has the nearest one and all others.
    """
    choices = tuple(choices)
    if value not in choices:
        allowed = ", ".join(repr(c) for c in choices)
        raise UserError(
            f"{name}: {value!r} is not known{nearest(value, choices)}; choose one of {allowed}"
        )
    return value


TYPES: dict[type, tuple[Any, str]] = {
    str: (str, "text"),
    bool: (bool, "true or false"),
    int: (Integral, "a whole number"),
    float: (Real, "a number"),
    list: (list | tuple, "a list"),
    dict: (Mapping, "names with values"),
}
"""Types of options and metadata: type → (class of valid values, its name in messages)."""


def check_type(name: str, value: Any, kind: type) -> Any:
    """Check that `value` has the type `kind`, and return it as Python's own type.

    NumPy's numbers, and its arrays of no dimension, become Python's, which JSON can hold. A whole
    number is a valid `float`; true and false are no numbers.

    Args:
        name: of the option or key, for the message.
        value: what was given.
        kind: one of `TYPES`, or a union of several.

    Raises:
        UserError: it has another type.
    """
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        value = value.item()
    kinds = get_args(kind) or (kind,)
    for one in kinds:
        if isinstance(value, TYPES[one][0]) and (one is bool or not isinstance(value, bool)):
            return value if type(value) in (one, int) else one(value)
    words = " or ".join(TYPES[one][1] for one in kinds)
    raise UserError(f"{name}: expected {words}, got {value!r:.80}")


def one_line(error: object, limit: int | None = None) -> str:
    """Message of an error or a warning, in one line.

    Args:
        error: an exception or a warning. An `OSError` is shortened to its file and reason.
        limit: characters that are kept; all by default.
    """
    if isinstance(error, OSError) and error.strerror:
        name = f"{error.filename}: " if error.filename else ""
        text = f"{name}{error.strerror}"
    else:
        text = " ".join(str(error).split()) or type(error).__name__
    return text[:limit]
