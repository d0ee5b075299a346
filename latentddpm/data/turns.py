"""Whose turn it is: a batch holds images of one shape, and buckets take turns by their size.

A bucket of n images has a line of examples of its own, positions 0, 1, 2, …, on which all of its
images stand in a new order every n positions; its batch k holds positions k·B … k·B + B − 1.
Of all buckets' batches, step s takes the one at place s in the order of

    (2k + 1) / n        ties: the first bucket                 (Webster 1832, Sainte-Laguë 1910)

as seats of a parliament are dealt out. So before step s a bucket has had s · n / N batches (N:
all images), at most (1 + K · n / N) / 2 more or less with K buckets, evenly spread; every image
is seen as often as any other, whatever its bucket, and nothing is dropped: what is left of a
bucket at the end of its epoch shares a batch with the beginning of the next one, and a bucket
smaller than a batch fills it with its images several times, but seldom gets one. Whose turn it
is follows from the step alone, which image from seed and step. One bucket alone has every turn:
then this is the plain order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence, Sized

import numpy as np
import tensorflow as tf

from latentddpm.data.buckets import Shape

Part = Callable[[Shape, int, int], tf.data.Dataset]
"""The batches of a bucket: (shape, first position, the one behind the last) → a dataset."""


class Turns:
    """The order in which buckets take turns.

    Args:
        sizes: images of each bucket, at least one.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes, self._all = list(sizes), range(len(sizes))
        # (2k + 1) / n in whole numbers, which compare exactly however long a run is.
        self._units = [math.lcm(*sizes) // size for size in sizes]

    def before(self, step: int) -> list[int]:
        """How many batches each bucket has had before a step."""
        total = sum(self.sizes)
        # Up to the same point (2k + 1) / n ≤ 2s / N in each: s batches, give or take a few.
        counts = [(2 * step * size + total) // (2 * total) for size in self.sizes]
        for _ in range(sum(counts) - step):
            counts[max(self._all, key=lambda b: (self._due(b, counts[b] - 1), b))] -= 1
        for _ in range(step - sum(counts)):
            counts[self._next(counts)] += 1
        return counts

    def bucket(self, step: int) -> int:
        """Whose turn a step is."""
        return self._next(self.before(step))

    def _next(self, counts: Sequence[int]) -> int:
        return min(self._all, key=lambda bucket: self._due(bucket, counts[bucket]))

    def _due(self, bucket: int, number: int) -> int:
        return (2 * number + 1) * self._units[bucket]


def in_turns(
    images: Mapping[Shape, Sized], start: int, stop: int, batch_size: int, part: Part
) -> tf.data.Dataset:
    """Batches of steps `start` … `stop` − 1, each of the bucket whose turn it is."""
    turns = Turns([len(selection) for selection in images.values()])
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
    """What the `Draws` of a bucket are called; the square's are those of a run without others."""
    height, width = shape
    return name if height == width else f"{name} {width}x{height}"
