"""Results: aligned lines for people, plain values for programs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Report:
    """Report of one part of an evaluation.

    Attributes:
        text: lines to print.
        values: the same results for JSON: strings, numbers, None, lists and dictionaries.
    """

    text: str
    values: dict[str, Any]


def aligned(rows: Iterable[Sequence[str]]) -> str:
    """Table as text: the first column aligned to the left, the others to the right.

    Args:
        rows: of cells; they may have different lengths.
    """
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip_longest(*rows, fillvalue="")]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if n else cell.ljust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=False))
        ).rstrip()
        for row in rows
    )


def shown(value: float) -> str:
    """Number for a table, with four significant digits.

    Args:
        value: any float.
    """
    return f"{value:#.4g}"


def plain(value: Any) -> float | None:
    """Number for JSON, which has neither infinity nor NaN; these become None.

    Args:
        value: a number, also of NumPy.
    """
    return float(value) if np.isfinite(value) else None
