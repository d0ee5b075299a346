"""Guidance: a denoiser made of a denoiser.

Classifier-free guidance (Ho & Salimans 2022, eq. 6) moves the prediction away from what the
network says without the prompt, by the guidance scale s = 1 + w of the paper's w:

    ε̃ = ε(x_t, ∅) + s · (ε(x_t, c) − ε(x_t, ∅))

s = 0 leaves the prompt out, s = 1 is the conditional prediction itself, s > 1 follows the
prompt more closely and varies less. The formula is linear, so it is the same for predictions
of ε, of v and of x0 at a given x_t.

A large s also makes the prediction larger than any the network was trained for, most visibly
with zero terminal SNR: images come out over-exposed. Rescaling gives it back the standard
deviation of the conditional prediction, over each example, by a share φ (Lin 2023, §3.4,
eq. 15, 16):

    ε̃ ← φ · (std(ε(x_t, c)) / std(ε̃)) · ε̃ + (1 − φ) · ε̃
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from latentddpm.diffusion.options import check_guidance_rescale, check_guidance_scale
from latentddpm.errors import UserError

Array = Any


class ClassifierFreeGuidance:
    """A `denoiser(noisy_latents, timesteps)` for samplers, guided by a context.

    The conditional and the unconditional prediction are one call of the network with a batch
    of 2B; with a guidance scale of 1 it is one call with B, at no extra cost.

    Args:
        denoiser: `denoiser(noisy_latents, timesteps, context) -> prediction`.
        context: the prompts' text states, (B, length, d).
        null_context: those of the empty or negative prompt, (B, length, d), or (1, length, d)
            for the whole batch.
        guidance_scale: s, at least 0; 1 = no guidance.
        guidance_rescale: φ, 0 (none) .. 1; Lin 2023 recommends 0.7.

    Call arguments:
        noisy_latents: (B, h, w, c).
        timesteps: int32 or float32 (B,).

    Returns (of a call):
        The guided prediction, float32 (B, h, w, c).

    Raises:
        UserError: shapes that do not go together, a negative or non-finite scale, or a
            rescale outside 0 .. 1.
    """

    def __init__(
        self,
        denoiser: Callable[[Array, Array, Array], Array],
        context: Array,
        null_context: Array,
        guidance_scale: float,
        guidance_rescale: float = 0.0,
    ) -> None:
        check_guidance_scale(guidance_scale)
        check_guidance_rescale(guidance_rescale)
        shape, null_shape = tuple(context.shape), tuple(null_context.shape)
        if null_shape not in (shape, (1, *shape[1:])):
            raise UserError(
                f"null_context: expected the shape of context, {shape}, or {(1, *shape[1:])}, "
                f"got {null_shape}"
            )
        self.denoiser = denoiser
        self.guidance_scale = float(guidance_scale)
        self.guidance_rescale = float(guidance_rescale)
        self.batch_size = shape[0]
        self.context = context
        if self.guidance_scale != 1:
            null_context = keras.ops.broadcast_to(null_context, shape)
            self.context = keras.ops.concatenate([null_context, context])  # (2B, length, d)

    def __call__(self, noisy_latents: Array, timesteps: Array) -> Array:
        if noisy_latents.shape[0] != self.batch_size:
            raise UserError(
                f"noisy_latents: expected the batch size of context, {self.batch_size}, "
                f"got {noisy_latents.shape[0]}"
            )
        if self.guidance_scale == 1:
            prediction = self.denoiser(noisy_latents, timesteps, self.context)
            return keras.ops.cast(prediction, "float32")
        prediction = self.denoiser(
            keras.ops.concatenate([noisy_latents, noisy_latents]),  # (2B, h, w, c)
            keras.ops.concatenate([timesteps, timesteps]),  # (2B,)
            self.context,
        )
        unconditional, conditional = keras.ops.split(keras.ops.cast(prediction, "float32"), 2)
        guided = unconditional + self.guidance_scale * (conditional - unconditional)
        if self.guidance_rescale == 0:
            return guided
        return _rescale(guided, conditional, self.guidance_rescale)


def _rescale(guided: Array, conditional: Array, share: float) -> Array:
    """`guided` with `share` of its deviation made that of `conditional` (Lin 2023, eq. 15, 16)."""
    axes = tuple(range(1, len(guided.shape)))
    wanted = keras.ops.std(conditional, axis=axes, keepdims=True)
    found = keras.ops.std(guided, axis=axes, keepdims=True)
    # A prediction without any deviation (an untrained network's zeros) stays as it is.
    ratio = keras.ops.where(found > 0, wanted / keras.ops.where(found > 0, found, 1.0), 1.0)
    return (share * ratio + (1 - share)) * guided
