"""Random streams: randomness as a pure function of `(seed, purpose, example position)`.

A run is a line of example positions 0, 1, 2, …; step s of batch size B trains on positions
s·B … s·B + B − 1. Everything random about an example is drawn from its position with
TensorFlow's stateless generators, so a run resumes where it stood without any saved
generator, and any number of replicas sees the same numbers. (A Keras `SeedGenerator`
would give every replica the same noise.)
"""

from __future__ import annotations

import hashlib

import tensorflow as tf


class RandomStream:
    """The random numbers of one run, each purpose a stream of its own.

    Args:
        seed: of the run.
        name: keeps streams of the same seed apart, such as "train", "validation".
    """

    def __init__(self, seed: int, name: str) -> None:
        self.seed = seed
        self.name = name

    def _key(self, purpose: str) -> int:
        text = f"{self.seed}/{self.name}/{purpose}".encode()
        return int.from_bytes(hashlib.sha256(text).digest()[:8], "little") >> 1

    def _seed(self, purpose: str, position: tf.Tensor) -> tf.Tensor:
        return tf.stack([tf.constant(self._key(purpose), tf.int64), tf.cast(position, tf.int64)])

    def index(self, position: tf.Tensor, count: int) -> tf.Tensor:
        """The item, of `count`, that stands at a position: a fresh permutation every epoch."""
        position = tf.cast(position, tf.int64)
        return tf.random.experimental.index_shuffle(
            position % count, self._seed("order", position // count), count - 1
        )

    def integer(self, purpose: str, position: tf.Tensor, maximum: tf.Tensor | int) -> tf.Tensor:
        """int32 in 0 … maximum − 1."""
        return tf.random.stateless_uniform(
            (), self._seed(purpose, position), 0, maximum, dtype=tf.int32
        )

    def bits(self, purpose: str, position: tf.Tensor) -> tf.Tensor:
        """int64, 32 random bits: modulo n they are `integer` with that maximum."""
        drawn = tf.random.stateless_uniform(
            (), self._seed(purpose, position), None, None, dtype=tf.int32
        )
        return tf.cast(tf.bitcast(drawn, tf.uint32), tf.int64)

    def chance(self, purpose: str, position: tf.Tensor, probability: float) -> tf.Tensor:
        """True with the given probability."""
        return tf.random.stateless_uniform((), self._seed(purpose, position)) < probability

    def uniform(self, purpose: str, position: tf.Tensor, shape: tuple[int, ...]) -> tf.Tensor:
        """float32 in [0, 1)."""
        return tf.random.stateless_uniform(shape, self._seed(purpose, position))

    def normal(self, purpose: str, position: tf.Tensor, shape: tuple[int, ...]) -> tf.Tensor:
        """float32, standard normal."""
        return tf.random.stateless_normal(shape, self._seed(purpose, position))
