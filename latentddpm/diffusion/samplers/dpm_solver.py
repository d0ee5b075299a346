"""DPM-Solver++ 2M: a second-order multistep sampler with one call of the network per step.

In λ = log(√ᾱ / √(1 − ᾱ)) = −log σ the differential equation of sampling is linear, except for x0,
and its linear part is solved exactly. With h = λ' − λ = log(σ / σ') (Lu 2022, algorithm 2):

    x' = √(1−ᾱ') / √(1−ᾱ) · x − √ᾱ' (e^{−h} − 1) · D
    D  = x0                                            first order: this is DDIM
    D  = x0 + (x0 − x0_last) · h / (2 h_last)          second order, multistep ("2M")

where x0_last and h_last belong to the step before. The first step has none before it, and the last
one goes to σ' = 0, h = ∞, so both are of first order. (diffusers: algorithm "dpmsolver++", solver
"midpoint", order 2, `final_sigmas_type="zero"`.)
"""

from __future__ import annotations

import math
from typing import Any

from latentddpm.diffusion.samplers.base import Array, Denoise, Noise
from latentddpm.diffusion.samplers.sigma import SigmaSampler


class DPMSolverMultistepSampler(SigmaSampler):
    """DPM-Solver++ 2M sampler (Lu 2022): second order, deterministic, good from about ten steps.

    With "leading" and "linspace" spacing it visits n + 1 timesteps without the lowest. With Karras
    sigmas the network is given the nearest whole timestep; with many steps timesteps repeat.

    Args:
        schedule, num_steps, timestep_spacing, steps_offset, sigma_spacing: see `SigmaSampler`.

    Raises:
        UserError: see `SigmaSampler`.

    Example:
        >>> sampler = latentddpm.samplers.DPMSolverMultistepSampler(
        ...     latentddpm.NoiseSchedule(), num_steps=10, sigma_spacing="karras"
        ... )
        >>> sampler.timesteps
        array([999, 916, 815, 687, 523, 327, 146,  41,   7,   0])
        >>> denoiser = lambda noisy_latents, timesteps: noisy_latents
        >>> sampler.sample(denoiser, np.ones((1, 8, 8, 4))).shape
        TensorShape([1, 8, 8, 4])
    """

    skip_lowest = True

    def step(
        self, step_index: int, latents: Array, denoise: Denoise, noise: Noise, history: Any
    ) -> tuple[Array, Array, Any]:
        """Step of DPM-Solver++ 2M (Lu 2022, algorithm 2)."""
        x0, _ = denoise(latents, step_index)
        return self._advance(step_index, latents, x0, history), x0, x0

    def _advance(self, step_index: int, latents: Array, x0: Array, last_x0: Array | None) -> Array:
        """Latents at the next level; `last_x0` is the estimate of the step before."""
        direction = x0
        if last_x0 is not None and step_index + 1 < self.num_steps:
            weight = self._log_step(step_index) / (2 * self._log_step(step_index - 1))
            direction = (1 + weight) * x0 - weight * last_x0
        return self.along_x0(step_index, latents, direction)

    def _log_step(self, step_index: int) -> float:
        """Length h = λ' − λ of a step, > 0; not for the last step, where it is infinite."""
        return math.log(self.sigma(step_index) / self.sigma(step_index + 1))
