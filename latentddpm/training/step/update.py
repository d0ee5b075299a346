"""Update of the weights from summed gradients, left out where one is not finite; TensorFlow.

    g = (1/B) Σ_replicas g_r,   g ← g · min(1, c / ‖g‖),   one step of the optimizer if g is finite

Gradients are summed over the replicas first and then clipped, once, so the result does not depend
on the number of replicas; a Keras optimizer would clip each replica's sum. The choice between
update and no update is made in the cross-replica context (`merge_call`), because a `tf.cond`
inside a replica cannot contain an optimizer's update.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import keras
import tensorflow as tf

from latentddpm.distribution.replicas import all_reduce
from latentddpm.training.step.optimizer import FlatAdamW, global_norm


def apply_gradients(
    optimizer: keras.optimizers.Optimizer,
    variables: Sequence[keras.Variable],
    gradients: Sequence[tf.Tensor],
    number: tf.Tensor,
    finite: tf.Tensor | bool = True,
    enabled: tf.Tensor | bool = True,
) -> tuple[tf.Tensor, tf.Tensor]:
    """One step of an optimizer, unless a gradient is not finite; called by each replica.

    Args:
        optimizer: any Keras optimizer, also a `FlatAdamW`; built here if it is not.
        variables: those that the optimizer trains.
        gradients: one for each variable: the gradient of the sum of this replica's losses, after
            `optimizer.scale_loss`.
        number: examples of the global batch, float32 scalar; the gradients are divided by it.
        finite: bool scalar; False leaves the update out.
        enabled: bool scalar; False changes nothing at all, not even the loss scale.

    Returns:
        The gradient's global norm before clipping, float32, and a bool scalar, True where the
        update was made. Without an update, weights, moments, EMA and step count stay as they
        are, and an optimizer that scales its loss halves the scale.
    """
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    if not optimizer.built:
        optimizer.build(variables)
    flat = isinstance(inner, FlatAdamW)
    parts = all_reduce(inner.pack(gradients) if flat else gradients)
    scale = 1.0 / (number * optimizer.scale_loss(tf.constant(1.0)))
    norm = global_norm(parts) * scale
    enabled = tf.convert_to_tensor(enabled)
    finite = enabled & finite & tf.math.is_finite(norm)
    if inner.global_clipnorm:
        scale *= tf.minimum(1.0, inner.global_clipnorm / norm)
    parts = [part * tf.cast(scale, part.dtype) for part in parts]

    def update(*parts: tf.Tensor) -> None:
        if flat:
            inner.apply_packed(parts)
        else:
            inner.apply(parts, variables)

    def decide(
        strategy: tf.distribute.Strategy,
        finite: tf.Tensor,
        enabled: tf.Tensor,
        parts: list[tf.Tensor],
    ) -> None:
        def make() -> None:
            strategy.extended.call_for_each_replica(update, args=tuple(parts))
            _grow(optimizer)

        def shrink() -> None:
            _shrink(optimizer)

        with _already_summed(inner):
            finite, enabled = (
                strategy.experimental_local_results(flag)[0] for flag in (finite, enabled)
            )
            tf.cond(finite, make, lambda: tf.cond(enabled, shrink, lambda: None))

    replica = tf.distribute.get_replica_context()
    replica.merge_call(decide, args=(finite, enabled, parts))
    return norm, finite


@contextlib.contextmanager
def _already_summed(optimizer: keras.optimizers.Optimizer) -> Iterator[None]:
    """Stop a Keras optimizer from summing over replicas again, while its update is traced."""
    own = optimizer._all_reduce_sum_gradients
    optimizer._all_reduce_sum_gradients = list
    try:
        yield
    finally:
        optimizer._all_reduce_sum_gradients = own


def _grow(optimizer: keras.optimizers.Optimizer) -> None:
    """Double the loss scale after enough finite steps in a row (Micikevicius et al. 2018)."""
    if not isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return
    good_steps = optimizer.step_counter.value + 1
    full = good_steps >= optimizer.dynamic_growth_steps
    optimizer.dynamic_scale.assign(optimizer.dynamic_scale * tf.where(full, 2.0, 1.0))
    optimizer.step_counter.assign(tf.where(full, tf.zeros_like(good_steps), good_steps))


def _shrink(optimizer: keras.optimizers.Optimizer) -> None:
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        optimizer.dynamic_scale.assign(optimizer.dynamic_scale * 0.5)
        optimizer.step_counter.assign(0)
