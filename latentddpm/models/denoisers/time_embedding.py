"""Time embedding: what a denoiser is told of the timestep.

    embedding  [cos(t·f), sin(t·f)],  f_i = 10000^(−i / (d/2)),  i = 0 .. d/2 − 1
               → Dense → activation → Dense

as in Vaswani et al. 2017 (§3.5) and Ho et al. 2020 (appendix B), with the cosines first. The code
of Ho et al. has the sines first, and d/2 − 1 in place of d/2.
"""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from latentddpm.models.layers import PACKAGE, Shape, dense

MAX_PERIOD = 10_000.0


@keras.saving.register_keras_serializable(package=PACKAGE)
class TimestepEmbedding(layers.Layer):
    """Timestep embedding: cosines, then sines, of the timestep times geometric frequencies.

    Args:
        dim: width of the embedding, an even number.
        original: as in the code of Ho et al.

    Call arguments:
        timesteps: (B,) → float32 (B, dim).

    Raises:
        ValueError: an odd `dim`.
    """

    def __init__(self, dim: int, original: bool = False, **kwargs: Any) -> None:
        kwargs["dtype"] = "float32"
        super().__init__(**kwargs)
        if dim % 2:
            raise ValueError(f"dim={dim} of a timestep embedding must be even")
        self.dim, self.original = dim, original
        exponents = -math.log(MAX_PERIOD) * np.arange(dim // 2) / (dim // 2 - original)
        self.frequencies = np.exp(exponents).astype(np.float32)

    def call(self, timesteps):
        angles = ops.cast(timesteps, "float32")[:, None] * self.frequencies[None, :]
        halves = [ops.cos(angles), ops.sin(angles)]
        return ops.concatenate(halves[::-1] if self.original else halves, axis=-1)

    def compute_output_shape(self, timesteps_shape: Shape) -> Shape:
        return (*timesteps_shape, self.dim)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "dim": self.dim, "original": self.original}


def embed_time(
    timesteps: Any, dim: int, width: int, activation: str, dtype: Any, original: bool = False
) -> Any:
    """Embedding of timesteps, followed by two dense layers.

    Args:
        timesteps: Keras tensor (B,).
        dim: of the cosines and sines, an even number.
        width: of the dense layers.
        activation: between them, such as "silu".
        dtype: dtype or dtype policy of the layers.
        original: see `TimestepEmbedding`.

    Returns:
        Keras tensor (B, width).
    """
    embedding = TimestepEmbedding(dim, original, name="timestep_embedding")(timesteps)
    for layer in (
        dense(width, dtype=dtype, name="time_0"),
        layers.Activation(activation, dtype=dtype, name="time_act"),
        dense(width, dtype=dtype, name="time_1"),
    ):
        embedding = layer(embedding)
    return embedding
