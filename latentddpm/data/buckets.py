"""Aspect-ratio buckets: the shapes that images are cropped to, and the order of their batches.

A square crop of a portrait cuts off heads. With buckets, an image is instead scaled to cover one
of several shapes and centre-cropped to it. For the resolution R and the step S these are R × R and

    (h, w) and (w, h)   w = S, 2S, … ≥ R,   h = ⌊R² / (w·S)⌋ · S,   w / h ≤ the greatest ratio

They are multiples of S with about the same area, none larger than R², so that a training step
takes the same time and memory for every shape (NovelAI 2022; kohya's sd-scripts). An image of size
W × H takes the shape that minimises |log(w/h) − log(W/H)|. Square training has a single bucket.

All images of a batch have the same shape. Each bucket is a sequence of examples at positions
0, 1, 2, …: its n images in a new order every n positions. Its batch k has the positions
k·B … k·B + B − 1. Step s takes the batch at place s when the batches of all buckets are sorted by

    (2k + 1) / n        ties: the first bucket                 (Webster 1832, Sainte-Laguë 1910)

This is a rule for dealing out the seats of a parliament. Of the first s steps a bucket gets
s · n / N (N: number of all images), give or take (1 + K · n / N) / 2 for K buckets, evenly spread.
So every image is used equally often, whatever its bucket, and none is dropped: the last images of
an epoch of a bucket share a batch with the first images of its next epoch. The bucket of a step
depends only on the number of the step, the images of its batch on the seed and the step.
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

if TYPE_CHECKING:  # a latents cache is opened without TensorFlow
    import tensorflow as tf

Shape = tuple[int, int]
"""(height, width) in pixels."""


def ratio(shape: Shape) -> float:
    """Ratio of width to height of a `shape`, (height, width)."""
    return shape[1] / shape[0]


class Buckets:
    """Shapes that images are cropped to, one for each bucket.

    Args:
        resolution: side of the square, in pixels.
        others: further shapes, (height, width), with no larger an area than the square.

    Attributes:
        shapes: (height, width) of each bucket, from the tallest to the widest.
    """

    def __init__(self, resolution: int, others: Sequence[Shape] = ()) -> None:
        self.resolution = resolution
        self.shapes = sorted([(resolution, resolution), *others], key=ratio)
        ratios = np.array([ratio(shape) for shape in self.shapes])
        self._bounds = np.sqrt(ratios[:-1] * ratios[1:])  # in the middle of their logarithms

    @property
    def others(self) -> tuple[Shape, ...]:
        """Shapes that are not square."""
        return tuple(shape for shape in self.shapes if shape[0] != shape[1])

    def nearest(self, width: np.ndarray, height: np.ndarray) -> np.ndarray:
        """Bucket, int64 (N,), of each image of size `width` × `height`, (N,) pixels each."""
        return np.searchsorted(self._bounds, width / height)

    def of(self, catalog: Catalog) -> Callable[[int, int], np.ndarray]:
        """Function (start, stop) → buckets, int64, of images start … stop − 1 of a catalog."""
        width, height = catalog.images["width"], catalog.images["height"]
        return lambda start, stop: self.nearest(width[start:stop], height[start:stop])

    def parts(self, selection: Selection, catalog: Catalog) -> dict[Shape, Selection]:
        """Images of a `selection` of a `catalog`, by their shape; only shapes that have some."""
        parts = selection.parts(self.of(catalog), len(self.shapes))
        return {shape: part for shape, part in zip(self.shapes, parts, strict=True) if len(part)}


def table(
    training: Mapping[Shape, Selection], validation: Mapping[Shape, Selection], batch_size: int
) -> str:
    """Table of the number of images of each shape, as text.

    Args:
        training, validation: images by shape.
        batch_size: images of a batch; buckets with fewer are marked.
    """
    lines = ["aspect-ratio buckets:   training validation"]
    for height, width in sorted({*training, *validation}, key=ratio):
        count, validated = (
            len(parts.get((height, width), ())) for parts in (training, validation)
        )
        few = (
            f"   fewer than a batch of {batch_size}: repeated in it" if count < batch_size else ""
        )
        lines.append(f"  {width:6} × {height:<6} {count:14} {validated:10}{few if count else ''}")
    return "\n".join(lines)


def make_buckets(resolution: int, step: int, max_ratio: float) -> Buckets:
    """Buckets of a square and of all other shapes with no larger an area.

    Args:
        resolution: side of the square, in pixels.
        step: the sides of the other shapes are multiples of it.
        max_ratio: greatest ratio of the longer to the shorter side.

    Raises:
        UserError: there is no other shape.
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
    """Buckets of a configuration `data`; without `aspect_buckets` that of the square alone."""
    if not data.aspect_buckets:
        return Buckets(data.resolution)
    return make_buckets(data.resolution, data.bucket_step, data.bucket_max_ratio)


