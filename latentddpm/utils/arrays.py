"""Arrays: the same arithmetic on NumPy arrays and on tensors of Keras's backend.

    NumPy arrays alone   NumPy computes; Keras is not imported
    a tensor among them  `keras.ops` computes, on its backend

The mathematics of diffusion is written once with these functions and with operators. A sampler
whose network is a graph of ONNX Runtime so needs no Keras, and one whose network is Keras's stays
on its device, inside a compiled function, too.

The functions have the names and arguments of `keras.ops`.

    >>> from latentddpm.utils import arrays
    >>> arrays.clip(np.array([-2.0, 0.5]), -1, 1)
    array([-1. ,  0.5])
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Array = Any
"""A NumPy array or number, or a tensor of Keras's backend."""

OF_PYTHON = (np.ndarray, np.generic, bool, int, float, type(None))


def is_tensor(value: Any) -> bool:
    """True for a tensor of a backend; False for numbers and arrays of Python and NumPy.

    Args:
        value: one of them, or a list or tuple of them, of which any may be a tensor.
    """
    if isinstance(value, list | tuple):
        return any(map(is_tensor, value))
    return not isinstance(value, OF_PYTHON)


def _either(name: str) -> Callable[..., Array]:
    """Function `name` of NumPy or of `keras.ops`, by its arguments."""

    def call(*arguments: Any, **settings: Any) -> Array:
        if not is_tensor(arguments):
            return getattr(np, name)(*arguments, **settings)
        from keras import ops

        return getattr(ops, name)(*arguments, **settings)

    call.__name__ = call.__qualname__ = name
    call.__doc__ = f"`{name}` of NumPy or of `keras.ops`."
    return call


broadcast_to = _either("broadcast_to")
clip = _either("clip")
concatenate = _either("concatenate")
exp = _either("exp")
floor = _either("floor")
maximum = _either("maximum")
minimum = _either("minimum")
split = _either("split")
sqrt = _either("sqrt")
std = _either("std")
sum = _either("sum")
take = _either("take")
where = _either("where")


def cast(values: Array, dtype: str) -> Array:
    """Values in another type.

    Args:
        values: NumPy's or a tensor.
        dtype: name of the type, such as "float32".
    """
    if not is_tensor(values):
        return np.asarray(values, dtype)
    from keras import ops

    return ops.cast(values, dtype)


def is_floating(values: Array) -> bool:
    """True for an array or tensor of floating point numbers, bfloat16 among them."""
    return "float" in str(getattr(values, "dtype", type(values).__name__))


def like(values: Array, other: Array, dtype: str = "float32") -> Array:
    """Values as an array of the kind of another: NumPy's, or a tensor.

    Args:
        values: of either kind.
        other: NumPy's or a tensor.
        dtype: of the result.
    """
    if not is_tensor(other) and not is_tensor(values):
        return np.asarray(values, dtype)
    from keras import ops

    values = ops.cast(values, dtype)
    return values if is_tensor(other) else ops.convert_to_numpy(values)


def one_for_each(batch: Array, value: float, dtype: str) -> Array:
    """Vector (B,) of one value, of the kind of a batch.

    Args:
        batch: (B, …), NumPy's or a tensor, of which B may be unknown in a graph.
        value: of each element.
        dtype: of the result.
    """
    if not is_tensor(batch):
        return np.full(batch.shape[:1], value, dtype)
    from keras import ops

    return ops.full(ops.shape(batch)[:1], value, dtype=dtype)
