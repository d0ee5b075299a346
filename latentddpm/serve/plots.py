"""Plots of learning curves as SVG, which a page shows as it is and no library draws.

faint line: as logged     line: moving mean     dots: validation
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

import numpy as np

from latentddpm.training.run.curves import (
    COLOURS,
    FROM_ZERO,
    LAST,
    MAIN,
    TITLES,
    VALIDATION,
    WIDE,
    Curve,
    smooth,
)

WIDTH, HEIGHT = 640, 240
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 26, 24
"""Margins in units of the plot."""
POINTS = 400
"""Points of a line at most; of more the means of neighbours are drawn."""
TICKS = 4


def panels(curves: Mapping[str, Curve]) -> list[str]:
    """Plots of a run's curves, the loss first; each an `<svg>` element.

    Args:
        curves: by name, see `training.run.curves`.
    """
    names = {name.removeprefix(VALIDATION) for name in curves}
    others = sorted(names - {MAIN, *LAST})
    order = [name for name in (MAIN, *others, *LAST) if name in names]
    return [plot(name, curves.get(name), curves.get(VALIDATION + name)) for name in order]


def plot(name: str, training: Curve | None, validation: Curve | None) -> str:
    """Plot of one name, an `<svg>` element.

    Args:
        name: of the curve, without "validation_".
        training, validation: curves; None for one that was not logged.
    """
    lines = [one for one in (training, validation) if one is not None]
    steps = np.concatenate([one.steps for one in lines]).astype(float)
    seen = [np.percentile(one.values, [2, 98]) for one in lines[:1]]
    seen += [smooth(one.values) for one in lines]
    scale = _Scale(steps, np.concatenate(seen), name in FROM_ZERO)
    parts = [*scale.grid()]
    if training is not None:
        plain = name == "learning_rate"
        mean = training.values if plain else smooth(training.values)
        if not plain:
            parts.append(scale.line(training.steps, training.values, COLOURS[0], 0.25))
        parts.append(scale.line(training.steps, mean, COLOURS[0]))
    if validation is not None:
        parts.append(scale.line(validation.steps, validation.values, COLOURS[1]))
        parts += scale.dots(validation.steps, validation.values, COLOURS[1])
    title = html.escape(TITLES.get(name, name.replace("_", " ")))
    last = ", ".join(
        f"{word} {one.values[-1]:.4g}"
        for word, one in (("training", training), ("validation", validation))
        if one is not None
    )
    parts.append(f'<text x="{LEFT}" y="16" class="title">{title}: {last}</text>')
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}">'
        f"{''.join(parts)}</svg>"
    )


class _Scale:
    """Scale from steps and values to places of a plot, linear or logarithmic in the values."""

    def __init__(self, steps: np.ndarray, seen: np.ndarray, from_zero: bool) -> None:
        low, high = float(seen.min()), float(seen.max())
        self.log = not from_zero and low > 0 and high > WIDE * low
        if from_zero:
            low = 0.0
        if self.log:
            low, high = math.log10(low), math.log10(high)
        margin = 0.06 * (high - low) or abs(high) or 1.0
        self.low, self.high = low - margin * (not from_zero), high + margin
        self.first, self.last = float(steps.min()), float(steps.max())

    def x(self, steps: np.ndarray) -> np.ndarray:
        """Places of steps."""
        share = (steps - self.first) / (self.last - self.first or 1.0)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y(self, values: np.ndarray) -> np.ndarray:
        """Places of values, inside the plot."""
        if self.log:
            values = np.log10(np.maximum(values, 1e-300))
        share = np.clip((values - self.low) / (self.high - self.low), 0, 1)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    def grid(self) -> list[str]:
        """Lines of the grid with their numbers."""
        found = []
        for value in np.linspace(self.low, self.high, TICKS + 1):
            shown = 10**value if self.log else value
            (y,) = self.y(np.array([shown]))
            found.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" class="grid"/>')
            found.append(
                f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{shown:.3g}</text>'
            )
        for step in np.unique(np.linspace(self.first, self.last, TICKS + 1).round()):
            (x,) = self.x(np.array([step]))
            text = f"{step / 1000:.3g}k" if step >= 1000 else f"{step:.0f}"
            found.append(f'<text x="{x:.1f}" y="{HEIGHT - 6}" text-anchor="middle">{text}</text>')
        return found

    def line(
        self, steps: np.ndarray, values: np.ndarray, colour: str, opacity: float = 1.0
    ) -> str:
        """Line through points."""
        block = -(-len(steps) // POINTS)
        places = zip(self.x(_means(steps, block)), self.y(_means(values, block)), strict=True)
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
        return f'<path d="M{path}" stroke="{colour}" opacity="{opacity:g}" class="curve"/>'

    def dots(self, steps: np.ndarray, values: np.ndarray, colour: str) -> list[str]:
        """Dots at points; none where there are too many to tell apart."""
        if len(steps) > POINTS // 4:
            return []
        places = zip(self.x(steps), self.y(values), strict=True)
        return [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places]


def _means(values: Sequence[float] | np.ndarray, block: int) -> np.ndarray:
    """Means of each block of neighbours; the last one may be shorter."""
    values = np.asarray(values, float)
    starts = np.arange(0, len(values), block)
    counts = np.minimum(starts + block, len(values)) - starts
    return np.add.reduceat(values, starts) / counts
