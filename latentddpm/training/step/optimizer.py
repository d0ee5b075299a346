"""Optimizers with an EMA of the weights: AdamW over a few long vectors, Adafactor, Lion.

With gradient g, clipped to a global norm c, of parameters θ (Loshchilov & Hutter 2019,
algorithm 2, on Kingma & Ba 2015, algorithm 1):

    g ← g · min(1, c / ‖g‖)
    m ← β₁ m + (1 − β₁) g            v ← β₂ v + (1 − β₂) g²
    θ ← θ − η λ θ                    decay, of kernels and embeddings only
    θ ← θ − η √(1 − β₂ᵗ) / (1 − β₁ᵗ) · m / (√v + ε)
    θ̄ ← μₜ θ̄ + (1 − μₜ) θ            EMA of the weights, θ̄ = θ after step 1

μₜ is the momentum μ or, with `ema_warmup`, min(μ, t / (t + 9)). Then the EMA covers about the
last tenth of the steps until t is large enough for μ, so that the EMA of a short run does not
contain its untrained beginning.

The results are those of `keras.optimizers.AdamW`. Keras repeats these lines for each variable:
about a hundred graph operations times the 300 to 700 variables of a UNet, three quarters of the
time until the first step (docs/benchmarks.md). Here gradients and parameters are concatenated
into long vectors, updated, and split again: six operations for each variable, and one reduction
over the replicas of a `tf.distribute` strategy. A vector ends at `BUCKET_SIZE` numbers, so that
the copies stay small beside a large network.

`training.step.update` passes gradients that are already summed and clipped. `apply`, for a plain
Keras `fit`, sums over the replicas before it clips, so the result does not depend on their number
(Keras clips each replica's gradients before it sums them).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from latentddpm.distribution.replicas import all_reduce

BUCKET_SIZE = 64 * 2**20
"""Greatest length of a vector, unless a single variable is longer: 256 MiB in float32."""


@dataclass
class Bucket:
    """Variables updated as one vector of length n, with the vector's state.

    Attributes:
        indices: positions in the list of variables, in the vector's order: first those with
            weight decay.
        num_decayed: how many of them have weight decay.
        momentum: m, a float32 variable (n,).
        velocity: v, a float32 variable (n,).
        average: θ̄, a float32 variable (n,), or None without EMA.
    """

    indices: list[int]
    num_decayed: int
    momentum: Any
    velocity: Any
    average: Any


@keras.saving.register_keras_serializable(package="latentddpm")
class FlatAdamW(keras.optimizers.AdamW):
    """AdamW with far fewer graph operations than `keras.optimizers.AdamW`; TensorFlow only.

    Args:
        args, kwargs: those of `keras.optimizers.AdamW`, without `amsgrad`, `clipnorm`,
            `clipvalue`, `ema_overwrite_frequency` and `gradient_accumulation_steps`.
        ema_warmup: EMA momentum min(μ, t / (t + 9)) at step t, instead of μ = `ema_momentum`.

    Raises:
        ValueError: an argument that it does not take.
    """

    def __init__(self, *args: Any, ema_warmup: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.ema_warmup = ema_warmup
        for name in (
            "amsgrad",
            "clipnorm",
            "clipvalue",
            "ema_overwrite_frequency",
            "gradient_accumulation_steps",
        ):
            if getattr(self, name):
                raise ValueError(f"FlatAdamW does not take {name}")

    def build(self, variables: Sequence[keras.Variable]) -> None:
        if self.built:
            return
        # Extend Keras's own list. Keras would track an assigned list, and then the weights would
        # be among the optimizer's variables and twice in every checkpoint.
        self._trainable_variables.extend(variables)
        self._trainable_variables_indices = {
            self._var_key(variable): index for index, variable in enumerate(variables)
        }
        self._buckets = []
        for indices in _fill(variables):
            decayed = [i for i in indices if self.weight_decay and self._decays(variables[i])]
            rest = [i for i in indices if i not in decayed]
            vectors = [
                self.add_variable((_length(variables, indices),), dtype="float32", name=name)
                for name in ("momentum", "velocity", *["average"] * self.use_ema)
            ]
            average = vectors[2] if self.use_ema else None
            self._buckets.append(Bucket(decayed + rest, len(decayed), *vectors[:2], average))
        self.built = True

    def pack(self, gradients: Sequence[Any]) -> list[Any]:
        """Gradients concatenated into the vectors that `apply_packed` takes.

        Args:
            gradients: one for each variable, in order, of its shape.

        Returns:
            float32 vectors, one for each bucket.

        Raises:
            ValueError: not one gradient for each variable.
        """
        if len(gradients) != len(self._trainable_variables):
            raise ValueError(
                f"{len(gradients)} gradients for {len(self._trainable_variables)} variables: "
                "expected one for each"
            )
        return [_string([gradients[i] for i in bucket.indices]) for bucket in self._buckets]

    def apply_packed(self, vectors: Sequence[Any]) -> None:
        """Update the variables with gradients that are already summed over replicas and clipped.

        Args:
            vectors: the gradients, as `pack` returns them.
        """
        self._update_buckets(vectors)
        self._iterations.assign_add(1)

    def moving_averages(self) -> list[Any]:
        """EMA θ̄ of each variable, in order and of its shape."""
        averages: list[Any] = [None] * len(self._trainable_variables)
        for bucket in self._buckets:
            variables = [self._trainable_variables[i] for i in bucket.indices]
            parts = _cut(bucket.average.value, variables)
            for index, part in zip(bucket.indices, parts, strict=True):
                averages[index] = part
        return averages

    def _decays(self, variable: keras.Variable) -> bool:
        return self._use_weight_decay(variable.value)

    def _backend_apply_gradients(
        self, grads: Sequence[Any], trainable_variables: Sequence[keras.Variable]
    ) -> None:
        gradients = all_reduce(self.pack(grads))
        if self.global_clipnorm:
            scale = ops.minimum(1.0, self.global_clipnorm / global_norm(gradients))
            gradients = [gradient * scale for gradient in gradients]
        self._update_buckets(gradients)

    def _update_buckets(self, gradients: Sequence[Any]) -> None:
        """Update of the module's formulas, without clipping; called by each replica."""
        replica = tf.distribute.get_replica_context()
        step = ops.cast(self.iterations + 1, "float32")
        rate = ops.cast(self.learning_rate, "float32")
        correction = ops.sqrt(1 - self.beta_2**step) / (1 - self.beta_1**step)
        keep = self.ema_momentum or 0.0
        if self.ema_warmup:
            keep = ops.minimum(keep, step / (step + 9))
        keep = ops.where(step > 1, keep, 0.0)
        # Under a strategy an update sees one device's copy of each of these.
        arguments = [
            (
                gradient,
                bucket.velocity.value,
                bucket.average.value if self.use_ema else None,
                [self._trainable_variables[i].value for i in bucket.indices],
                (rate, rate * correction, keep),
            )
            for gradient, bucket in zip(gradients, self._buckets, strict=True)
        ]

        def update_all(strategy: tf.distribute.Strategy, arguments: list[Any]) -> None:
            for bucket, values in zip(self._buckets, arguments, strict=True):

                def update(momentum: Any, *rest: Any, count: int = bucket.num_decayed) -> None:
                    self._update(count, momentum, *rest)

                strategy.extended.update(bucket.momentum.value, update, values, group=False)

        if replica is None:
            update_all(self._distribution_strategy, arguments)
        else:
            replica.merge_call(update_all, args=(arguments,))

    def _update(
        self,
        num_decayed: int,
        momentum: tf.Variable,
        gradient: tf.Tensor,
        velocity: tf.Variable,
        average: tf.Variable | None,
        variables: list[tf.Variable],
        factors: tuple[tf.Tensor, tf.Tensor, tf.Tensor],
    ) -> None:
        """Update of one bucket on one device."""
        rate, corrected_rate, keep = factors
        momentum.assign_add((gradient - momentum) * (1 - self.beta_1))
        velocity.assign_add((ops.square(gradient) - velocity) * (1 - self.beta_2))
        values = _string([variable.read_value() for variable in variables])
        if num_decayed:
            length = _length(variables, range(num_decayed))
            decayed = values[:length] * (1 - rate * self.weight_decay)
            values = ops.concatenate([decayed, values[length:]])
        values -= corrected_rate * momentum / (ops.sqrt(velocity) + self.epsilon)
        if average is not None:
            average.assign(values + keep * (average - values))
        for variable, value in zip(variables, _cut(values, variables), strict=True):
            variable.assign(ops.cast(value, variable.dtype))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "ema_warmup": self.ema_warmup}

    def _overwrite_model_variables_with_average_value(
        self, trainable_variables: Sequence[keras.Variable]
    ) -> None:
        for variable, average in zip(trainable_variables, self.moving_averages(), strict=True):
            variable.assign(average)


