"""PNDM: steps of DDIM with a combination of the last four predictions of ε (PLMS).

DDIM goes to the next level along the present ε. PNDM does the same along a better ε, a linear
combination of the last ones (Liu 2022, §3). The weights are those of Adams and Bashforth, of
fourth order once there are four predictions, and of lower order in the first steps:

    x' = √ᾱ' / √ᾱ · (x − √(1−ᾱ) · ε̂) + √(1−ᾱ') · ε̂
    ε̂  = (55 ε − 59 ε_1 + 37 ε_2 − 9 ε_3) / 24
    ε̂  = (23 ε − 16 ε_1 + 5 ε_2) / 12,   (3 ε − ε_1) / 2       third and second step
    ε̂  = (ε + ε') / 2,  ε' = ε at the x' that ε alone leads to      first step, two calls

The first step is that of Stable Diffusion (diffusers: `skip_prk_steps=True`). The paper's own
start, three Runge–Kutta steps of four calls each, is left out.

From almost pure noise (`Sampler.is_far`) a step along ε divides by nearly nothing. Such a step
goes along the mean of the two x0 instead. On schedules that leap into pure noise at their last
timestep (cosine, zero terminal SNR) at most two predictions are combined: with few steps the
weights of four, whose sizes add up to 6.7, enlarge the errors of the network and leave stains.
Elsewhere there are four, as in diffusers.

The predictions are combined as ε, as in the paper and in the code of Stable Diffusion. diffusers
combines them as the network gives them. For ε that is the same. For v it is a method of first
order, because v changes from step to step even where x0 and ε do not. A step goes to the level of
the next timestep, and the last one to ᾱ' = 1 unless `set_alpha_to_one` is false; see `ddpm`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from latentddpm.diffusion.options import check_sampler_of_schedule
from latentddpm.diffusion.samplers.base import Array, Denoise, Noise, Sampler
from latentddpm.diffusion.samplers.spacing import PURE_NOISE
from latentddpm.diffusion.schedule import NoiseSchedule

ADAMS_BASHFORTH = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)
"""Weights of the newest prediction and those before it, for 1, 2, 3 and 4 of them."""


class PNDMSampler(Sampler):
    """PNDM sampler without Runge–Kutta steps, called PLMS (Liu 2022): deterministic, multistep.

    With zero terminal SNR it starts from ᾱ = 2⁻²⁴.

    Args:
        schedule, num_steps, timestep_spacing, steps_offset: see `Sampler`.
        set_alpha_to_one: see `DDIMSampler`.

    Attributes:
        order: number of predictions that are combined, once there are as many: 4 or 2.

    Raises:
        UserError: see `Sampler`.

    Example:
        >>> sampler = latentddpm.samplers.PNDMSampler(latentddpm.NoiseSchedule(), num_steps=4)
        >>> sampler.timesteps
        array([751, 501, 251,   1])
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
        set_alpha_to_one: bool = True,
    ) -> None:
        check_sampler_of_schedule("pndm", {}, schedule.kind)
        self.set_alpha_to_one = set_alpha_to_one
        super().__init__(schedule, num_steps, timestep_spacing, steps_offset)
        last_but_one, last = schedule.sigmas[[-min(2, len(schedule.sigmas)), -1]]
        leaps = last > max(PURE_NOISE, 2 * last_but_one)
        self.order = 2 if leaps else len(ADAMS_BASHFORTH)

    def _levels(self, timesteps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return timesteps, 1 / (1 + self.schedule.sigmas_at(timesteps) ** 2)

    def step(
        self, step_index: int, latents: Array, denoise: Denoise, noise: Noise, history: Any
    ) -> tuple[Array, Array, Any]:
        """Step of PNDM: a transfer along a combined ε (Liu 2022, §3)."""
        x0, epsilon = denoise(latents, step_index)
        last = step_index + 1 == self.num_steps
        past = [epsilon, *(history or [])][: self.order]
        if self.is_far(step_index) and not last:
            next_x0, _ = denoise(self.along_x0(step_index, latents, x0), step_index + 1)
            return self.along_x0(step_index, latents, (x0 + next_x0) / 2), x0, past
        if history is None and not last:
            guess = self._transfer(step_index, latents, epsilon)
            _, next_epsilon = denoise(guess, step_index + 1)
            return self._transfer(step_index, latents, (epsilon + next_epsilon) / 2), x0, past
        weights = ADAMS_BASHFORTH[len(past) - 1]
        combined = sum(weight * value for weight, value in zip(weights, past, strict=True))
        return self._transfer(step_index, latents, combined), x0, past

    def _transfer(self, step_index: int, latents: Array, epsilon: Array) -> Array:
        """Latents at the next level, along `epsilon`: a step of DDIM."""
        signal_rate, noise_rate = self.rates(step_index)
        next_signal_rate, next_noise_rate = self.rates(step_index + 1)
        growth = next_signal_rate / signal_rate
        return growth * latents + (next_noise_rate - growth * noise_rate) * epsilon
