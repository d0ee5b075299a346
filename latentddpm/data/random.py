"""Random streams: random numbers as a pure function of (seed, purpose, position of the example).

The examples of a run have the positions 0, 1, 2, …; step s with batch size B trains on the
positions s·B … s·B + B − 1. All random numbers of an example are drawn from its position with
TensorFlow's stateless generators. So a run resumes without a saved generator, and gets the same
numbers on any number of replicas. (A Keras `SeedGenerator` gives every replica the same noise.)
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from latentddpm.choices import TIMESTEP_SAMPLINGS
from latentddpm.data.catalog.split import Selection
from latentddpm.data.places.weighted import WeightedSelection
from latentddpm.errors import check_choice


class RandomStream:
    """Random numbers of a run, independent for each purpose.

    The methods take `purpose`, a name for what the numbers are for, such as "noise", and
    `position`, that of the example, an integer scalar.

    Args:
        seed: of the run.
        name: of the stream, such as "validation"; streams with other names are independent.
    """

    def __init__(self, seed: int, name: str) -> None:
        self.seed = seed
        self.name = name

    def _key(self, purpose: str) -> int:
        text = f"{self.seed}/{self.name}/{purpose}".encode()
        return int.from_bytes(hashlib.sha256(text).digest()[:8], "little") >> 1

    def _seed(self, purpose: str, position: tf.Tensor) -> tf.Tensor:
        return tf.stack([tf.constant(self._key(purpose), tf.int64), tf.cast(position, tf.int64)])

    def index(self, position: tf.Tensor, count: int, purpose: str = "order") -> tf.Tensor:
        """Item of `count` items at a `position`, int64: a new permutation in every epoch."""
        position = tf.cast(position, tf.int64)
        return tf.random.experimental.index_shuffle(
            position % count, self._seed(purpose, position // count), count - 1
        )

    def draw(self, position: tf.Tensor, selection: Selection) -> tf.Tensor:
        """Number of an image of a `selection`, int64: each equally often, or by its weight."""
        if not isinstance(selection, WeightedSelection) or len(selection.groups) < 2:
            return self.index(position, len(selection))

        def turn(place: np.ndarray) -> np.ndarray:
            return np.array(selection.turn(int(place)), np.int64)

        found = tf.numpy_function(turn, [position], tf.int64, stateful=False)
        group, before = tf.unstack(tf.ensure_shape(found, (2,)))
        numbers = [
            start + self.index(before, size, f"order of group {number}")
            for number, (start, size) in enumerate(
                zip(selection.starts.tolist(), selection.sizes, strict=False)
            )
        ]
        return tf.gather(tf.stack(numbers), group)

    def integer(self, purpose: str, position: tf.Tensor, maximum: tf.Tensor | int) -> tf.Tensor:
        """Uniform int32 in 0 … `maximum` − 1, a scalar."""
        return tf.random.stateless_uniform(
            (), self._seed(purpose, position), 0, maximum, dtype=tf.int32
        )

    def bits(self, purpose: str, position: tf.Tensor) -> tf.Tensor:
        """Random 32 bits as int64, a scalar; modulo n they are `integer` with `maximum` n."""
        drawn = tf.random.stateless_uniform(
            (), self._seed(purpose, position), None, None, dtype=tf.int32
        )
        return tf.cast(tf.bitcast(drawn, tf.uint32), tf.int64)

    def chance(self, purpose: str, position: tf.Tensor, probability: float) -> tf.Tensor:
        """True with the given `probability`, a scalar."""
        return tf.random.stateless_uniform((), self._seed(purpose, position)) < probability

    def uniform(self, purpose: str, position: tf.Tensor, shape: tuple[int, ...]) -> tf.Tensor:
        """Uniform numbers in [0, 1), float32 of `shape`."""
        return tf.random.stateless_uniform(shape, self._seed(purpose, position))

    def normal(self, purpose: str, position: tf.Tensor, shape: tuple[int, ...]) -> tf.Tensor:
        """Standard normal numbers, float32 of `shape`."""
        return tf.random.stateless_normal(shape, self._seed(purpose, position))


@dataclass(frozen=True)
class TimestepDensity:
    """Density of the timesteps in training, given by its quantile function on (0, 1].

        uniform        q(p) = p
        logit_normal   q(p) = sigmoid(m + s Φ⁻¹(p))                      (Esser 2024, eq. 19)
        mode           q(p) = 1 − p − k (cos²(π p / 2) − 1 + p)          (Esser 2024, eq. 20)

    q is a share of the noise: 0 clean, 1 pure noise. In `mode` it falls with p.

    Args:
        kind: one of `choices.TIMESTEP_SAMPLINGS`.
        logit_mean: m; above 0 for more noise.
        logit_std: s, above 0.
        mode_scale: k, −1 to 1.75; above 0 for more of the middle.

    Raises:
        UserError: an unknown kind.
    """

    kind: str = "uniform"
    logit_mean: float = 0.0
    logit_std: float = 1.0
    mode_scale: float = 1.29

    def __post_init__(self) -> None:
        check_choice("timestep_sampling", self.kind, TIMESTEP_SAMPLINGS)

    def quantile(self, probability: tf.Tensor) -> tf.Tensor:
        """Share of the noise that `probability` belongs to, of its shape, 0 … 1."""
        if self.kind == "logit_normal":
            return tf.sigmoid(self.logit_mean + self.logit_std * tf.math.ndtri(probability))
        if self.kind == "mode":
            square = tf.cos(math.pi / 2 * probability) ** 2
            return 1 - probability - self.mode_scale * (square - 1 + probability)
        return probability


UNIFORM = TimestepDensity()
"""Every timestep is as likely as every other."""