class WarmEMA:
    """Mixin for a Keras optimizer whose EMA warms up as that of `FlatAdamW`.

    Args:
        args, kwargs: those of the optimizer.
        ema_warmup: EMA momentum min(μ, t / (t + 9)) at step t, instead of μ = `ema_momentum`.
    """

    def __init__(self, *args: Any, ema_warmup: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.ema_warmup = ema_warmup

    def _update_model_variables_moving_average(
        self, trainable_variables: Sequence[keras.Variable]
    ) -> None:
        step = ops.cast(self.iterations + 1, "float32")
        momentum = self.ema_momentum
        if self.ema_warmup:
            momentum = ops.minimum(momentum, step / (step + 9))
        momentum = ops.where(step > 1, momentum, 0.0)
        averages = self._model_variables_moving_average
        for variable, average in zip(trainable_variables, averages, strict=True):
            average.assign(momentum * average + (1 - momentum) * variable)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "ema_warmup": self.ema_warmup}


@keras.saving.register_keras_serializable(package="latentddpm")
class WarmAdafactor(WarmEMA, keras.optimizers.Adafactor):
    """Adafactor (Shazeer & Stern 2018): `keras.optimizers.Adafactor` with `ema_warmup`."""


@keras.saving.register_keras_serializable(package="latentddpm")
class WarmLion(WarmEMA, keras.optimizers.Lion):
    """Lion (Chen et al. 2023): `keras.optimizers.Lion` with `ema_warmup`."""


