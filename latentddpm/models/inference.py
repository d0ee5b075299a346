"""Inference: a network as a compiled function, for many calls with few shapes.

On TensorFlow Keras's `predict_on_batch` wraps the network into two functions and a strategy, and
AutoGraph reads all of them. A call of a network needs none of that, and tracing it takes a third
of the time to the first prediction. Other backends use `predict_on_batch`.

A network made in the scope of a strategy with several replicas computes on all of them, on each
a share of the batch: see `distribution.replicas.split_over_replicas`.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from latentddpm.models.graph_networks import GraphNetwork

if TYPE_CHECKING:
    import keras

_functions: weakref.WeakKeyDictionary[keras.Model, Callable] = weakref.WeakKeyDictionary()


def compiled(network: keras.Model | GraphNetwork) -> Callable[[Any], Any]:
    """Compiled function for `network(inputs, training=False)`.

    It is traced at its first call and for each new shape, and uses the weights of the time of the
    call. As long as the network exists it has a single such function.

    Args:
        network: any Keras model; a graph, which is compiled already, is returned as it is.

    Returns:
        inputs → outputs of the network.
    """
    if isinstance(network, GraphNetwork):
        return network
    import keras

    if keras.backend.backend() != "tensorflow":
        return network.predict_on_batch
    if network not in _functions:
        _functions[network] = _compiled(network)
    return _functions[network]


def has_replicas(network: keras.Model | GraphNetwork) -> bool:
    """True for a network that was made for several devices of this process."""
    if isinstance(network, GraphNetwork):
        return False
    import keras

    if keras.backend.backend() != "tensorflow":
        return False
    from latentddpm.distribution.replicas import local_replicas

    return local_replicas(network.distribute_strategy) > 1


def _compiled(network: keras.Model) -> Callable[[Any], Any]:
    import keras
    import tensorflow as tf

    from latentddpm.distribution.replicas import split_over_replicas

    strategy, jit_compile = network.distribute_strategy, network.jit_compile or None
    network = weakref.ref(network)  # the function must not keep it alive

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
