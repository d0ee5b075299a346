"""Results: aligned lines for people, plain values for programs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Report:
    """What one evaluation found.

    Attributes:
        text: lines to print.
        values: the same for JSON: strings, numbers, None, and lists and dictionaries of them.
    """

    text: str
    values: dict[str, Any]


def aligned(rows: Iterable[Sequence[str]]) -> str:
    """Rows of cells as lines: the first column to the left, the others to the right."""
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
    """A number to four digits."""
    return f"{value:#.4g}"


def plain(value: Any) -> float | None:
    """A number for JSON, which has no infinity and nothing that is not a number."""
    return float(value) if np.isfinite(value) else None
