"""PNDM: DDIM's step with the noise of up to four steps in one (PLMS).

DDIM carries x along a straight line from the present ε to the next level. PNDM keeps that step
and puts a better ε into it, a linear combination of the last ones (Liu 2022, §3; the weights
are Adams' and Bashforth's, of fourth order once there are four, but the first steps are not):

    x' = √ᾱ' / √ᾱ · (x − √(1−ᾱ) · ε̂) + √(1−ᾱ') · ε̂
    ε̂  = (55 ε − 59 ε_1 + 37 ε_2 − 9 ε_3) / 24
    ε̂  = (23 ε − 16 ε_1 + 5 ε_2) / 12,   (3 ε − ε_1) / 2       third and second step
    ε̂  = (ε + ε') / 2,  ε' = ε at the x' that ε alone leads to      first step, two calls

That is Stable Diffusion's start (diffusers: `skip_prk_steps=True`); the paper's own, three
steps of Runge and Kutta with four calls each, is left out.

What is combined is always ε, as in the paper and in the code of Stable Diffusion. diffusers
combines whatever the network predicts: for ε that is the same; for v it is a method of first
order, since v turns from step to step even where x0 and ε stay as they are. The level gone to
is that of the next timestep, at the end ᾱ' = 1 unless `set_alpha_to_one` is false, see `ddpm`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from latentddpm.diffusion.samplers.base import Array, Denoise, Noise, Sampler
from latentddpm.diffusion.schedule import NoiseSchedule

ADAMS_BASHFORTH = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


class PNDMSampler(Sampler):
    """PNDM without Runge–Kutta steps, that is PLMS (Liu 2022): deterministic, multistep.

    Arguments, attributes and errors are those of `Sampler`, and

    Args:
        set_alpha_to_one: see `DDIMSampler`.

    Zero terminal SNR counts as ᾱ = 2⁻²⁴, for the step divides by √ᾱ.
    """

    def __init__(
        self,
        schedule: NoiseSchedule,
        num_steps: int,
        timestep_spacing: str = "leading",
        steps_offset: int | None = None,
        set_alpha_to_one: bool = True,
    ) -> None:
        self.set_alpha_to_one = set_alpha_to_one
        super().__init__(schedule, num_steps, timestep_spacing, steps_offset)

    def _levels(self, timesteps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return timesteps, 1 / (1 + self.schedule.sigmas_at(timesteps) ** 2)

    def step(
        self, step_index: int, latents: Array, denoise: Denoise, noise: Noise, history: Any
    ) -> tuple[Array, Array, Any]:
        """Liu 2022, §3: the transfer with a combined ε."""
        x0, epsilon = denoise(latents, step_index)
        if history is None and step_index + 1 < self.num_steps:
            guess = self._transfer(step_index, latents, epsilon)
            _, next_epsilon = denoise(guess, step_index + 1)
            return self._transfer(step_index, latents, (epsilon + next_epsilon) / 2), x0, [epsilon]
        history = [epsilon, *(history or [])[:3]]
        weights = ADAMS_BASHFORTH[len(history) - 1]
        combined = sum(weight * past for weight, past in zip(weights, history, strict=True))
        return self._transfer(step_index, latents, combined), x0, history

    def _transfer(self, step_index: int, latents: Array, epsilon: Array) -> Array:
        """The latents at the next level, along `epsilon`: DDIM's step."""
        signal_rate, noise_rate = self.rates(step_index)
        next_signal_rate, next_noise_rate = self.rates(step_index + 1)
        growth = next_signal_rate / signal_rate
        return growth * latents + (next_noise_rate - growth * noise_rate) * epsilon
