"""DDPM and DDIM: the samplers of Ho 2020 and Song 2021.

A step goes from the level with rates s, n of signal and noise to the less noisy one with s', n'.
With DDPM's noise schedules these are √ᾱ, √(1 − ᾱ) and √ᾱ', √(1 − ᾱ'), at the end s' = 1, n' = 0.
With r = σ'/σ = (n'/s') / (n/s), the ratio of the two noise levels, the posterior of x' given x and
x0 is a Gaussian (Ho 2020, eq. 7; between any two levels Nichol & Dhariwal 2021, eq. 19):

    μ̃ = s' (1 − r²) · x0 + (n'/n) r · x
    β̃ = n'² (1 − r²)                   = β (1 − ᾱ') / (1 − ᾱ)
    β  = n² (1 − r²)                    = 1 − ᾱ / ᾱ', the noise added between the levels

    DDPM   x' = μ̃ + √V · z                                            (Ho 2020, algorithm 2)
           V = β̃, "small": exact for data that is one point           (Ho 2020, §3.2)
           V = β, "large": exact for data that is N(0, I)
           V = exp(w log β + (1 − w) log β̃), w = (v + 1) / 2, "learned_range": v is a second
               output of the network                       (Nichol & Dhariwal 2021, eq. 15)
    DDIM   x' = s' · x0 + √(n'² − η² β̃) · ε + η √V · z               (Song 2021, eq. 12, 16)
           V = β, "large", is the σ̂ = √(1 − ᾱ/ᾱ') of Song 2021, appendix D.3: the noise is
           that of β, and the other terms stay those of β̃

where z is fresh noise. DDIM is deterministic with η = 0 and is DDPM with η = 1, so that σ̂ is DDPM
with "large". η may have another value in each step. Nothing is divided by s, so with zero terminal
SNR all of them start from ᾱ = 0 itself. The last step, to n' = 0, adds no noise (Ho 2020,
algorithm 2). diffusers adds √β of it there with "fixed_large" and "learned_range", unless that
step starts at timestep 0.

Here the next level is always that of the next timestep that is given to the network. In diffusers
DDIM goes to the level ⌊T/n⌋ timesteps below instead. That is the same for "leading" spacing, and
for "trailing" where n divides T. For "linspace" it is another level: the latents have more noise,
or less, than the timestep says that the network is given next.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from latentddpm.diffusion.options import check_eta, check_variance
from latentddpm.diffusion.samplers.base import Array, Denoise, Noise, Sampler
from latentddpm.diffusion.schedule import NoiseSchedule
from latentddpm.errors import UserError
from latentddpm.utils import arrays


class DDPMSampler(Sampler):
    """DDPM sampler: ancestral sampling (Ho 2020, algorithm 2).

    With fewer steps than T the betas are those between the visited timesteps (Nichol & Dhariwal
    2021, eq. 19).

    Args:
        schedule, num_steps, timestep_spacing, steps_offset: see `Sampler`.
        variance: of the noise that a step adds, see above: "small", β̃; "large", β; or
            "learned_range", between the two as the network says, which has to predict twice as
            many channels.
        clip_sample: clip each estimate of x0 to [-1, 1], for images that are not encoded.

    Raises:
        UserError: see `Sampler`; or an unknown `variance`.

    Example:
        >>> sampler = latentddpm.samplers.DDPMSampler(latentddpm.NoiseSchedule(), 10)
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
        variance: str = "small",
        clip_sample: bool = False,
    ) -> None:
        super().__init__(schedule, num_steps, timestep_spacing, steps_offset)
        self.variance = check_variance("ddpm", variance)
        self.clip_sample = clip_sample
        self.learned_variance = variance == "learned_range"

    @property
    def stochastic(self) -> bool:
        return True

    def step(
        self, step_index: int, latents: Array, denoise: Denoise, noise: Noise, history: Any
    ) -> tuple[Array, Array, Any]:
        """Step of DDPM, x' ~ N(μ̃(x, x0), V) (Ho 2020, eq. 7; with ε in place of x0, eq. 11)."""
        x0, _, *learned = denoise(latents, step_index)
        rates, next_rates = self.rates(step_index), self.rates(step_index + 1)
        latents = posterior_mean(latents, x0, rates, next_rates)
        small, large = variances(rates, next_rates)
        if small == 0:  # the last step
            return latents, x0, None
        if self.learned_variance:
            std = arrays.exp(_log_variance(learned[0], small, large) / 2)
        else:
            std = math.sqrt(large if self.variance == "large" else small)
        return latents + std * noise(step_index), x0, None


