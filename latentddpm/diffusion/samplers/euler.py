"""Euler, Euler ancestral and Heun: dx̂/dσ = ε, taken step by step (see `sigma`).

A step goes from σ to σ'. With x̂ = x0 + σ · ε:

    Euler            x̂' = x̂ + (σ' − σ) · ε = x0 + σ' · ε
                                         (Karras 2022, algorithm 1 without its correction)
    Heun             x̂' = x̂ + (σ' − σ) · (ε + ε') / 2,   ε' = ε at Euler's x̂', σ'
                                                                (Karras 2022, algorithm 1)
    Euler ancestral  x̂' = x0 + σ_down · ε + σ_up · z,    σ_up² = σ'² (σ² − σ'²) / σ²,
                     σ_down² = σ'² − σ_up²             (Song 2021b, appendix F; k-diffusion)

Euler is DDIM, and Euler ancestral is DDPM, in other letters; what they have of their own is
the choice of levels. Heun calls the network twice a step (once in the last, where σ' = 0), for
an error that falls with the square of the step.

diffusers starts these three from σ · noise with "trailing" and "linspace" spacing, and from
√(σ² + 1) · noise with "leading"; here it is always the latter, which is x = noise: the same
start as for every other sampler.
"""

from __future__ import annotations

import math
from typing import Any

from latentddpm.diffusion.samplers.base import Array, Denoise, Noise
from latentddpm.diffusion.samplers.sigma import SigmaSampler


class EulerSampler(SigmaSampler):
    """Euler's method in σ: first order, one call of the network a step.

    Arguments, attributes and errors are those of `SigmaSampler`. With "linspace" spacing and
    with Karras sigmas the timesteps are fractional.
    """

    whole_timesteps = False

    def step(
        self, step_index: int, latents: Array, denoise: Denoise, noise: Noise, history: Any
    ) -> tuple[Array, Array, Any]:
        """Karras 2022, algorithm 1 without its correction."""
        x0, epsilon = denoise(latents, step_index)
        next_signal_rate, next_noise_rate = self.rates(step_index + 1)
        return next_signal_rate * x0 + next_noise_rate * epsilon, x0, None


class EulerAncestralSampler(SigmaSampler):
    """Euler's method below the next level, then fresh noise up to it: stochastic.

    Arguments, attributes and errors are those of `SigmaSampler`. With "linspace" spacing and
    with Karras sigmas (which diffusers does not offer here) the timesteps are fractional.
    """

    whole_timesteps = False

    @property
    def stochastic(self) -> bool:
        return True

    def step(
        self, step_index: int, latents: Array, denoise: Denoise, noise: Noise, history: Any
    ) -> tuple[Array, Array, Any]:
        """Song 2021b, appendix F: the posterior of the variance-exploding process."""
        x0, epsilon = denoise(latents, step_index)
        sigma, next_sigma = self.sigma(step_index), self.sigma(step_index + 1)
        sigma_up = next_sigma * math.sqrt(1 - (next_sigma / sigma) ** 2)
        sigma_down = next_sigma**2 / sigma  # σ_down² = σ'² − σ_up²
        exploding = x0 + sigma_down * epsilon
        if sigma_up > 0:
            exploding = exploding + sigma_up * noise(step_index)
        return self.rates(step_index + 1)[0] * exploding, x0, None


class HeunSampler(SigmaSampler):
    """Heun's method in σ: second order, two calls of the network a step.

    Arguments, attributes and errors are those of `SigmaSampler`. With "linspace" spacing and
    with Karras sigmas the timesteps are fractional.
    """

    whole_timesteps = False

    def step(
        self, step_index: int, latents: Array, denoise: Denoise, noise: Noise, history: Any
    ) -> tuple[Array, Array, Any]:
        """Karras 2022, algorithm 1: Euler's step, then the mean of the slopes at both ends."""
        x0, epsilon = denoise(latents, step_index)
        sigma, next_sigma = self.sigma(step_index), self.sigma(step_index + 1)
        next_signal_rate = self.rates(step_index + 1)[0]
        latents = next_signal_rate * (x0 + next_sigma * epsilon)
        if next_sigma > 0:
            _, next_epsilon = denoise(latents, step_index + 1)
            mend = next_signal_rate * (next_sigma - sigma) / 2
            latents = latents + mend * (next_epsilon - epsilon)
        return latents, x0, None
