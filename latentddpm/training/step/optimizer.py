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
about a hundred graph operations times the 300 to 700 variables of a UNet, and some twenty passes
over memory. Here a variable of at least `LONG` numbers, which nine tenths of a network's numbers
belong to, is updated where it lies: one pass for its decay, one fused operation for m, v and θ,
and two for the EMA. The many short ones are strung together into one vector, updated in the same
way, and split again, which keeps the graph small.

`training.step.update` passes gradients that are already summed and clipped. `apply`, for a plain
Keras `fit`, sums over the replicas before it clips, so the result does not depend on their number
(Keras clips each replica's gradients before it sums them).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from latentddpm.distribution.replicas import all_reduce
from latentddpm.training.step.vectors import (
    Bucket,
    StoredVector,
    cut,
    fill,
    is_long,
    length_of,
    string,
)


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
        self._buckets: list[Bucket] = []
        self._stored: list[StoredVector] = []
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
        for group in fill(variables):
            decayed = [i for i in group if self.weight_decay and self._decays(variables[i])]
            order = decayed + [i for i in group if i not in decayed]
            alone = [[i] for i in order if is_long(variables[i])]
            short = [i for i in order if [i] not in alone]
            buckets = [
                self._bucket(variables, indices, sum(i in decayed for i in indices))
                for indices in [*[short] * bool(short), *alone]
            ]
            lengths = {i: length_of(variables, [i]) for i in order}
            for slots in zip(*(bucket.slots() for bucket in buckets), strict=True):
                indices = [bucket.indices for bucket in buckets]
                self._stored.append(StoredVector(slots, indices, lengths))
            self._buckets.extend(buckets)
        self.built = True

    def _bucket(
        self, variables: Sequence[keras.Variable], indices: list[int], num_decayed: int
    ) -> Bucket:
        alone, weights = is_long(variables[indices[0]]), variables[indices[0]]
        shape = weights.shape if alone else (length_of(variables, indices),)
        if not alone:
            weights = keras.Variable("zeros", shape=shape, dtype="float32", trainable=False)
        slots = [
            self.add_variable(shape, dtype="float32", name=name)
            for name in ("momentum", "velocity", *["average"] * self.use_ema)
        ]
        return Bucket(indices, num_decayed, alone, weights, *slots)

    def pack(self, gradients: Sequence[Any]) -> list[Any]:
        """Gradients of the buckets, which `apply_packed` takes: short ones are concatenated.

        Args:
            gradients: one for each variable, in order, of its shape.

        Returns:
            float32 tensors, one for each bucket.

        Raises:
            ValueError: not one gradient for each variable.
        """
        if len(gradients) != len(self._trainable_variables):
            raise ValueError(
                f"{len(gradients)} gradients for {len(self._trainable_variables)} variables: "
                "expected one for each"
            )
        return [
            gradients[bucket.indices[0]]
            if bucket.alone
            else string([gradients[i] for i in bucket.indices])
            for bucket in self._buckets
        ]

    def apply_packed(self, vectors: Sequence[Any]) -> None:
        """Update the variables with gradients that are already summed over replicas and clipped.

        Args:
            vectors: the gradients, as `pack` returns them.
        """
        self._update_buckets(vectors)
        self._iterations.assign_add(1)

    def checkpoint_variables(self) -> list[Any]:
        """State for a checkpoint: step count, then vectors of m, v and θ̄ by `BUCKET_SIZE`."""
        slots = {id(slot) for bucket in self._buckets for slot in bucket.slots()}
        return [*(v for v in self.variables if id(v) not in slots), *self._stored]

    def save_own_variables(self, store: Any) -> None:
        for index, variable in enumerate(self.checkpoint_variables()):
            store[str(index)] = np.asarray(variable)

    def load_own_variables(self, store: Any) -> None:
        variables = self.checkpoint_variables()
        if len(store.keys()) != len(variables):
            super().load_own_variables(store)  # warns
            return
        for index, variable in enumerate(variables):
            variable.assign(np.asarray(store[str(index)]))

    def moving_averages(self) -> list[Any]:
        """EMA θ̄ of each variable, in order and of its shape."""
        averages: list[Any] = [None] * len(self._trainable_variables)
        for bucket in self._buckets:
            variables = [self._trainable_variables[i] for i in bucket.indices]
            parts = cut(bucket.average.value, variables)
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
        keep = self.ema_momentum or 0.0
        if self.ema_warmup:
            keep = ops.minimum(keep, step / (step + 9))
        keep = ops.where(step > 1, keep, 0.0)
        factors = rate, self.beta_1**step, self.beta_2**step, keep
        # Under a strategy an update sees one device's copy of each of these.
        arguments = [
            (
                gradient,
                [self._trainable_variables[i].value for i in bucket.indices],
                *(variable.value for variable in (bucket.weights, *bucket.slots())),
            )
            for gradient, bucket in zip(gradients, self._buckets, strict=True)
        ]

        def update_all(strategy: tf.distribute.Strategy, arguments: list[Any]) -> None:
            first = self._buckets[0].momentum.value
            strategy.extended.update(first, self._update, (arguments, factors), group=False)

        if replica is None:
            update_all(self._distribution_strategy, arguments)
        else:
            replica.merge_call(update_all, args=(arguments,))

    def _update(
        self, _: tf.Variable, arguments: list[Any], factors: tuple[tf.Tensor, ...]
    ) -> None:
        """Update of all buckets on one device."""
        rate, power_1, power_2, keep = factors
        decay, share = 1 - rate * (self.weight_decay or 0.0), 1 - keep
        for bucket, values in zip(self._buckets, arguments, strict=True):
            gradient, variables, weights, momentum, velocity, *average = values
            if not bucket.alone:
                old = string(variables)
                end = length_of(variables, range(bucket.num_decayed))
                weights.assign(tf.concat([old[:end] * decay, old[end:]], axis=0))
            elif bucket.num_decayed:
                weights.assign(weights * decay)
            tf.raw_ops.ResourceApplyAdam(
                var=weights.handle,
                m=momentum.handle,
                v=velocity.handle,
                beta1_power=power_1,
                beta2_power=power_2,
                lr=rate,
                beta1=self.beta_1,
                beta2=self.beta_2,
                epsilon=self.epsilon,
                grad=gradient,
            )
            new = weights.read_value()
            for mean in average:
                tf.raw_ops.ResourceApplyGradientDescent(
                    var=mean.handle, alpha=share, delta=mean - new
                )
            if not bucket.alone:
                for variable, value in zip(variables, cut(new, variables), strict=True):
                    variable.assign(tf.cast(value, variable.dtype))

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


def moving_averages(optimizer: Any, weights: Sequence[Any]) -> list[Any]:
    """EMA of the weights that an optimizer keeps, in float32; the weights before its first step.

    Args:
        optimizer: built, also one that scales its loss.
        weights: values of the variables that it trains, in order.

    Returns:
        One tensor for each; the weights themselves where the optimizer keeps no EMA.
    """
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    if not inner.use_ema:
        return list(weights)
    if isinstance(inner, FlatAdamW):
        averages = inner.moving_averages()
    else:
        averages = [average.value for average in inner._model_variables_moving_average]
    begun = inner.iterations > 0  # before, Keras's averages are zeros
    return [ops.where(begun, *pair) for pair in zip(averages, weights, strict=True)]


def global_norm(tensors: Sequence[tf.Tensor]) -> tf.Tensor:
    """Euclidean norm over all numbers of some tensors, a float32 scalar.

    Args:
        tensors: of any shapes, at least one.
    """
    halves = [tf.nn.l2_loss(tf.cast(tensor, tf.float32)) for tensor in tensors]
    return tf.sqrt(2.0 * tf.add_n(halves))
