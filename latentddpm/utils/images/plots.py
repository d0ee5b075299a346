"""Plots of signals: a line for each channel over the samples, drawn with Pillow.

Time runs to the right; the lower edge is −1, the upper one 1, the gray line 0. Lines are drawn at
`FINE` times the size and averaged, so that they are smooth.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf")
"""Colours of the channels, in turn."""
FINE = 3


def plot(signals: np.ndarray, height: int = 80, width: int = 160) -> np.ndarray:
    """Plots of signals, uint8 (..., height, width, 3), on white.

    Args:
        signals: (..., L, C), in [-1, 1]; what is outside is cut off.
        height, width: of a plot, in pixels.

    Example:
        >>> import numpy as np
        >>> from latentddpm.utils.images.plots import plot
        >>> plot(np.zeros((2, 64, 1))).shape
        (2, 80, 160, 3)
    """
    signals = np.asarray(signals, np.float32)
    flat = signals.reshape(-1, *signals.shape[-2:])
    plots = np.stack([_plot(one, height, width) for one in flat])
    return plots.reshape(*signals.shape[:-2], height, width, 3)


def _plot(signal: np.ndarray, height: int, width: int) -> np.ndarray:
    rows, columns = height * FINE, width * FINE
    canvas = Image.new("RGB", (columns, rows), "white")
    draw = ImageDraw.Draw(canvas)
    draw.line([(0, rows / 2), (columns, rows / 2)], "#cccccc", FINE)
    draw.rectangle([0, 0, columns - 1, rows - 1], outline="#cccccc", width=FINE)
    times = np.linspace(FINE, columns - 1 - FINE, len(signal))
    levels = (1 - np.clip(signal, -1, 1)) / 2 * (rows - 1 - 2 * FINE) + FINE
    for channel in reversed(range(signal.shape[1])):  # the first one on top
        colour = COLOURS[channel % len(COLOURS)]
        points = list(zip(times.tolist(), levels[:, channel].tolist(), strict=True))
        draw.line(points, colour, FINE + 1, joint="curve")
    return np.asarray(canvas.reduce(FINE))
