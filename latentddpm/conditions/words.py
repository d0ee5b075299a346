"""Words of a condition: found in the data, kept in an order, and asked for by name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from latentddpm.errors import UserError, nearest

SHOWN = 12


def words_of(value: Any, place: str, column: str) -> tuple[str, ...]:
    """Words in a column of an image: those of a list, or between the commas of a text.

    Args:
        value: of the column; None for none.
        place: of the row, for messages.
        column: its name, for messages.

    Raises:
        UserError: something else than text, whole numbers, true and false.
    """
    entries = value if isinstance(value, list | tuple) else [value]
    found: dict[str, None] = {}
    for entry in entries:
        if entry is None:
            continue
        if isinstance(entry, bool):
            entry = "yes" if entry else "no"
        if isinstance(entry, float) and entry.is_integer():
            entry = int(entry)
        if not isinstance(entry, str | int):
            raise UserError(f"{place}: {column!r} is {entry!r:.40}, expected words")
        found |= dict.fromkeys(word for one in str(entry).split(",") if (word := one.strip()))
    return tuple(found)


def in_order(words: Iterable[str]) -> tuple[str, ...]:
    """Words in order: numbers in them by their size, so that 9 comes before 10.

    Args:
        words: in any order, with repeats.
    """

    def key(word: str) -> list[tuple[int, int | str]]:
        parts = re.split(r"(\d+)", word)
        return [(0, int(one)) if one.isdecimal() else (1, one) for one in parts]

    return tuple(sorted(set(words), key=lambda word: (key(word), word)))


def number_of(word: str, words: Sequence[str], name: str) -> int:
    """Number of a word in a list.

    Args:
        word: to find.
        words: all of them.
        name: of the condition, for messages.

    Raises:
        UserError: it is none of them.
    """
    try:
        return words.index(word)
    except ValueError:
        known = shown(words)
        raise UserError(
            f"{name}: {word!r} is not among the words of the training data"
            f"{nearest(word, words)}; they are {known}"
        ) from None


def shown(words: Sequence[str]) -> str:
    """Words in one line, the first ones of many.

    Args:
        words: in order.
    """
    more = f", … ({len(words)})" if len(words) > SHOWN else ""
    return ", ".join(words[:SHOWN]) + more
