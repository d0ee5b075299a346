"""Sums over micro-batches and over the replicas of a `tf.distribute` strategy; TensorFlow.

With the losses ℓᵢ of the global batch, i = 1 … B, wherever its examples lie,

    L = (1/B) Σᵢ ℓᵢ          ∇L = (1/B) Σ_replicas Σ_micro-batches Σᵢ ∇ℓᵢ

so what a replica holds are plain sums, and the one division is by a B that was counted over
all replicas. Shares of any sizes, none at all included, give the numbers of one device.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

Slice = Callable[[Any, tf.Tensor], Any]


def num_replicas() -> int:
    """Replicas of the strategy in whose scope this is called."""
    return tf.distribute.get_strategy().num_replicas_in_sync


def local_replicas(strategy: tf.distribute.Strategy) -> int:
    """Those of its replicas that are in this process."""
    if strategy.num_replicas_in_sync == 1:  # TensorFlow's default strategy lists no devices
        return 1
    return len(strategy.extended.worker_devices)


def split_over_replicas(
    function: Callable[[Any], tf.Tensor], strategy: tf.distribute.Strategy
) -> Callable[[Any], tf.Tensor]:
    """`function` of a batch, of which each replica in this process computes a part.

    Args:
        function: a structure of tensors with the examples first → a tensor with them first.
            Of fewer examples than replicas some see a blank one, which is left out again.
    """
    count = local_replicas(strategy)
    if count == 1:
        return function

    def share(inputs: Any) -> tf.Tensor:
        # The replicas of a process follow each other.
        index = tf.distribute.get_replica_context().replica_id_in_sync_group % count
        size = tf.shape(tf.nest.flatten(inputs)[0])[0]
        start, stop = index * size // count, (index + 1) * size // count
        part = _map(lambda tensor: _with_a_blank(tensor[start:stop], stop - start), inputs)
        return function(part)[: stop - start]

    def whole(inputs: Any) -> tf.Tensor:
        shares = strategy.run(share, args=(inputs,))
        return tf.concat(strategy.experimental_local_results(shares), axis=0)

    return whole


def sum_over_slices(function: Slice, data: Any, count: int, unroll: bool = False) -> Any:
    """`function(slice, number)` summed over `count` slices of this replica's examples.

    Args:
        function: gives a structure of tensors for a slice of `number` (float32) examples, which
            are its first ones: an empty slice comes as one blank example, number 0, because
            convolutions and means do not take none.
        data: a structure of tensors whose first axes are the examples.
        count: slices, as equal as can be; only one of them is in memory at a time.
        unroll: write the slices out one after the other (XLA wants sizes it knows).
    """
    size = tf.shape(tf.nest.flatten(data)[0])[0]
    whole = count == 1 and num_replicas() == 1

    def one(index: Any) -> Any:
        start, stop = index * size // count, (index + 1) * size // count
        number = stop - start
        part = data if count == 1 else _map(lambda tensor: tensor[start:stop], data)
        if not whole:
            part = _map(lambda tensor: _with_a_blank(tensor, number), part)
        return function(part, tf.cast(number, tf.float32))

    if count == 1:
        return one(0)
    if unroll:
        parts = [one(index) for index in range(count)]
        return tf.nest.map_structure(lambda *tensors: tf.add_n(tensors), *parts)
    first = one(0)
    _, total = tf.while_loop(
        lambda index, total: index < count,
        lambda index, total: (index + 1, tf.nest.map_structure(tf.add, total, one(index))),
        (tf.constant(1), first),
        parallel_iterations=1,
    )
    return total


def _map(function: Callable[[tf.Tensor], tf.Tensor], data: Any) -> Any:
    return tf.nest.map_structure(lambda part: None if part is None else function(part), data)


def _with_a_blank(tensor: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
    missing = tf.maximum(1 - number, 0)
    return tf.pad(tensor, [[0, missing], *[[0, 0]] * (tensor.shape.rank - 1)])


def all_reduce(tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """Sums over the replicas; called by each of them."""
    if num_replicas() == 1:
        return list(tensors)
    replica = tf.distribute.get_replica_context()
    return list(replica.all_reduce(tf.distribute.ReduceOp.SUM, list(tensors)))


def apply_gradients(
    optimizer: keras.optimizers.Optimizer,
    variables: Sequence[keras.Variable],
    gradients: Sequence[tf.Tensor],
    number: tf.Tensor,
    finite: tf.Tensor | bool = True,
    reduced: bool = False,
    enabled: tf.Tensor | bool = True,
) -> tuple[tf.Tensor, tf.Tensor]:
    """One step of an optimizer, unless something in it is not finite; called by each replica.

    Args:
        gradients: sums over this replica's examples, of losses through `optimizer.scale_loss`.
        number: examples of the global batch, which the gradients are divided by.
        healthy: False leaves the update out.
        reduced: the gradients are summed over the replicas already.
        playing: False leaves everything as it is, the loss scale too.

    Returns:
        The gradient's global norm (before clipping), and whether the update was made. If not,
        weights, moments, averages and step count stay as they are; of an optimizer that
        scales its loss the scale is halved.
    """
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    if not optimizer.built:
        optimizer.build(variables)
    flat = hasattr(inner, "apply_vectors")
    parts = inner.pack(gradients) if flat else list(gradients)
    if not reduced:
        parts = all_reduce(parts)
    scale = 1.0 / (number * optimizer.scale_loss(tf.constant(1.0)))
    squares = [tf.reduce_sum(tf.square(tf.cast(part, tf.float32))) for part in parts]
    norm = tf.sqrt(tf.add_n(squares)) * scale
    enabled = tf.convert_to_tensor(enabled)
    finite = enabled & finite & tf.math.is_finite(norm)
    if inner.global_clipnorm:
        scale *= tf.minimum(1.0, inner.global_clipnorm / norm)
    parts = [part * tf.cast(scale, part.dtype) for part in parts]

    def update(*parts: tf.Tensor) -> None:
        if flat:
            inner.apply_vectors(parts)
        else:
            inner.apply(parts, variables)

    def decide(
        strategy: tf.distribute.Strategy, finite: Any, enabled: Any, parts: list[Any]
    ) -> None:
        # Where all replicas meet: a condition inside one of them could not hold an update.
        def make() -> None:
            strategy.extended.call_for_each_replica(update, args=tuple(parts))
            _grow(optimizer)

        def shrink() -> None:
            _shrink(optimizer)

        with _summed(inner):
            finite, enabled = (
                strategy.experimental_local_results(flag)[0] for flag in (finite, enabled)
            )
            tf.cond(finite, make, lambda: tf.cond(enabled, shrink, lambda: None))

    replica = tf.distribute.get_replica_context()
    replica.merge_call(decide, args=(finite, enabled, parts))
    return norm, finite


@contextlib.contextmanager
def _summed(optimizer: keras.optimizers.Optimizer) -> Iterator[None]:
    """Keep a Keras optimizer, while its update is traced, from adding up the replicas again."""
    own = optimizer._all_reduce_sum_gradients
    optimizer._all_reduce_sum_gradients = list
    try:
        yield
    finally:
        optimizer._all_reduce_sum_gradients = own


def _grow(optimizer: keras.optimizers.Optimizer) -> None:
    """After so many good steps in a row, twice the loss scale (Micikevicius et al. 2018)."""
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


def in_multi_worker_mode() -> bool:
    """Whether the strategy spans processes."""
    return tf.distribute.get_strategy().extended._in_multi_worker_mode()
