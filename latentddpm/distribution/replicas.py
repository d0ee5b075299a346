"""Sums over micro-batches and over the replicas of a `tf.distribute` strategy; TensorFlow.

With the losses ℓᵢ of the examples i = 1 .. B of the global batch,

    L = (1/B) Σᵢ ℓᵢ          ∇L = (1/B) Σ_replicas Σ_micro-batches Σᵢ ∇ℓᵢ

Each replica holds plain sums. They are divided once, by B, which is counted over all replicas. So
any split of a batch gives the numbers of one device, also one where a replica has no example.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

Slice = Callable[[Any, tf.Tensor], Any]  # (examples, their number) → a structure of tensors


def num_replicas() -> int:
    """Number of replicas of the current strategy."""
    return tf.distribute.get_strategy().num_replicas_in_sync


def local_replicas(strategy: tf.distribute.Strategy) -> int:
    """Number of the replicas of a strategy that belong to this process."""
    if strategy.num_replicas_in_sync == 1:  # TensorFlow's default strategy lists no devices
        return 1
    return len(strategy.extended.worker_devices)


def split_over_replicas(
    function: Callable[[Any], tf.Tensor], strategy: tf.distribute.Strategy
) -> Callable[[Any], tf.Tensor]:
    """Parallel `function`: each replica of this process computes a part of the batch.

    Args:
        function: a structure of tensors (B, …) → a tensor (B, …). With fewer examples than
            replicas some are called with a blank example, whose result is dropped.
        strategy: with the replicas.

    Returns:
        A function with the arguments and the result of `function`.
    """
    count = local_replicas(strategy)
    if count == 1:
        return function

    def share(inputs: Any) -> tf.Tensor:
        # The replicas of a process have consecutive numbers.
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
    """Sum of `function(slice, number)` over `count` slices of this replica's examples.

    Args:
        function: slice, number → a structure of tensors. `number`, float32, counts the examples
            of the slice. An empty slice holds one blank example and has number 0, because
            convolutions and means need at least one.
        data: a structure of tensors (B, …).
        count: number of slices, of about equal size; one at a time is in memory.
        unroll: write a graph without a loop, as XLA needs for fixed shapes.

    Returns:
        The structure of `function`, summed.
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
    """Examples, `number` of them; if that is 0, one example of zeros."""
    missing = tf.maximum(1 - number, 0)
    return tf.pad(tensor, [[0, missing], *[[0, 0]] * (tensor.shape.rank - 1)])


def all_reduce(tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """Sum of each of `tensors` over all replicas; every replica has to call this."""
    if num_replicas() == 1:
        return list(tensors)
    replica = tf.distribute.get_replica_context()
    return list(replica.all_reduce(tf.distribute.ReduceOp.SUM, list(tensors)))


def in_multi_worker_mode(strategy: tf.distribute.Strategy | None = None) -> bool:
    """True where `strategy`, by default the current one, spans several processes."""
    strategy = strategy or tf.distribute.get_strategy()
    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
