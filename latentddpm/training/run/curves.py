"""Learning curves of runs, read from their logs, and a plot of them.

    log.jsonl ──► {"loss": (steps, values), "validation_loss": …} ──► a panel for each name

A training curve is drawn twice: faint as logged, and as a centred moving mean, which has no lag.
Validation is drawn as measured, in the same panel.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from latentddpm.errors import UserError, check_choice
from latentddpm.utils.figures import new_figure
from latentddpm.utils.files import atomic_path, read_json_lines

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LOG = "log.jsonl"
VALIDATION = "validation_"
SUFFIXES = (".png", ".svg", ".pdf")
TITLES = {
    "loss_q1": "loss, first quarter of timesteps (least noise)",
    "loss_q2": "loss, second quarter",
    "loss_q3": "loss, third quarter",
    "loss_q4": "loss, last quarter (most noise)",
    "kl": "KL divergence",
    "mse": "mean squared error",
    "psnr": "PSNR (dB)",
    "near": "near: share of samples like copies",
    "examples_per_second": "images a second",
}
MAIN = "loss"
LAST = ("gradient_norm", "learning_rate", "examples_per_second")
"""Names that every training logs; their panels come last."""
FROM_ZERO = ("learning_rate", "examples_per_second")
COLUMNS = 4
WINDOW = 40
"""The window of the moving mean is the number of points of a curve, divided by this."""
WIDE = 8.0
"""A panel is logarithmic where its largest value exceeds this multiple of its smallest."""
COLOURS = ("#3b6fd4", "#e8703a", "#2f9e68", "#a34fc4", "#d43b66", "#8a6d3b", "#2b9fb8", "#6b7280")
"""Colours of the runs, in order; a single run has the second one for its validation."""


class Curve(NamedTuple):
    """Curve: the values logged under one name.

    Attributes:
        steps: int64 (N,), rising.
        values: float64 (N,), finite.
    """

    steps: np.ndarray
    values: np.ndarray


def read_curves(run: Path) -> dict[str, Curve]:
    """Learning curves in a run's log, by name; a name without any finite value is left out.

    Args:
        run: its folder.

    Raises:
        UserError: the folder has no log.
    """
    if not (run / LOG).is_file():
        raise UserError(f"{run}: not a run (it has no {LOG})")
    points: dict[str, list[tuple[int, float]]] = {}
    for line in read_json_lines(run / LOG):
        for name, value in line.items():
            if name != "step" and value is not None and math.isfinite(value):
                points.setdefault(name, []).append((line["step"], value))
    return {name: Curve(*map(np.array, zip(*p, strict=True))) for name, p in points.items()}


def smooth(values: np.ndarray) -> np.ndarray:
    """Centred moving mean; at both ends the window is shorter.

    Args:
        values: (N,).

    Returns:
        float64 (N,).
    """
    half = len(values) // WINDOW // 2
    places = np.arange(len(values))
    starts, stops = np.maximum(places - half, 0), np.minimum(places + half + 1, len(values))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    return (sums[stops] - sums[starts]) / (stops - starts)


def plot_runs(runs: Sequence[Path], file: Path) -> None:
    """Plot the learning curves of runs, a colour for each run.

    Args:
        runs: their folders.
        file: to write, with one of `SUFFIXES`.

    Raises:
        UserError: a folder without a log or with an empty one, another suffix than `SUFFIXES`,
            or no matplotlib.
    """
    check_choice("--plot", file.suffix.lower(), SUFFIXES)
    curves = {str(run): read_curves(run) for run in runs}
    for run, found in curves.items():
        if not found:
            raise UserError(f"{run}: nothing to plot yet, its log is empty")
    main, *small = _panels(curves.values())
    rows = math.ceil(len(small) / COLUMNS)
    figure = new_figure(14.0, 4.2 + 2.5 * rows)
    grid = figure.add_gridspec(1 + rows, COLUMNS, height_ratios=[1.7, *[1.0] * rows])
    axes = figure.add_subplot(grid[0, :])
    _draw(axes, main, curves)
    axes.legend(loc="upper right", frameon=False, ncols=min(len(curves), 3), fontsize=10)
    if len(curves) == 1:
        axes.set_title(runs[0], loc="right", fontsize=10, color="#6b7280")
    for place, name in enumerate(small):
        _draw(figure.add_subplot(grid[1 + place // COLUMNS, place % COLUMNS]), name, curves)
    with atomic_path(file) as temporary:
        figure.savefig(temporary, dpi=130)


def _panels(curves: Iterable[Mapping[str, Curve]]) -> list[str]:
    """Names of the panels, without `VALIDATION`: the loss first, then the rest, then `LAST`."""
    names = {name.removeprefix(VALIDATION) for run in curves for name in run}
    middle = sorted(names - {MAIN, *LAST})
    return [name for name in (MAIN, *middle, *LAST) if name in names]


def _draw(axes: Axes, name: str, curves: Mapping[str, Mapping[str, Curve]]) -> None:
    """Draw the curves of one name; the smoothed values set the range, so outliers do not."""
    seen = []
    for place, (run, found) in enumerate(curves.items()):
        labels = (run, f"{run}, validation") if len(curves) > 1 else ("training", "validation")
        colour = COLOURS[place % len(COLOURS)]
        if name in found:
            steps, values = found[name]
            seen += [np.percentile(values, [2, 98]), smooth(values)]
            line = values if name == "learning_rate" else seen[-1]
            label = f"{labels[0]} {line[-1]:.4g}"
            axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
            axes.plot(steps, line, color=colour, linewidth=1.6, label=label)
        if VALIDATION + name in found:
            steps, values = found[VALIDATION + name]
            seen.append(values)
            lowest = values.argmin()
            label = f"{labels[1]} {values[-1]:.4g}"
            if lowest < len(values) - 1:
                label += f" (lowest {values[lowest]:.4g} at {_thousands(steps[lowest])})"
            colour = colour if len(curves) > 1 else COLOURS[1]
            dots = {"marker": "o", "markersize": 3.5, "markerfacecolor": "white"}
            axes.plot(steps, values, color=colour, linewidth=1.2, label=label, **dots)
    _dress(axes, name, np.concatenate(seen))


def _dress(axes: Axes, name: str, seen: np.ndarray) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    title = TITLES.get(name, name.replace("_", " "))
    axes.set_title(title, loc="left", fontsize=12 if name == MAIN else 9.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e5e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8.5, length=3)
    axes.xaxis.set_major_formatter(_thousands)
    axes.margins(x=0.01)
    low, high = seen.min(), seen.max()
    if name in FROM_ZERO:
        axes.set_ylim(0.0, 1.08 * high or 1.0)
        if name == "learning_rate":
            axes.yaxis.set_major_formatter(lambda rate, place: f"{rate:.1e}" if rate else "0")
    elif low > 0 and high > WIDE * low:
        axes.set_yscale("log")
        axes.set_ylim(low / 1.15, high * 1.15)
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(lambda value, place: f"{value:g}")
    elif high > low:
        axes.set_ylim(low - 0.06 * (high - low), high + 0.06 * (high - low))


def _thousands(step: float, place: int | None = None) -> str:
    return f"{step / 1000:g}k" if step >= 1000 else f"{step:g}"
