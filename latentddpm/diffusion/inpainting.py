"""Inpainting: a sampler that wraps a sampler, and keeps the known part of a picture.

In each step a sampler splits the network's prediction at x = √ᾱ · x0 + √(1 − ᾱ) · ε into an
estimate of x0 and the ε that belongs to it. In the part that is kept, x0 is known, whatever the
network predicts, and ε follows from x:

    x0 ← w · x0 + (1 − w) · known                          w = 1 repaint, w = 0 keep
    ε  ← w · ε  + (1 − w) · (x − √ᾱ · known) / √(1 − ᾱ)      Ho 2020, eq. 4, solved for ε

For given x each of the two is an affine function of the other, so the new pair belongs together
for every w in [0, 1]. Every sampler then moves the kept latents along their own path of noising
and ends at them, because its last step goes to x0. The network sees the kept part at the right
noise level in every step and paints the rest to fit. It need not be trained for inpainting.

The wrapper is around the sampler and not around the denoiser, because the sampler knows ᾱ, which
may lie between two timesteps (Karras), and has already taken the prediction type into account.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from latentddpm.diffusion.samplers.base import Array, Denoise, Noise, Sampler
from latentddpm.errors import UserError
from latentddpm.utils import arrays


class Inpainting(Sampler):
    """Inpainting sampler: repaints a part of a picture with the steps of another sampler.

    Args:
        sampler: any sampler.
        known_latents: x0 of the picture, (h, w, c) or (B, h, w, c).
        repaint: w, from 0 (keep) to 1 (repaint); broadcasts to the latents, such as (h, w, 1).

    Raises:
        UserError: `sample` is called with latents of another size than `known_latents`.
    """

    def __init__(self, sampler: Sampler, known_latents: Array, repaint: Array) -> None:
        self.sampler = sampler
        self.schedule = sampler.schedule
        self.num_steps = sampler.num_steps
        self.timestep_spacing = sampler.timestep_spacing
        self.timesteps = sampler.timesteps
        self.left_out = sampler.left_out
        self.alphas_cumprod = sampler.alphas_cumprod
        self.clip_sample = sampler.clip_sample
        self.learned_variance = sampler.learned_variance
        self.known_latents = known_latents
        self.repaint = repaint

    @property
    def stochastic(self) -> bool:
        return self.sampler.stochastic

    def step(
        self, step_index: int, latents: Array, denoise: Denoise, noise: Noise, history: Any
    ) -> tuple[Array, Array, Any]:
        """Step of the wrapped sampler, with x0 and ε of the kept part replaced."""
        if tuple(latents.shape[-3:]) != tuple(self.known_latents.shape[-3:]):
            raise UserError(
                f"known_latents: expected {tuple(latents.shape[-3:])} as the latents, "
                f"got {tuple(self.known_latents.shape[-3:])}"
            )

        known = arrays.like(self.known_latents, latents)
        repaint = arrays.like(self.repaint, latents)

        def mix(painted: Array, kept: Array) -> Array:
            return repaint * painted + (1 - repaint) * kept

        def denoise_partly(latents: Array, step_index: int) -> tuple[Array, ...]:
            x0, epsilon, *variance = denoise(latents, step_index)
            signal_rate, noise_rate = self.rates(step_index)
            implied = (latents - signal_rate * known) / noise_rate
            return mix(x0, known), mix(epsilon, implied), *variance

        latents, x0, history = self.sampler.step(
            step_index, latents, denoise_partly, noise, history
        )
        if step_index + 1 == self.num_steps:  # without rounding errors
            latents = arrays.where(repaint > 0, latents, known)
        return latents, x0, history


def repaint_weights(mask: np.ndarray, downsample_factor: int) -> np.ndarray:
    """Weights of latents from a mask of pixels: the mean over the pixels of each latent.

    Args:
        mask: (H, W), from 0 (keep) to 1 (repaint); both sides are multiples of the factor.
        downsample_factor: pixels per latent along a side.

    Returns:
        w, float32 (h, w, 1).
    """
    height, width = (side // downsample_factor for side in mask.shape)
    cells = mask.reshape(height, downsample_factor, width, downsample_factor)
    return cells.mean(axis=(1, 3), dtype="float32")[..., None]
