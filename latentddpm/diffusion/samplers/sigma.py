"""Samplers in σ, the ratio of noise to signal: their levels.

With x̂ = x / √ᾱ = x0 + σ · ε, σ = √(1 − ᾱ) / √ᾱ, sampling is one differential equation,

    dx̂ / dσ = (x̂ − x0(x̂, σ)) / σ = ε(x̂, σ),        from σ_0 down to 0     (Karras 2022, §2–3)

which any solver of differential equations can solve in few steps. The levels σ_i can be chosen
freely: those of evenly spaced timesteps, or those of Karras 2022, eq. 5. A level between those of
two timesteps belongs to a fractional timestep between them; `NoiseSchedule` interpolates.

A schedule with zero terminal SNR has σ = ∞ at its last timestep. Here that counts as the level
ᾱ = 2⁻²⁴, σ = 4096, as in diffusers. A flow schedule does begin at ∞: no step divides by its
signal rate there.
"""

from __future__ import annotations

import numpy as np

from latentddpm.choices import SIGMA_SPACINGS
from latentddpm.diffusion.options import check_sampler_of_schedule
from latentddpm.diffusion.samplers.base import Sampler
from latentddpm.diffusion.samplers.spacing import karras_sigmas
from latentddpm.diffusion.schedule import NoiseSchedule
from latentddpm.errors import check_choice


class SigmaSampler(Sampler):
    """Base class of samplers in σ: a `Sampler` with a choice of levels. A subclass writes `step`.

    Args:
        schedule, num_steps, timestep_spacing, steps_offset: see `Sampler`.
        sigma_spacing: "timesteps", the levels of the spaced timesteps, or "karras", levels
            of Karras 2022, eq. 5, between the highest and the lowest; not with a flow schedule.
        shift: of a flow schedule, instead of its own; None for its own.

    Attributes:
        timesteps: see `Sampler`.
        alphas_cumprod: see `Sampler`.
        sigmas: σ of every step's level, strictly decreasing, then 0; float64 (num_steps + 1,),
            read-only.

    Raises:
        UserError: see `Sampler`; or an unknown `sigma_spacing`, or one of the two options with
            a schedule that does not take it.

    Example:
        >>> schedule = latentddpm.NoiseSchedule()
        >>> sampler = latentddpm.samplers.SigmaSampler(schedule, 4, sigma_spacing="karras")
        >>> sampler.sigmas.round(2)
        array([14.61,  3.17,  0.45,  0.03,  0.  ])
    """

    def __init__(
        self,
        schedule: NoiseSchedule,
        num_steps: int,
        timestep_spacing: str = "leading",
        steps_offset: int | None = None,
        sigma_spacing: str = "timesteps",
        shift: float | None = None,
    ) -> None:
        self.sigma_spacing = check_choice("sigma_spacing", sigma_spacing, SIGMA_SPACINGS)
        options = {"sigma_spacing": sigma_spacing, "shift": shift}
        check_sampler_of_schedule("", options, schedule.kind)
        if shift is not None:
            schedule = schedule.with_shift(shift)
        super().__init__(schedule, num_steps, timestep_spacing, steps_offset)
        with np.errstate(divide="ignore"):  # ᾱ = 0: σ = ∞
            self.sigmas = np.sqrt(1 / self.alphas_cumprod - 1)
        self.sigmas.setflags(write=False)

    def _levels(self, timesteps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        sigmas = self.schedule.sigmas_at(timesteps)
        if self.sigma_spacing == "karras":
            # As in diffusers: solvers that need whole timesteps use the schedule's whole range of
            # σ and give the network the nearest timestep, with many steps the same one twice.
            # The others use the range of the spaced timesteps.
            ends = sigmas[[0, -1]]
            if self.whole_timesteps:
                ends = self.schedule.sigmas_at(np.array([len(self.schedule.betas) - 1, 0]))
            sigmas = karras_sigmas(*ends, len(timesteps))
            timesteps = self.schedule.timesteps_at(sigmas)
            if self.whole_timesteps:
                timesteps = timesteps.round().astype("int64")
        return timesteps, 1 / (1 + sigmas**2)
