"""Figures of matplotlib, an optional dependency that is imported when something is plotted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from latentddpm.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(width: float, height: float) -> Figure:
    """Empty figure of `width` × `height` inches, without pyplot: no window, no global state.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("plots need matplotlib: pip install matplotlib") from None
    return Figure(figsize=(width, height), layout="constrained")
