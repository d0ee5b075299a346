"""A trainer of a small network, and examples for it; what a step descends."""

import math

import keras
import numpy as np

from latentddpm.training.step.optimizer import FlatAdamW
from latentddpm.training.step.trainer import Trainer

ROUNDING = 1e-5


def small(dtype=None, optimizer=None, **compiled):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,))
    hidden = keras.layers.Dense(8, activation="tanh", dtype=dtype)(inputs)
    model = Trainer(keras.Model(inputs, keras.layers.Dense(2, dtype="float32")(hidden)))
    optimizer = optimizer or FlatAdamW(1e-2, global_clipnorm=1.0, use_ema=True, ema_momentum=0.5)
    model.compile(optimizer, loss="mse", **compiled)
    return model


def descended(optimizer):
    """The gradient of a `FlatAdamW`'s first step times (1 − β₁), clipped: one vector a variable.

    It is the mean over the global batch, as every replica is given it, and AdamW has not yet made
    whole steps out of its rounding.
    """
    (bucket,) = optimizer._buckets
    sizes = [math.prod(optimizer._trainable_variables[i].shape) for i in bucket.indices]
    momentum = keras.ops.convert_to_numpy(bucket.momentum)
    return np.split(momentum, np.cumsum(sizes)[:-1])


def apart(one, other):
    """The difference of two gradients, relative: of all variables, and the most of any.

    A variable of which there is only rounding (attention's key biases, for the softmax does not
    see a shift) is measured by the largest variable's gradient.
    """
    errors, norms = (
        np.array([np.linalg.norm(part) for part in parts])
        for parts in ([np.subtract(a, b) for a, b in zip(one, other, strict=True)], one)
    )
    scale = np.where(norms > ROUNDING * norms.max(), norms, norms.max())
    return float(np.linalg.norm(errors) / np.linalg.norm(norms)), float((errors / scale).max())


def data(number=6, seed=0):
    draw = np.random.default_rng(seed)
    return (
        draw.standard_normal((number, 4)).astype("float32"),
        draw.standard_normal((number, 2)).astype("float32"),
    )
