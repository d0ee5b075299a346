"""Sums over micro-batches and over the replicas of a `tf.distribute` strategy; TensorFlow.

With the losses ℓᵢ of the global batch, i = 1 … B, wherever its examples lie,

    L = (1/B) Σᵢ ℓᵢ          ∇L = (1/B) Σ_replicas Σ_micro-batches Σᵢ ∇ℓᵢ

so what a replica holds are plain sums, and the one division is by a B that was counted over
all replicas. Shares of any sizes, none at all included, give the numbers of one device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

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


def in_multi_worker_mode(strategy: tf.distribute.Strategy | None = None) -> bool:
    """Whether a strategy, by default the one in whose scope this is called, spans processes."""
    strategy = strategy or tf.distribute.get_strategy()
    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
