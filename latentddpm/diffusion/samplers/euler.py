"""Euler, Euler ancestral and Heun: solvers of dx̂/dσ = ε (see `samplers.sigma`).

A step goes from σ to σ'. With x̂ = x0 + σ · ε:

    Euler            x̂' = x̂ + (σ' − σ) · ε = x0 + σ' · ε
                                         (Karras 2022, algorithm 1 without its correction)
    Heun             x̂' = x̂ + (σ' − σ) · (ε + ε') / 2,   ε' = ε at Euler's x̂', σ'
                                                                (Karras 2022, algorithm 1)
    Euler ancestral  x̂' = x0 + σ_down · ε + σ_up · z,    σ_up² = σ'² (σ² − σ'²) / σ²,
                     σ_down² = σ'² − σ_up²             (Song 2021b, appendix F; k-diffusion)

With a flow schedule x itself is straight in its σ, with the slope ε − x0, so that Heun takes the
mean of this slope at both ends (diffusers: `FlowMatchHeunDiscreteScheduler`); a step of Euler is
the same in both. Elsewhere, from almost pure noise, Heun takes the mean of the two x0 and not of
the two ε (`Sampler.is_far`). Both are of second order, and only the former stays finite there.
With five steps or more that is the first step on cosine and zero terminal SNR schedules, and
hardly any other.

A step of Euler is a step of DDIM, and one of Euler ancestral is one of DDPM, in other notation;
they differ in the choice of levels. Heun calls the network twice per step (once in the last, where
σ' = 0), for an error that decreases with the square of the step.

diffusers starts these three from σ · noise with "trailing" and "linspace" spacing, and from
√(σ² + 1) · noise with "leading". Here it is always the latter, which is x = noise, as for every
other sampler.
"""

from __future__ import annotations

import math
from typing import Any

from latentddpm.diffusion.samplers.base import Array, Denoise, Noise
from latentddpm.diffusion.samplers.sigma import SigmaSampler


class EulerSampler(SigmaSampler):
    """Euler sampler: Euler's method in σ, first order, deterministic.

    With "linspace" spacing and with Karras sigmas the timesteps are fractional.

    Args:
        schedule, num_steps, timestep_spacing, steps_offset, sigma_spacing, shift: see
            `SigmaSampler`.

    Raises:
        UserError: see `SigmaSampler`.

    Example:
        >>> sampler = latentddpm.samplers.EulerSampler(latentddpm.NoiseSchedule(), 3, "linspace")
        >>> sampler.timesteps
        array([999. , 499.5,   0. ])
        >>> denoiser = lambda noisy_latents, timesteps: noisy_latents
        >>> sampler.sample(denoiser, np.ones((1, 8, 8, 4))).shape
        (1, 8, 8, 4)
    """

    whole_timesteps = False

    def step(
        self, step_index: int, latents: Array, denoise: Denoise, noise: Noise, history: Any
    ) -> tuple[Array, Array, Any]:
        """Step of Euler (Karras 2022, algorithm 1 without its correction)."""
        x0, epsilon = denoise(latents, step_index)
        next_signal_rate, next_noise_rate = self.rates(step_index + 1)
        return next_signal_rate * x0 + next_noise_rate * epsilon, x0, None


class EulerAncestralSampler(SigmaSampler):
    """Euler ancestral sampler: Euler's method to below the next level, then fresh noise up to it.

    With "linspace" spacing and with Karras sigmas the timesteps are fractional. In diffusers this
    sampler has no Karras sigmas.

    Args:
        schedule, num_steps, timestep_spacing, steps_offset, sigma_spacing, shift: see
            `SigmaSampler`.

    Raises:
        UserError: see `SigmaSampler`.

    Example:
        >>> sampler = latentddpm.samplers.EulerAncestralSampler(latentddpm.NoiseSchedule(), 4)
        >>> rng = np.random.default_rng(0)
        >>> latents = sampler.sample(
        ...     denoiser=lambda noisy_latents, timesteps: noisy_latents,
        ...     latents=rng.normal(size=(1, 8, 8, 4)),
        ...     noise=lambda step_index: rng.normal(size=(1, 8, 8, 4)),
        ... )
        >>> latents.shape
        (1, 8, 8, 4)
    """

    whole_timesteps = False

    @property
    def stochastic(self) -> bool:
        return True

    def step(
        self, step_index: int, latents: Array, denoise: Denoise, noise: Noise, history: Any
    ) -> tuple[Array, Array, Any]:
        """Step to the posterior of the variance-exploding process (Song 2021b, appendix F)."""
        x0, epsilon = denoise(latents, step_index)
        sigma, next_sigma = self.sigma(step_index), self.sigma(step_index + 1)
        sigma_up = next_sigma * math.sqrt(1 - (next_sigma / sigma) ** 2)
        sigma_down = next_sigma**2 / sigma  # σ_down² = σ'² − σ_up²
        exploding = x0 + sigma_down * epsilon
        if sigma_up > 0:
            exploding = exploding + sigma_up * noise(step_index)
        return self.rates(step_index + 1)[0] * exploding, x0, None


class HeunSampler(SigmaSampler):
    """Heun sampler: Heun's method in σ, second order, two calls of the network per step.

    With "linspace" spacing and with Karras sigmas the timesteps are fractional.

    Args:
        schedule, num_steps, timestep_spacing, steps_offset, sigma_spacing, shift: see
            `SigmaSampler`.

    Raises:
        UserError: see `SigmaSampler`.

    Example:
        >>> sampler = latentddpm.samplers.HeunSampler(
        ...     latentddpm.NoiseSchedule(), num_steps=3, sigma_spacing="karras"
        ... )
        >>> sampler.timesteps.round(1)
        array([667., 160.,   1.])
        >>> denoiser = lambda noisy_latents, timesteps: noisy_latents
        >>> sampler.sample(denoiser, np.ones((1, 8, 8, 4))).shape
        (1, 8, 8, 4)
    """

    whole_timesteps = False

    def step(
        self, step_index: int, latents: Array, denoise: Denoise, noise: Noise, history: Any
    ) -> tuple[Array, Array, Any]:
        """Step of Heun: Euler, then the mean slope of both ends (Karras 2022, algorithm 1)."""
        x0, epsilon = denoise(latents, step_index)
        sigma, next_sigma = self.sigma(step_index), self.sigma(step_index + 1)
        next_signal_rate = self.rates(step_index + 1)[0]
        guess = next_signal_rate * (x0 + next_sigma * epsilon)
        if next_sigma == 0:
            return guess, x0, None
        next_x0, next_epsilon = denoise(guess, step_index + 1)
        if self.schedule.continuous:
            half = (self.rates(step_index + 1)[1] - self.rates(step_index)[1]) / 2
            turn = (next_epsilon - next_x0) - (epsilon - x0)
            return guess + half * turn, x0, None
        if self.is_far(step_index):
            return self.along_x0(step_index, latents, (x0 + next_x0) / 2), x0, None
        mend = next_signal_rate * (next_sigma - sigma) / 2
        return guess + mend * (next_epsilon - epsilon), x0, None