class DDIMSampler(Sampler):
    """DDIM sampler: implicit sampling (Song 2021), good at few steps, deterministic with `eta=0`.

    Args:
        schedule, num_steps, timestep_spacing, steps_offset: see `Sampler`.
        eta: η, the share of DDPM's noise that each step adds, from 0 (none) to 1 (DDPM itself); a
            list has one for each of `num_steps`. If steps are left out at the start, the first
            values are, too.
        set_alpha_to_one: end without noise. False ends at the level of timestep 0, as Stable
            Diffusion's scheduler files say (a noise rate of 0.03 is left).
        variance: of the noise that η is a share of: "small", β̃, or "large", β, which with η = 1
            is the σ̂ of Song 2021.
        clip_sample: clip each estimate of x0 to [-1, 1]; ε stays what it is.

    Raises:
        UserError: see `Sampler`; or an `eta` outside 0 .. 1, a list of another length, an unknown
            `variance`, or "large" without noise.

    Example:
        >>> sampler = latentddpm.samplers.DDIMSampler(latentddpm.NoiseSchedule(), 4, "trailing")
        >>> sampler.timesteps
        array([999, 749, 499, 249])
        >>> denoiser = lambda noisy_latents, timesteps: noisy_latents
        >>> sampler.sample(denoiser, np.ones((1, 8, 8, 4))).shape
        (1, 8, 8, 4)
    """

    def __init__(
        self,
        schedule: NoiseSchedule,
        num_steps: int,
        timestep_spacing: str = "leading",
        steps_offset: int | None = None,
        eta: float | Sequence[float] = 0.0,
        set_alpha_to_one: bool = True,
        variance: str = "small",
        clip_sample: bool = False,
    ) -> None:
        self.set_alpha_to_one = set_alpha_to_one
        super().__init__(schedule, num_steps, timestep_spacing, steps_offset)
        etas = check_eta(eta, num_steps)
        self.variance = check_variance("ddim", variance, eta)
        self.etas = etas[len(etas) - self.num_steps :]
        self.clip_sample = clip_sample

    @property
    def stochastic(self) -> bool:
        return any(self.etas)

    def step(
        self, step_index: int, latents: Array, denoise: Denoise, noise: Noise, history: Any
    ) -> tuple[Array, Array, Any]:
        """Step of DDIM (Song 2021, eq. 12 with the σ of eq. 16, or the σ̂ of appendix D.3)."""
        x0, epsilon = denoise(latents, step_index)
        rates, next_rates = self.rates(step_index), self.rates(step_index + 1)
        small, large = variances(rates, next_rates)
        eta, (next_signal_rate, next_noise_rate) = self.etas[step_index], next_rates
        direction = math.sqrt(max(next_noise_rate**2 - eta**2 * small, 0.0))
        latents = next_signal_rate * x0 + direction * epsilon
        if eta > 0 and small > 0:
            std = eta * math.sqrt(large if self.variance == "large" else small)
            latents = latents + std * noise(step_index)
        return latents, x0, None


Rates = tuple[float, float]
"""Rates of signal and noise of a level."""


def posterior_mean(latents: Array, x0: Array, rates: Rates, next_rates: Rates) -> Array:
    """Posterior mean μ̃ of x' given x and x0 (Ho 2020, eq. 7).

    Args:
        latents: x, (B, h, w, c).
        x0: (B, h, w, c).
        rates, next_rates: of the level of x, and of x'.

    Returns:
        (B, h, w, c).
    """
    (next_signal_rate, next_noise_rate), ratio = next_rates, _ratio(rates, next_rates)
    latents_weight = next_noise_rate / rates[1] * ratio
    return next_signal_rate * (1 - ratio**2) * x0 + latents_weight * latents


def variances(rates: Rates, next_rates: Rates) -> tuple[float, float]:
    """Variances β̃ and β of a step of DDPM.

    Args:
        rates, next_rates: of the level that the step starts from, and goes to.

    Returns:
        β̃, which is 0 for a step to no noise at all, and β > 0.
    """
    share = 1 - _ratio(rates, next_rates) ** 2
    # β is that of a process that keeps the variance, at the scale of x'.
    scale = sum(rate**2 for rate in next_rates) / sum(rate**2 for rate in rates)
    return next_rates[1] ** 2 * share, rates[1] ** 2 * scale * share


def _ratio(rates: Rates, next_rates: Rates) -> float:
    """Ratio σ'/σ of two noise levels, in [0, 1)."""
    (signal_rate, noise_rate), (next_signal_rate, next_noise_rate) = rates, next_rates
    return next_noise_rate * signal_rate / (next_signal_rate * noise_rate)


def _log_variance(learned: Array | None, small: float, large: float) -> Array:
    """Logarithm of the variance that a network has learned (Nichol & Dhariwal 2021, eq. 15)."""
    if learned is None:
        raise UserError(
            "variance: 'learned_range' needs a network that predicts twice the channels of the "
            "latents; this one does not, expected 'small' or 'large'"
        )
    share = (learned + 1) / 2
    return share * math.log(large) + (1 - share) * math.log(small)


def posterior_variance(alpha_cumprod: float, next_alpha_cumprod: float) -> float:
    """Posterior variance of a DDPM step, β̃ = (1 − ᾱ') / (1 − ᾱ) · (1 − ᾱ / ᾱ') (Ho 2020, eq. 7).

    Args:
        alpha_cumprod: ᾱ of the level that the step starts from, in [0, 1).
        next_alpha_cumprod: ᾱ' of the level that it goes to, in (ᾱ, 1].

    Returns:
        β̃, at least 0; 0 for a step to ᾱ' = 1.
    """
    levels = (alpha_cumprod, next_alpha_cumprod)
    return variances(*((math.sqrt(level), math.sqrt(1 - level)) for level in levels))[0]
