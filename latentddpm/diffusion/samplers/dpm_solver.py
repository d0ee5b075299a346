"""DPM-Solver++ 2M: second-order multistep samplers with one call of the network per step.

In λ = log(√ᾱ / √(1 − ᾱ)) = −log σ the differential equation of sampling is linear, except for x0,
and its linear part is solved exactly. With h = λ' − λ = log(σ / σ') (Lu 2022, algorithm 2):

    x' = √(1−ᾱ') / √(1−ᾱ) · x − √ᾱ' (e^{−h} − 1) · D
    D  = x0                                            first order: this is DDIM
    D  = x0 + (x0 − x0_last) · h / (2 h_last)          second order, multistep ("2M")

where x0_last and h_last belong to the step before. The first step has none before it, and the last
one goes to σ' = 0, h = ∞, so both are of first order. (diffusers: algorithm "dpmsolver++", solver
"midpoint", order 2, `final_sigmas_type="zero"`.)

SDE-DPM-Solver++ 2M (Lu 2022, under that name) solves the stochastic equation with the same D. With
e^{−h} = σ'/σ that is the posterior of DDPM with D in place of x0:

    x' = √(1−ᾱ') / √(1−ᾱ) · e^{−h} · x + √ᾱ' (1 − e^{−2h}) · D + √(1−ᾱ') √(1 − e^{−2h}) · z

With D = x0, as in its first step and its last, it is DDPM's step with the variance β̃.
(diffusers: "sde-dpmsolver++".)
"""

from __future__ import annotations

import math
from typing import Any

from latentddpm.diffusion.samplers.base import Array, Denoise, Noise
from latentddpm.diffusion.samplers.ddpm import posterior_mean, variances
from latentddpm.diffusion.samplers.sigma import SigmaSampler
from latentddpm.diffusion.schedule import NoiseSchedule


class DPMSolverMultistepSampler(SigmaSampler):
    """DPM-Solver++ 2M sampler (Lu 2022): second order, deterministic, good from about ten steps.

    With "leading" and "linspace" spacing it visits n + 1 timesteps without the lowest. With Karras
    sigmas the network is given the nearest whole timestep; with many steps timesteps repeat.

    Args:
        schedule, num_steps, timestep_spacing, steps_offset, sigma_spacing, shift: see
            `SigmaSampler`.

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
        (1, 8, 8, 4)
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
        return self.along_x0(step_index, latents, self._direction(step_index, x0, last_x0))

    def _direction(self, step_index: int, x0: Array, last_x0: Array | None) -> Array:
        """D: the x0 along which a step goes."""
        if last_x0 is None or step_index + 1 == self.num_steps:
            return x0
        weight = self._log_step(step_index) / (2 * self._log_step(step_index - 1))
        return (1 + weight) * x0 - weight * last_x0

    def _log_step(self, step_index: int) -> float:
        """Length h = λ' − λ of a step, > 0; not for the last step, where it is infinite."""
        return math.log(self.sigma(step_index) / self.sigma(step_index + 1))


class DPMSolverMultistepSDESampler(DPMSolverMultistepSampler):
    """SDE-DPM-Solver++ 2M sampler (Lu 2022): second order, stochastic.

    It visits the timesteps of `DPMSolverMultistepSampler`.

    Args:
        schedule, num_steps, timestep_spacing, steps_offset, sigma_spacing, shift: see
            `SigmaSampler`.
        clip_sample: clip each estimate of x0 to [-1, 1], for images that are not encoded.

    Raises:
        UserError: see `SigmaSampler`.

    Example:
        >>> sampler = latentddpm.samplers.get("dpmpp_2m_sde")(latentddpm.NoiseSchedule(), 4)
        >>> rng = np.random.default_rng(0)
        >>> latents = sampler.sample(
        ...     denoiser=lambda noisy_latents, timesteps: noisy_latents,
        ...     latents=rng.normal(size=(1, 8, 8, 4)),
        ...     noise=lambda step_index: rng.normal(size=(1, 8, 8, 4)),
        ... )
        >>> latents.shape
        (1, 8, 8, 4)
    """

    def __init__(
        self,
        schedule: NoiseSchedule,
        num_steps: int,
        timestep_spacing: str = "leading",
        steps_offset: int | None = None,
        sigma_spacing: str = "timesteps",
        shift: float | None = None,
        clip_sample: bool = False,
    ) -> None:
        super().__init__(schedule, num_steps, timestep_spacing, steps_offset, sigma_spacing, shift)
        self.clip_sample = clip_sample

    @property
    def stochastic(self) -> bool:
        return True

    def step(
        self, step_index: int, latents: Array, denoise: Denoise, noise: Noise, history: Any
    ) -> tuple[Array, Array, Any]:
        """Step of SDE-DPM-Solver++ 2M: the posterior of DDPM with D in place of x0."""
        x0, _ = denoise(latents, step_index)
        rates, next_rates = self.rates(step_index), self.rates(step_index + 1)
        direction = self._direction(step_index, x0, history)
        latents = posterior_mean(latents, direction, rates, next_rates)
        variance, _ = variances(rates, next_rates)
        if variance > 0:
            latents = latents + math.sqrt(variance) * noise(step_index)
        return latents, x0, x0
