"""Denoiser: what all networks that denoise share, their inputs and their facts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from latentddpm.models.denoisers.facts import DenoiserFacts
from latentddpm.models.denoisers.told import Spec, condition_inputs
from latentddpm.models.functional import FunctionalModel


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
    latent_channels: int,
    spatial_dims: int = 2,
    context_dim: int | None = None,
    conditions: Sequence[Spec] = (),
    regions: int = 0,
) -> dict[str, Any]:
    """Inputs of a denoiser, as Keras tensors of any size.

    Args:
        latent_channels: c, of the noisy latents.
        spatial_dims: 1, 2 or 3.
        context_dim: d, width of the text encodings; None for none.
        conditions: see `told.condition_inputs`.
        regions: R, parts of the latents that are told different texts; 0 for one text everywhere.

    Returns:
        `"noisy_latents"`, (B, …, c), `"timesteps"`, (B,), with `context_dim` `"context"`,
        (B, L, d), and the conditions by their names; with regions `"context"`, (B, R, L, d), and
        `"region_weights"`, (B, …, R). All float32.

    Raises:
        ValueError: another `spatial_dims`, regions without text, or a condition that has no such
            form or name.
    """
    if spatial_dims not in (1, 2, 3):
        raise ValueError(f"spatial_dims={spatial_dims}, expected 1, 2 or 3")
    if regions and context_dim is None:
        raise ValueError(f"regions={regions}: need a context_dim, since they are told texts")
    free = [None] * spatial_dims
    shapes = {"noisy_latents": (*free, latent_channels), "timesteps": ()}
    if context_dim is not None:
        shapes["context"] = (*[regions] * bool(regions), None, context_dim)
    if regions:
        shapes["region_weights"] = (*free, regions)
    inputs = {
        name: keras.Input(shape, name=name, dtype="float32") for name, shape in shapes.items()
    }
    more = condition_inputs(conditions, spatial_dims)
    if taken := more.keys() & {*inputs, "context", "token_ids", "guidance_scale", "prediction"}:
        raise ValueError(f"condition {min(taken)!r}: the name of another input")
    return inputs | more
