"""UniPC: DPM-Solver++ 2M with a correction of each step by the next call of the network.

A step begins with the network's x0 at the latents x that the step before predicted. First it
corrects that x with this x0, which needs no further call of the network (Zhao 2023, §3, in the
data prediction form, B(h) = e^h − 1, "bh2", order 2). With the latents x_1 of the level before,
the estimates x0_1 of that level and x0_2 of the one before it, h = log(σ_1 / σ),
h_1 = log(σ_2 / σ_1), B = e^{−h} − 1 and r = −h_1 / h:

    x = √(1−ᾱ)/√(1−ᾱ_1) · x_1 − √ᾱ B · (x0_1 + ρ_1 (x0_2 − x0_1) / r + ρ_2 (x0 − x0_1))

ρ_1 = 0, ρ_2 = 1/2 where there is no x0_2; otherwise they solve  ρ_1 + ρ_2 = b_1,
r ρ_1 + ρ_2 = b_2  with  b_1 = φ / B,  b_2 = 2 (−φ / h − 1/2) / B,  φ = −B / h − 1.

Then it predicts the next latents with UniP of order 2, which for this B(h) and ρ = 1/2 is the step
of DPM-Solver++ 2M. (diffusers: `solver_type="bh2"`, order 2, `predict_x0`,
`final_sigmas_type="zero"`.)
"""

from __future__ import annotations

import math
from typing import Any

from latentddpm.diffusion.samplers.base import Array, Denoise, Noise
from latentddpm.diffusion.samplers.dpm_solver import DPMSolverMultistepSampler


class UniPCSampler(DPMSolverMultistepSampler):
    """UniPC sampler of order 2 (Zhao 2023): deterministic, good at five to ten steps.

    It visits the timesteps of `DPMSolverMultistepSampler`.

    Args:
        schedule, num_steps, timestep_spacing, steps_offset, sigma_spacing, shift: see
            `SigmaSampler`.

    Raises:
        UserError: see `SigmaSampler`.

    Example:
        >>> sampler = latentddpm.samplers.UniPCSampler(latentddpm.NoiseSchedule(), 5, "trailing")
        >>> sampler.timesteps
        array([999, 799, 599, 399, 199])
        >>> denoiser = lambda noisy_latents, timesteps: noisy_latents
        >>> sampler.sample(denoiser, np.ones((1, 8, 8, 4))).shape
        (1, 8, 8, 4)
    """

    def step(
        self, step_index: int, latents: Array, denoise: Denoise, noise: Noise, history: Any
    ) -> tuple[Array, Array, Any]:
        """Step of UniPC: correct this level (UniC), then predict the next (Zhao 2023, §3)."""
        x0, _ = denoise(latents, step_index)
        last_x0 = None
        if history is not None:
            last_latents, last_x0, older_x0 = history
            latents = self._correct(step_index, last_latents, x0, last_x0, older_x0)
        return self._advance(step_index, latents, x0, last_x0), x0, (latents, x0, last_x0)

    def _correct(
        self, step_index: int, last_latents: Array, x0: Array, last_x0: Array, older_x0: Any
    ) -> Array:
        """Latents at this level, corrected with the network's x0 there."""
        _, last_noise_rate = self.rates(step_index - 1)
        signal_rate, noise_rate = self.rates(step_index)
        h = self._log_step(step_index - 1)
        b = math.expm1(-h)
        if older_x0 is None:
            direction = (last_x0 + x0) / 2
        else:
            r = -self._log_step(step_index - 2) / h
            phi = -b / h - 1
            b1, b2 = phi / b, 2 * (-phi / h - 0.5) / b
            rho1 = (b1 - b2) / (1 - r)
            rho2 = b1 - rho1
            direction = (1 - rho1 / r - rho2) * last_x0 + (rho1 / r) * older_x0 + rho2 * x0
        return noise_rate / last_noise_rate * last_latents - signal_rate * b * direction
