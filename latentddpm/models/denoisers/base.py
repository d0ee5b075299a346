"""Denoiser: what all networks that denoise share, their inputs and the embedding of a timestep.

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

from latentddpm.models.denoisers.facts import DenoiserFacts
from latentddpm.models.functional import FunctionalModel
from latentddpm.models.layers import PACKAGE, Shape, dense

MAX_PERIOD = 10_000.0


class Denoiser(DenoiserFacts, FunctionalModel):
    """Denoiser: base class of the networks from noisy latents and timesteps to a prediction.

    Its properties are those arguments of a network that others ask for. See `denoiser_inputs` for
    its call arguments.
    """

    @property
    def downsample_factor(self) -> int:
        """Positions of the latents per position at the lowest resolution, along a side."""
        return 2 ** (len(self._arguments["channel_multipliers"]) - 1)


def denoiser_inputs(
    latent_channels: int, spatial_dims: int = 2, context_dim: int | None = None
) -> dict[str, Any]:
    """Inputs of a denoiser, as Keras tensors of any size.

    Args:
        latent_channels: c, of the noisy latents.
        spatial_dims: 1, 2 or 3.
        context_dim: d, width of the text encodings; None for none.

    Returns:
        `"noisy_latents"`, (B, …, c), `"timesteps"`, (B,), and, with `context_dim`, `"context"`,
        (B, L, d); all float32.

    Raises:
        ValueError: another `spatial_dims`.
    """
    if spatial_dims not in (1, 2, 3):
        raise ValueError(f"spatial_dims={spatial_dims}, expected 1, 2 or 3")
    shapes = {"noisy_latents": (*[None] * spatial_dims, latent_channels), "timesteps": ()}
    if context_dim is not None:
        shapes["context"] = (None, context_dim)
    return {name: keras.Input(shape, name=name, dtype="float32") for name, shape in shapes.items()}


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
