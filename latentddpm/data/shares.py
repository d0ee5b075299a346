"""Shares of the examples of a step: those of each of the processes that train together."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from latentddpm.distribution.processes import ONE_PROCESS, ProcessGroup


def share(
    first: int, last: int, batch_size: int, processes: ProcessGroup = ONE_PROCESS
) -> tuple[tf.data.Dataset, int]:
    """Share of this process in the positions `first` … `last` − 1, and in the batch size.

    In every step the shares of all processes together are the batch of a single process.

    Args:
        first, last: positions; `last` is not included.
        batch_size: examples of a batch, over all processes.
        processes: of the job.

    Returns:
        Positions of this process, int64, and the number of them in a batch.
    """
    if processes.count == 1:
        return tf.data.Dataset.range(first, last), batch_size
    own = processes.share(batch_size)
    size = max(len(own), 1)
    steps, rest = divmod(last - first, batch_size)

    def place(number: tf.Tensor) -> tf.Tensor:
        return first + number // size * batch_size + own.start + number % size

    tail = processes.share(rest)
    begin = first + steps * batch_size
    positions = tf.data.Dataset.range(steps * len(own)).map(place)
    positions = positions.concatenate(tf.data.Dataset.range(begin + tail.start, begin + tail.stop))
    return positions, size


def shared(
    places: range,
    batch_size: int,
    processes: ProcessGroup,
    batches: Callable[[tf.data.Dataset, int], tf.data.Dataset],
) -> tf.data.Dataset:
    """Batches of this process, as many as every other process has.

    A batch of which this process has no example is an empty one, because all processes take their
    steps together.

    Args:
        places: positions of the examples of all processes.
        batch_size: examples of a batch, over all processes.
        processes: of the job.
        batches: (positions, batch size) → batches.
    """
    own = batches(*share(places.start, places.stop, batch_size, processes))
    steps, rest = divmod(len(places), batch_size)
    missing = (not processes.share(batch_size)) * steps + bool(rest and not processes.share(rest))
    if not missing:
        return own
    blank = tf.nest.map_structure(
        lambda spec: tf.zeros((0, *spec.shape[1:]), spec.dtype), own.element_spec
    )
    return own.concatenate(tf.data.Dataset.from_tensors(blank).repeat(missing))