# --- Batches -------------------------------------------------------------------------------


Part = Callable[[Shape, int, int], "tf.data.Dataset"]
"""Batches of a bucket: (its shape, first position, last position + 1) → a dataset."""


class BucketSchedule:
    """Schedule of buckets: the bucket of each step.

    Args:
        sizes: number of images of each bucket, at least 1.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes, self._all = list(sizes), range(len(sizes))
        # (2k + 1) / n as whole numbers, which can be compared exactly at any step.
        self._units = [math.lcm(*sizes) // size for size in sizes]

    def before(self, step: int) -> list[int]:
        """Number of batches of each bucket in all steps before `step`."""
        total = sum(self.sizes)
        # Batches with (2k + 1) / n ≤ 2s / N: about s of them, corrected below.
        counts = [(2 * step * size + total) // (2 * total) for size in self.sizes]
        for _ in range(sum(counts) - step):
            counts[max(self._all, key=lambda b: (self._due(b, counts[b] - 1), b))] -= 1
        for _ in range(step - sum(counts)):
            counts[self.next(counts)] += 1
        return counts

    def bucket(self, step: int) -> int:
        """Bucket of a `step`."""
        return self.next(self.before(step))

    def next(self, counts: Sequence[int]) -> int:
        """Bucket of the step that comes after `counts` batches of each bucket."""
        return min(self._all, key=lambda bucket: self._due(bucket, counts[bucket]))

    def _due(self, bucket: int, number: int) -> int:
        return (2 * number + 1) * self._units[bucket]


def interleave(
    images: Mapping[Shape, Sized], start: int, stop: int, batch_size: int, part: Part
) -> tf.data.Dataset:
    """Batches of the steps `start` … `stop` − 1, each from the bucket of its step.

    Args:
        images: of each bucket, by its shape.
        start, stop: steps.
        batch_size: images of a batch.
        part: makes the batches of a bucket.
    """
    import tensorflow as tf

    # Of images with weights a bucket has its share of the weights, else of the images.
    sizes = [getattr(one, "amount", len(one)) for one in images.values()]
    schedule = BucketSchedule(sizes)
    spans = zip(images, schedule.before(start), schedule.before(stop), strict=True)
    parts = [part(shape, first * batch_size, last * batch_size) for shape, first, last in spans]
    if len(parts) == 1:
        return parts[0]

    def bucket(step: np.ndarray) -> np.ndarray:
        return np.int64(schedule.bucket(int(step)))

    def choose(step: tf.Tensor) -> tf.Tensor:
        return tf.ensure_shape(tf.numpy_function(bucket, [step], tf.int64, stateful=False), ())

    choices = tf.data.Dataset.range(start, stop).map(choose)
    return tf.data.Dataset.choose_from_datasets(parts, choices).prefetch(tf.data.AUTOTUNE)


def one_by_one(images: Mapping[Shape, Sized], part: Part) -> tf.data.Dataset:
    """Batches with every image of every bucket once, one bucket after the other.

    Args:
        images: of each bucket, by its shape.
        part: makes the batches of a bucket.
    """
    whole, *more = [part(shape, 0, len(selection)) for shape, selection in images.items()]
    for dataset in more:
        whole = whole.concatenate(dataset)
    return whole


def stream_name(name: str, shape: Shape) -> str:
    """Name of the `RandomStream` of a bucket; for the square it is `name`, as without buckets."""
    height, width = shape
    return name if height == width else f"{name} {width}x{height}"
