"""Samplers that count noise in σ, the ratio of noise to signal.

With x̂ = x / √ᾱ = x0 + σ · ε, σ = √(1 − ᾱ) / √ᾱ, sampling is one differential equation,

    dx̂ / dσ = (x̂ − x0(x̂, σ)) / σ = ε(x̂, σ),        from σ_0 down to 0     (Karras 2022, §2–3)

which any solver of differential equations can take in few steps. Where the levels σ_i lie is
free: at those of evenly spaced timesteps, or where Karras 2022, eq. 5, puts them. A level
between two timesteps belongs to a timestep between them; `NoiseSchedule` interpolates.

A schedule with zero terminal SNR has σ = ∞ at its last timestep; here it counts as the level
ᾱ = 2⁻²⁴, σ = 4096, as in diffusers.
"""

from __future__ import annotations

import numpy as np

from latentddpm.choices import SIGMA_SPACINGS
from latentddpm.diffusion.samplers.base import Sampler
from latentddpm.diffusion.samplers.spacing import karras_sigmas
from latentddpm.diffusion.schedule import NoiseSchedule
from latentddpm.errors import check_choice


class SigmaSampler(Sampler):
    """The levels of the samplers in σ. A subclass writes `step`.

    Arguments, attributes and errors are those of `Sampler`, and

    Args:
        sigma_spacing: "timesteps", the levels of the spaced timesteps, or "karras", levels
            after Karras 2022, eq. 5, between the highest and the lowest.

    Attributes (NumPy, read-only):
        sigmas: float64 (num_steps + 1,), σ of every step's level, strictly decreasing, then 0.
    """

    def __init__(
        self,
        schedule: NoiseSchedule,
        num_steps: int,
        timestep_spacing: str = "leading",
        steps_offset: int | None = None,
        sigma_spacing: str = "timesteps",
    ) -> None:
        self.sigma_spacing = check_choice("sigma_spacing", sigma_spacing, SIGMA_SPACINGS)
        super().__init__(schedule, num_steps, timestep_spacing, steps_offset)
        self.sigmas = np.sqrt(1 / self.alphas_cumprod - 1)
        self.sigmas.setflags(write=False)

    def _levels(self, timesteps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        sigmas = self.schedule.sigmas_at(timesteps)
        if self.sigma_spacing == "karras":
            # As in diffusers: solvers bound to whole timesteps take the schedule's whole range
            # of σ and tell the network the nearest timestep, which at many steps is the same
            # one twice; the others take the range of the spaced timesteps.
            ends = sigmas[[0, -1]]
            if self.whole_timesteps:
                ends = self.schedule.sigmas_at(np.array([len(self.schedule.betas) - 1, 0]))
            sigmas = karras_sigmas(*ends, self.num_steps)
            timesteps = self.schedule.timesteps_at(sigmas)
            if self.whole_timesteps:
                timesteps = timesteps.round().astype("int64")
        return timesteps, 1 / (1 + sigmas**2)
