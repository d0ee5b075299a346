"""Edges condition: line art, made from each image by an edge filter; no second file is needed.

    image ─► Gaussian, σ pixels ─► gradient of all channels ─► thin lines ─► two thresholds

as Canny (1986) has it, for colours. With G the sum of gᵀg over the gradients g = (∂x, ∂y) of the
channels, the strength of an edge is √(λ / C) for the larger eigenvalue λ of G, and its direction
is that of the eigenvector (Di Zenzo 1986): so an edge between two colours of equal brightness is
seen, too. A pixel stays if neither of its two neighbours across the edge is stronger, and if it
is above `high`, or above `low` and joined to one above `high`.

Lines are white (1) on black (−1), as those that ControlNet's models for edges take. "Not told" is
all zeros, a gray that no line art has.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from latentddpm.conditions.picture import MapCondition, Stage
from latentddpm.errors import UserError
from latentddpm.utils.images.pixel_format import PixelFormat

SIGMA, LOW, HIGH = 1.0, 0.04, 0.1


@dataclass(frozen=True)
class EdgesCondition(MapCondition):
    """Edges condition: line art of one channel, through space to depth.

    Attributes:
        sigma: of the Gaussian, in pixels.
        low, high: thresholds of the strength of an edge; a step from black to white has about
            0.4 / σ.
    """

    sigma: float = SIGMA
    low: float = LOW
    high: float = HIGH

    kind: ClassVar[str] = "edges"

    @classmethod
    def of_stage(cls, name: str, settings: Any, stage: Stage, null: bool = True) -> Self:
        if settings.low > settings.high:
            raise UserError(
                f"conditions.{name}.low: {settings.low:g}, expected at most high, "
                f"{settings.high:g}"
            )
        numbers = (settings.sigma, settings.low, settings.high)
        return cls(name, null, stage.downsample_factor**2, *numbers)

    def describe(self) -> str:
        return "line art, white on black"

    def format_of(self, pixels: PixelFormat) -> PixelFormat:
        return PixelFormat(channels=1)

    def picture(self, image: np.ndarray, rng: np.random.Generator | None = None) -> np.ndarray:
        return edges_of(image, self.sigma, self.low, self.high)


def edges_of(
    image: np.ndarray, sigma: float = SIGMA, low: float = LOW, high: float = HIGH
) -> np.ndarray:
    """Line art of an image.

    Args:
        image: float32 (H, W, C) in [-1, 1], at least 2 pixels a side.
        sigma: of the Gaussian, in pixels, above 0.
        low, high: thresholds of the strength of an edge, in units of the range of the image.

    Returns:
        float32 (H, W, 1): 1 on lines, which are one pixel wide, and −1 elsewhere.

    Example:
        >>> image = -np.ones((8, 8, 1), "float32")
        >>> image[:, 4:] = 1
        >>> (edges_of(image)[0, :, 0] > 0).nonzero()[0].tolist()
        [3]
    """
    smooth = _smoothed((np.asarray(image, np.float64) + 1) / 2, sigma)
    down, right = np.gradient(smooth, axis=(0, 1))
    xx, yy, xy = ((a * b).mean(-1) for a, b in ((right, right), (down, down), (right, down)))
    strength = np.sqrt(np.maximum((xx + yy + np.hypot(xx - yy, 2 * xy)) / 2, 0))
    angle = np.arctan2(2 * xy, xx - yy) / 2
    lines = _thinned(strength, angle) & (strength >= low)
    lines = _joined(lines, lines & (strength >= high))
    return np.where(lines, np.float32(1), np.float32(-1))[..., None]


def _smoothed(image: np.ndarray, sigma: float) -> np.ndarray:
    """Image (H, W, C) after a Gaussian of `sigma` pixels; beyond its border it stays the same."""
    reach = max(math.ceil(3 * sigma), 1)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    weights /= weights.sum()
    for axis in (0, 1):
        around = [(reach, reach) if k == axis else (0, 0) for k in range(image.ndim)]
        padded = np.pad(image, around, mode="edge")
        count = image.shape[axis]
        image = sum(
            weight * padded.take(range(start, start + count), axis)
            for start, weight in enumerate(weights)
        )
    return image


def _thinned(strength: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Pixels (H, W) that are not weaker than the two across the edge; of two equal ones the first.

    Differences below a millionth are rounding, and count as none.
    """
    height, width = strength.shape
    padded = np.pad(np.round(strength, 6), 1)
    sector = np.round(angle / (np.pi / 4)).astype(int) % 4
    kept = np.zeros((height, width), bool)
    for number, (down, right) in enumerate(((0, 1), (1, 1), (1, 0), (1, -1))):
        here, after, before = (
            padded[1 + k * down : 1 + k * down + height, 1 + k * right : 1 + k * right + width]
            for k in (0, 1, -1)
        )
        kept |= (sector == number) & (here >= after) & (here > before)
    return kept


def _joined(lines: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """Pixels of `lines` (H, W) that are joined to a seed through pixels of lines."""
    height, width = lines.shape
    while True:
        padded = np.pad(seeds, 1)
        grown = seeds.copy()
        for down in range(3):
            for right in range(3):
                grown |= padded[down : down + height, right : right + width]
        grown &= lines
        if (grown == seeds).all():
            return seeds
        seeds = grown
