"""DDPM and DDIM: the samplers of Ho 2020 and Song 2021.

A step goes from the noise level ᾱ = ᾱ_{t_i} to the lower level ᾱ' = ᾱ_{t_{i+1}}, at the end to
ᾱ' = 1. Between the two levels (Nichol & Dhariwal 2021, eq. 19; with n = T these are the betas
of training, and β̃ is Ho 2020, eq. 7):

    β = 1 − ᾱ / ᾱ'                     the noise added between the levels
    β̃ = β · (1 − ᾱ') / (1 − ᾱ)         the variance of x' given x and x0, DDPM's "fixed small"

    DDPM   x' = √ᾱ' β / (1 − ᾱ) · x0 + √(ᾱ/ᾱ') (1 − ᾱ') / (1 − ᾱ) · x + √β̃ · z
                                                                       (Ho 2020, eq. 7, 11)
    DDIM   x' = √ᾱ' · x0 + √(1 − ᾱ' − σ²) · ε + σ · z,   σ = η √β̃     (Song 2021, eq. 12, 16)

where z is fresh noise. DDIM is deterministic with η = 0 and is DDPM with η = 1. Neither divides
by ᾱ, so with zero terminal SNR both start from ᾱ = 0 itself. Here x is that of a process that
keeps the variance; that of another one is `scale` times as large (see `samplers.base`).

Here ᾱ' is always the level of the next timestep that is given to the network. In diffusers DDIM
goes to the level ⌊T/n⌋ timesteps below instead. That is the same for "leading" spacing, and for
"trailing" where n divides T. For "linspace" it is another level: the latents have more noise, or
less, than the timestep says that the network is given next.
"""

from __future__ import annotations

import math
from typing import Any

from latentddpm.diffusion.options import check_eta
from latentddpm.diffusion.samplers.base import Array, Denoise, Noise, Sampler
from latentddpm.diffusion.schedule import NoiseSchedule


class DDPMSampler(Sampler):
    """DDPM sampler: ancestral sampling (Ho 2020, algorithm 2) with the "fixed small" variance β̃.

    With fewer steps than T the betas are those between the visited timesteps (Nichol & Dhariwal
    2021, eq. 19).

    Args:
        schedule, num_steps, timestep_spacing, steps_offset: see `Sampler`.

    Raises:
        UserError: see `Sampler`.

    Example:
        >>> sampler = latentddpm.samplers.DDPMSampler(latentddpm.NoiseSchedule(), 10)
        >>> rng = np.random.default_rng(0)
        >>> latents = sampler.sample(
        ...     denoiser=lambda noisy_latents, timesteps: noisy_latents,
        ...     latents=rng.normal(size=(1, 8, 8, 4)),
        ...     noise=lambda step_index: rng.normal(size=(1, 8, 8, 4)),
        ... )
        >>> latents.shape
        TensorShape([1, 8, 8, 4])
    """

    @property
    def stochastic(self) -> bool:
        return True

    def step(
        self, step_index: int, latents: Array, denoise: Denoise, noise: Noise, history: Any
    ) -> tuple[Array, Array, Any]:
        """Step of DDPM, x' ~ N(μ̃(x, x0), β̃) (Ho 2020, eq. 7; with ε in place of x0, eq. 11)."""
        x0, _ = denoise(latents, step_index)
        alpha_cumprod, next_alpha_cumprod = self.alphas_cumprod_at(step_index)
        alpha = alpha_cumprod / next_alpha_cumprod
        x0_weight = math.sqrt(next_alpha_cumprod) * (1 - alpha) / (1 - alpha_cumprod)
        latents_weight = math.sqrt(alpha) * (1 - next_alpha_cumprod) / (1 - alpha_cumprod)
        scale = self.scale(step_index + 1)
        latents_weight *= scale / self.scale(step_index)
        latents = scale * x0_weight * x0 + latents_weight * latents
        variance = posterior_variance(alpha_cumprod, next_alpha_cumprod)
        if variance > 0:
            latents = latents + scale * math.sqrt(variance) * noise(step_index)
        return latents, x0, None


class DDIMSampler(Sampler):
    """DDIM sampler: implicit sampling (Song 2021), good at few steps, deterministic with `eta=0`.

    Args:
        schedule, num_steps, timestep_spacing, steps_offset: see `Sampler`.
        eta: η, the share of DDPM's noise that each step adds, from 0 (none) to 1 (DDPM itself).
        set_alpha_to_one: end without noise. False ends at the level of timestep 0, as Stable
            Diffusion's scheduler files say (a noise rate of 0.03 is left).

    Raises:
        UserError: see `Sampler`; or an `eta` outside 0 .. 1.

    Example:
        >>> sampler = latentddpm.samplers.DDIMSampler(latentddpm.NoiseSchedule(), 4, "trailing")
        >>> sampler.timesteps
        array([999, 749, 499, 249])
        >>> denoiser = lambda noisy_latents, timesteps: noisy_latents
        >>> sampler.sample(denoiser, np.ones((1, 8, 8, 4))).shape
        TensorShape([1, 8, 8, 4])
    """

    def __init__(
        self,
        schedule: NoiseSchedule,
        num_steps: int,
        timestep_spacing: str = "leading",
        steps_offset: int | None = None,
        eta: float = 0.0,
        set_alpha_to_one: bool = True,
    ) -> None:
        self.set_alpha_to_one = set_alpha_to_one
        super().__init__(schedule, num_steps, timestep_spacing, steps_offset)
        check_eta(eta)
        self.eta = float(eta)

    @property
    def stochastic(self) -> bool:
        return self.eta > 0

    def step(
        self, step_index: int, latents: Array, denoise: Denoise, noise: Noise, history: Any
    ) -> tuple[Array, Array, Any]:
        """Step of DDIM (Song 2021, eq. 12 with the σ of eq. 16)."""
        x0, epsilon = denoise(latents, step_index)
        alpha_cumprod, next_alpha_cumprod = self.alphas_cumprod_at(step_index)
        sigma = self.eta * math.sqrt(posterior_variance(alpha_cumprod, next_alpha_cumprod))
        direction = math.sqrt(max(1 - next_alpha_cumprod - sigma**2, 0.0))
        scale = self.scale(step_index + 1)
        latents = scale * math.sqrt(next_alpha_cumprod) * x0 + scale * direction * epsilon
        if sigma > 0:
            latents = latents + scale * sigma * noise(step_index)
        return latents, x0, None


def posterior_variance(alpha_cumprod: float, next_alpha_cumprod: float) -> float:
    """Posterior variance of a DDPM step, β̃ = (1 − ᾱ') / (1 − ᾱ) · (1 − ᾱ / ᾱ') (Ho 2020, eq. 7).

    Args:
        alpha_cumprod: ᾱ of the level that the step starts from, in [0, 1).
        next_alpha_cumprod: ᾱ' of the level that it goes to, in (ᾱ, 1].

    Returns:
        β̃, at least 0; 0 for a step to ᾱ' = 1.
    """
    beta = 1 - alpha_cumprod / next_alpha_cumprod
    return (1 - next_alpha_cumprod) / (1 - alpha_cumprod) * beta
