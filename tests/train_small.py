"""A small model with the package's training step, and examples for it."""

import keras
import numpy as np

from latentddpm.models.train_step import TrainStep
from latentddpm.training.optimizer import FlatAdamW


class Small(TrainStep, keras.Model):
    """Two layers."""


def small(dtype=None, optimizer=None, **compiled):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,))
    hidden = keras.layers.Dense(8, activation="tanh", dtype=dtype)(inputs)
    model = Small(inputs, keras.layers.Dense(2, dtype="float32")(hidden))
    optimizer = optimizer or FlatAdamW(1e-2, global_clipnorm=1.0, use_ema=True, ema_momentum=0.5)
    model.compile(optimizer, loss="mse", **compiled)
    return model


def data(number=6, seed=0):
    draw = np.random.default_rng(seed)
    return (
        draw.standard_normal((number, 4)).astype("float32"),
        draw.standard_normal((number, 2)).astype("float32"),
    )
