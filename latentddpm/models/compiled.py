"""A network as one compiled function, to be called many times with few shapes.

On TensorFlow `predict_on_batch` is that function inside another inside a distribution
strategy, looked through by AutoGraph; for one network call they do nothing, and tracing them is
a third of the time to the first prediction. Other backends compile in `predict_on_batch`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras


def compiled(network: keras.Model) -> Callable[[Mapping[str, Any]], Any]:
    """`network(inputs, training=False)`, traced at its first call and for each new shape.

    Args:
        network: a model whose call takes a dictionary of arrays.

    Returns:
        A function of that dictionary; it sees the network's weights as they are when called.
    """
    if keras.backend.backend() != "tensorflow":
        return network.predict_on_batch
    import tensorflow as tf

    function = tf.function(
        lambda inputs: network(inputs, training=False),
        autograph=False,
        reduce_retracing=True,
        jit_compile=network.jit_compile or None,
    )

    def call(inputs: Mapping[str, Any]) -> Any:
        return function({name: keras.ops.convert_to_tensor(v) for name, v in inputs.items()})

    return call
