"""Aspect-ratio buckets: the shapes that images are cropped to, and the order of their batches.

A square crop of a portrait cuts off heads. With R the resolution and S the step, an image is
instead scaled to cover, and centre-cropped to, one of the shapes

    (h, w) and (w, h)   w = S, 2S, … ≥ R,   h = ⌊R² / (w·S)⌋ · S,   w / h ≤ the greatest ratio

and R × R: multiples of S of about the same area, none larger, so that a step costs and holds the
same whatever its shape (NovelAI 2022; kohya's sd-scripts). An image takes the shape that
minimises |log(w/h) − log(W/H)|, W × H its own size; one that is longer than all shapes takes
the longest. Square training is the case of one shape.

A batch holds images of one shape. A bucket of n images has a line of examples of its own,
positions 0, 1, 2, …, on which all of its images stand in a new order every n positions; its
batch k holds positions k·B … k·B + B − 1. Of all buckets' batches, step s takes the one at place s
in the order of

    (2k + 1) / n        ties: the first bucket                 (Webster 1832, Sainte-Laguë 1910)

as seats of a parliament are dealt out. Before step s a bucket has had s · n / N batches (N: all
images), at most (1 + K · n / N) / 2 more or less with K buckets, evenly spread. So every image is
seen as often as any other, whatever its bucket, and nothing is dropped: what is left of a bucket
at the end of its epoch shares a batch with the beginning of the next one. The bucket of a step
follows from the step alone, its images from seed and step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence, Sized
from typing import TYPE_CHECKING

import numpy as np

from latentddpm.config import DiffusionData
from latentddpm.data.catalog.catalog import Catalog
from latentddpm.data.catalog.split import Selection
from latentddpm.errors import UserError

if TYPE_CHECKING:  # caches are opened, and looked into, without it
    import tensorflow as tf

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
        """The bucket that an image of width × height takes, int64."""
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
    """Numbers of images by shape, a line for each that any of them takes."""
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


# --- Batches -------------------------------------------------------------------------------


Part = Callable[[Shape, int, int], "tf.data.Dataset"]
"""The batches of a bucket: (shape, first position, the one behind the last) → a dataset."""


class BucketSchedule:
    """The order in which buckets take turns.

    Args:
        sizes: images of each bucket, at least one.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes, self._all = list(sizes), range(len(sizes))
        # (2k + 1) / n in whole numbers, which compare exactly however long a run is.
        self._units = [math.lcm(*sizes) // size for size in sizes]

    def before(self, step: int) -> list[int]:
        """Numbers of batches that the buckets have had before a step."""
        total = sum(self.sizes)
        # Up to the same point (2k + 1) / n ≤ 2s / N in each: s batches, give or take a few.
        counts = [(2 * step * size + total) // (2 * total) for size in self.sizes]
        for _ in range(sum(counts) - step):
            counts[max(self._all, key=lambda b: (self._due(b, counts[b] - 1), b))] -= 1
        for _ in range(step - sum(counts)):
            counts[self._next(counts)] += 1
        return counts

    def bucket(self, step: int) -> int:
        """The bucket whose turn a step is."""
        return self._next(self.before(step))

    def _next(self, counts: Sequence[int]) -> int:
        return min(self._all, key=lambda bucket: self._due(bucket, counts[bucket]))

    def _due(self, bucket: int, number: int) -> int:
        return (2 * number + 1) * self._units[bucket]


def interleave(
    images: Mapping[Shape, Sized], start: int, stop: int, batch_size: int, part: Part
) -> tf.data.Dataset:
    """Batches of steps `start` … `stop` − 1, each of the bucket whose turn it is."""
    import tensorflow as tf

    turns = BucketSchedule([len(selection) for selection in images.values()])
    spans = zip(images, turns.before(start), turns.before(stop), strict=True)
    parts = [part(shape, first * batch_size, last * batch_size) for shape, first, last in spans]
    if len(parts) == 1:
        return parts[0]

    def bucket(step: np.ndarray) -> np.ndarray:
        return np.int64(turns.bucket(int(step)))

    def choose(step: tf.Tensor) -> tf.Tensor:
        return tf.ensure_shape(tf.numpy_function(bucket, [step], tf.int64, stateful=False), ())

    choices = tf.data.Dataset.range(start, stop).map(choose)
    return tf.data.Dataset.choose_from_datasets(parts, choices).prefetch(tf.data.AUTOTUNE)


def one_by_one(images: Mapping[Shape, Sized], part: Part) -> tf.data.Dataset:
    """Every example of every bucket once, bucket after bucket."""
    whole, *more = [part(shape, 0, len(selection)) for shape, selection in images.items()]
    for dataset in more:
        whole = whole.concatenate(dataset)
    return whole


def stream_name(name: str, shape: Shape) -> str:
    """The name of a bucket's `RandomStream`; the square has that of a run without buckets."""
    height, width = shape
    return name if height == width else f"{name} {width}x{height}"
