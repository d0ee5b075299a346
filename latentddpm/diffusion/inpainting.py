"""Inpainting: a sampler made of a sampler that knows part of the answer.

In each step a sampler splits the network's prediction at x = √ᾱ · x0 + √(1 − ᾱ) · ε into an
estimate of x0 and the ε that belongs to it. Where a picture is kept, x0 is no unknown: it is
`known_latents` whatever the network says, and ε follows from x:

    x0 ← w · x0 + (1 − w) · known                          w = 1 repaint, w = 0 keep
    ε  ← w · ε  + (1 − w) · (x − √ᾱ · known) / √(1 − ᾱ)      Ho 2020, eq. 4, solved for ε

For given x the two are affine in each other, so that the new pair belongs together for every w
between. Every method then moves the kept latents along their own noising path and ends at
them, since its last step goes to x0. The network sees the kept part at the right noise level
in every step and paints the rest to fit: it need not have been trained for that.

This wraps the sampler and not the denoiser, because ᾱ is the sampler's: it may lie between two
timesteps (Karras), and the prediction's type no longer matters here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import ops

from latentddpm.diffusion.samplers.base import Array, Denoise, Noise, Sampler
from latentddpm.errors import UserError


class Inpainting(Sampler):
    """A sampler that repaints a part; its steps, levels and noise are those of `sampler`.

    Args:
        sampler: any other.
        known_latents: x0 of the picture, (h, w, c) or (B, h, w, c).
        repaint: w, 0 (keep) .. 1 (repaint); broadcasts to the latents, such as (h, w, 1).

    Raises:
        UserError: when `sample` is called with latents of another size than the known ones.
    """

    def __init__(self, sampler: Sampler, known_latents: Array, repaint: Array) -> None:
        self.sampler = sampler
        self.schedule = sampler.schedule
        self.num_steps = sampler.num_steps
        self.timestep_spacing = sampler.timestep_spacing
        self.timesteps = sampler.timesteps
        self.alphas_cumprod = sampler.alphas_cumprod
        self.known_latents = ops.cast(known_latents, "float32")
        self.repaint = ops.cast(repaint, "float32")

    @property
    def stochastic(self) -> bool:
        return self.sampler.stochastic

    def step(
        self, step_index: int, latents: Array, denoise: Denoise, noise: Noise, history: Any
    ) -> tuple[Array, Array, Any]:
        """The sampler's own, with x0 and ε as above."""
        if tuple(latents.shape[-3:]) != tuple(self.known_latents.shape[-3:]):
            raise UserError(
                f"known_latents: expected {tuple(latents.shape[-3:])} as the latents, "
                f"got {tuple(self.known_latents.shape[-3:])}"
            )

        def denoise_partly(latents: Array, step_index: int) -> tuple[Array, Array]:
            x0, epsilon = denoise(latents, step_index)
            signal_rate, noise_rate = self.rates(step_index)
            implied = (latents - signal_rate * self.known_latents) / noise_rate
            return self._mix(x0, self.known_latents), self._mix(epsilon, implied)

        latents, x0, history = self.sampler.step(
            step_index, latents, denoise_partly, noise, history
        )
        if step_index + 1 == self.num_steps:  # without what rounding did on the way
            latents = ops.where(self.repaint > 0, latents, self.known_latents)
        return latents, x0, history

    def _mix(self, painted: Array, kept: Array) -> Array:
        return self.repaint * painted + (1 - self.repaint) * kept


def repaint_weights(mask: np.ndarray, downsample_factor: int) -> np.ndarray:
    """A mask of pixels as weights of latents: the mean over the pixels of each latent.

    Args:
        mask: (H, W), 0 (keep) .. 1 (repaint); both sides multiples of the factor.

    Returns:
        float32 (h, w, 1).
    """
    height, width = (side // downsample_factor for side in mask.shape)
    cells = mask.reshape(height, downsample_factor, width, downsample_factor)
    return cells.mean(axis=(1, 3), dtype="float32")[..., None]