def global_norm(tensors: Sequence[tf.Tensor]) -> tf.Tensor:
    """Euclidean norm over all numbers of some tensors, a float32 scalar.

    Args:
        tensors: of any shapes, at least one.
    """
    squares = [tf.reduce_sum(tf.square(tf.cast(tensor, tf.float32))) for tensor in tensors]
    return tf.sqrt(tf.add_n(squares))


def _fill(variables: Sequence[keras.Variable]) -> list[list[int]]:
    """Positions of the variables, in order, in groups of at most `BUCKET_SIZE` numbers."""
    groups: list[list[int]] = []
    room = 0
    for index in range(len(variables)):
        length = _length(variables, [index])
        if not groups or length > room:
            groups.append([])
            room = BUCKET_SIZE
        groups[-1].append(index)
        room -= length
    return groups


def _length(variables: Sequence[Any], indices: Sequence[int]) -> int:
    return sum(int(tf.TensorShape(variables[i].shape).num_elements()) for i in indices)


def _string(tensors: Sequence[Any]) -> Any:
    """One float32 vector from tensors of any shapes."""
    return ops.concatenate([ops.cast(ops.reshape(t, (-1,)), "float32") for t in tensors])


def _cut(vector: Any, variables: Sequence[Any]) -> list[Any]:
    """Parts of a vector, in the shapes of `variables`."""
    lengths = [_length(variables, [i]) for i in range(len(variables))]
    return [
        tf.reshape(part, variable.shape)
        for part, variable in zip(tf.split(vector, lengths), variables, strict=True)
    ]
