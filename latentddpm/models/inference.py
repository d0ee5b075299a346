"""A network as one compiled function, to be called many times with few shapes.

On TensorFlow `predict_on_batch` is that function inside another inside a distribution
strategy, looked through by AutoGraph; for one network call they do nothing, and tracing them is
a third of the time to the first prediction. Other backends compile in `predict_on_batch`.

A network made in the scope of a strategy with several replicas computes on all of them, each
its share of the batch: `replicas.shared_out`.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import keras

_functions: weakref.WeakKeyDictionary[keras.Model, Callable] = weakref.WeakKeyDictionary()


def compiled(network: keras.Model) -> Callable[[Any], Any]:
    """`network(inputs, training=False)`, traced at its first call and for each new shape.

    Returns:
        A function of what the network's call takes, the same one as long as the network lives;
        it sees the weights as they are when called.
    """
    if keras.backend.backend() != "tensorflow":
        return network.predict_on_batch
    if network not in _functions:
        _functions[network] = _compiled(network)
    return _functions[network]


def has_replicas(network: keras.Model) -> bool:
    """Whether it was made for several devices of this process."""
    if keras.backend.backend() != "tensorflow":
        return False
    from latentddpm.distribution.replicas import local_replicas

    return local_replicas(network.distribute_strategy) > 1


def _compiled(network: keras.Model) -> Callable[[Any], Any]:
    import tensorflow as tf

    from latentddpm.distribution.replicas import split_over_replicas

    strategy, jit_compile = network.distribute_strategy, network.jit_compile or None
    network = weakref.ref(network)  # else the function would keep it alive

    def predict(inputs: Any) -> Any:
        return network()(inputs, training=False)

    function = tf.function(
        split_over_replicas(predict, strategy),
        autograph=False,
        reduce_retracing=True,
        jit_compile=jit_compile,
    )

    def call(inputs: Any) -> Any:
        return function(keras.tree.map_structure(keras.ops.convert_to_tensor, inputs))

    return call
