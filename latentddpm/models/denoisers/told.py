"""Conditions of a denoiser: inputs beside the noisy latents, and where they enter the network.

    vectors   h = time embedding + Σ embed(vector)          (Dhariwal & Nichol 2021, §6)
    maps      conv_in([noisy latents, map, map, …])         (Saharia 2022, Rombach 2022 §3.3)

A vector is embedded in one of four ways, those of diffusers' `class_embed_type`:

    rows        table · vector: of a one-hot vector a row, of several ones their sum    (None)
    projection  dense(silu(dense(vector)))                                          (projection)
    timestep    the same of the cosines and sines of one number                       (timestep)
    identity    the vector itself, as wide as the time embedding                      (identity)

What the vectors and maps mean is said by the room `conditions`; a network has names and sizes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import layers

from latentddpm.models.denoisers.time_embedding import TimestepEmbedding
from latentddpm.models.layers import dense

CONCAT = "concat"
VECTORS = ("rows", "projection", "timestep", "identity")
ENTERS = (*VECTORS, CONCAT)
"""Ways in which a condition enters a network."""

Spec = Mapping[str, Any]
"""Condition of a network: its `name`, the way it `enters`, one of `ENTERS`, and its `size`."""


def condition_inputs(conditions: Sequence[Spec], spatial_dims: int = 2) -> dict[str, Any]:
    """Inputs of conditions, as Keras tensors.

    Args:
        conditions: of the network.
        spatial_dims: of the latents.

    Returns:
        Name → float32 (B, size) for a vector, (B, …, size) for a map as large as the latents.

    Raises:
        ValueError: a condition of another form, or two of one name.
    """
    shapes = {}
    for one in conditions:
        if set(one) != {"name", "enters", "size"} or one["enters"] not in ENTERS:
            raise ValueError(
                f"condition {one!r}: expected name, size, enters: {', '.join(ENTERS)}"
            )
        if one["name"] in shapes:
            raise ValueError(f"conditions: two are called {one['name']!r}")
        free = [None] * spatial_dims if one["enters"] == CONCAT else []
        shapes[one["name"]] = (*free, one["size"])
    return {name: keras.Input(shape, name=name, dtype="float32") for name, shape in shapes.items()}


def embed_conditions(
    inputs: Mapping[str, Any],
    conditions: Sequence[Spec],
    time_embedding: Any,
    channels: int,
    activation: str,
    dtype: Any,
) -> Any:
    """Time embedding with those of the vectors added.

    Args:
        inputs: returned by `condition_inputs`.
        conditions: of the network.
        time_embedding: Keras tensor (B, width).
        channels: of the cosines and sines of "timestep".
        activation: between two dense layers.
        dtype: dtype or dtype policy of the layers.

    Raises:
        ValueError: a vector of another width than its way in takes.
    """
    width = time_embedding.shape[-1]
    for one in conditions:
        name, enters, size = one["name"], one["enters"], one["size"]
        expected = {"identity": width, "timestep": 1}.get(enters, size)
        if size != expected:
            raise ValueError(f"condition {name!r}: size {size}, but {enters} takes {expected}")
        if enters == CONCAT:
            continue
        vector = inputs[name]
        if enters == "rows":
            vector = dense(width, use_bias=False, dtype=dtype, name=f"{name}_rows")(vector)
        elif enters in ("projection", "timestep"):
            if enters == "timestep":
                number = layers.Reshape((), dtype="float32", name=f"{name}_number")(vector)
                vector = TimestepEmbedding(channels, name=f"{name}_embedding")(number)
            for layer in (
                dense(width, dtype=dtype, name=f"{name}_0"),
                layers.Activation(activation, dtype=dtype, name=f"{name}_act"),
                dense(width, dtype=dtype, name=f"{name}_1"),
            ):
                vector = layer(vector)
        add = layers.Add(dtype=dtype, name=f"{name}_add")
        time_embedding = add([time_embedding, vector])
    return time_embedding


def with_maps(
    noisy_latents: Any, inputs: Mapping[str, Any], conditions: Sequence[Spec], dtype: Any
) -> Any:
    """Noisy latents with the maps behind their channels, in order; themselves without maps.

    Args:
        noisy_latents: Keras tensor (B, …, c).
        inputs: returned by `condition_inputs`.
        conditions: of the network.
        dtype: dtype or dtype policy of the layer.
    """
    maps = [inputs[one["name"]] for one in conditions if one["enters"] == CONCAT]
    if not maps:
        return noisy_latents
    return layers.Concatenate(dtype=dtype, name="with_maps")([noisy_latents, *maps])
