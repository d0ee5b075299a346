"""Aspect-ratio buckets: the shapes that images are cropped to, and which one an image takes.

A square crop of a portrait cuts off heads. With R the resolution and S the step, an image is
instead scaled to cover, and centre-cropped to, one of the shapes

    (h, w) and (w, h)   w = S, 2S, … ≥ R,   h = ⌊R² / (w·S)⌋ · S,   w / h ≤ the greatest ratio

and R × R: multiples of S of about the same area, none larger, so that a step costs and holds the
same whatever its shape (NovelAI 2022; kohya's sd-scripts). An image takes the shape that
minimises |log(w/h) − log(W/H)|, W × H its own size; one that is longer than all shapes takes
the longest. Square training is the case of one shape.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from latentddpm.config import DiffusionData
from latentddpm.data.catalog.catalog import Catalog
from latentddpm.data.catalog.split import Selection
from latentddpm.errors import UserError

Shape = tuple[int, int]
"""(height, width) in pixels."""


def ratio(shape: Shape) -> float:
    """Width over height."""
    return shape[1] / shape[0]


class Buckets:
    """The shapes of a data set's crops, from the highest to the widest.

    Args:
        resolution: side of the square.
        others: further shapes, no larger than the square.

    Attributes:
        shapes: (height, width) of each bucket.
    """

    def __init__(self, resolution: int, others: Sequence[Shape] = ()) -> None:
        self.resolution = resolution
        self.shapes = sorted([(resolution, resolution), *others], key=ratio)
        ratios = np.array([ratio(shape) for shape in self.shapes])
        self._bounds = np.sqrt(ratios[:-1] * ratios[1:])  # halfway between logarithms

    @property
    def others(self) -> tuple[Shape, ...]:
        """The shapes beside the square."""
        return tuple(shape for shape in self.shapes if shape[0] != shape[1])

    def nearest(self, width: np.ndarray, height: np.ndarray) -> np.ndarray:
        """Which bucket an image of width × height takes, int64."""
        return np.searchsorted(self._bounds, width / height)

    def of(self, catalog: Catalog) -> Callable[[int, int], np.ndarray]:
        """The bucket of each of the images `start` … `stop` − 1 of a catalog."""
        width, height = catalog.images["width"], catalog.images["height"]
        return lambda start, stop: self.nearest(width[start:stop], height[start:stop])

    def parts(self, selection: Selection, catalog: Catalog) -> dict[Shape, Selection]:
        """The images of a selection by their shape; shapes without any are left out."""
        parts = selection.parts(self.of(catalog), len(self.shapes))
        return {shape: part for shape, part in zip(self.shapes, parts, strict=True) if len(part)}


def table(
    training: Mapping[Shape, Selection], validation: Mapping[Shape, Selection], batch_size: int
) -> str:
    """How many images take each shape, a line for each that any of them takes."""
    lines = ["aspect-ratio buckets:    images   kept out"]
    for height, width in sorted({*training, *validation}, key=ratio):
        count, held = (len(parts.get((height, width), ())) for parts in (training, validation))
        few = (
            f"   fewer than a batch of {batch_size}: repeated in it" if count < batch_size else ""
        )
        lines.append(f"  {width:6} × {height:<6} {count:14} {held:10}{few if count else ''}")
    return "\n".join(lines)


def make_buckets(resolution: int, step: int, max_ratio: float) -> Buckets:
    """The square and the shapes beside it, multiples of `step`, up to `max_ratio` long.

    Raises:
        UserError: there is none beside the square.
    """
    others: list[Shape] = []
    for long in range((resolution // step + 1) * step, resolution**2 // step + 1, step):
        short = resolution**2 // (long * step) * step
        if long > max_ratio * short:
            break
        others += [(short, long), (long, short)]
    if not others:
        raise UserError(
            f"aspect buckets: at resolution {resolution} no shape of multiples of {step} and of "
            f"ratio up to {max_ratio:g} stands beside the square; expected a lower bucket_step or "
            "a higher bucket_max_ratio"
        )
    return Buckets(resolution, others)


def buckets_of(data: DiffusionData) -> Buckets:
    """The shapes that a configuration asks for: the square alone without `aspect_buckets`."""
    if not data.aspect_buckets:
        return Buckets(data.resolution)
    return make_buckets(data.resolution, data.bucket_step, data.bucket_max_ratio)
