"""LCM: the sampler of consistency models of latents (Luo 2023; Song 2023, algorithm 1).

A consistency model f gives, from any point of a path of the probability flow ODE, its end x0:

    f(x, t) = c_skip(t) · x + c_out(t) · x̂0(x, t)                        (Luo 2023, eq. 9)
    c_skip  = σ_d² / (s² + σ_d²)     c_out = s / √(s² + σ_d²)     s = 10 t,   σ_d = ½

with x̂0 what the network's prediction says of x0. At t = 0 it is x itself, whatever the network
says; from t = 1 on it is x̂0 but for a few thousandths. One call gives an image. More steps go back
to less and less noise, with fresh noise each time (Song 2023, algorithm 1):

    x' = s' · f(x, t) + n' · z                      the last step: f(x, t)

A model is distilled along the n₀ timesteps k − 1, 2k − 1, …, n₀k − 1 of a solver, k = ⌊T/n₀⌋.
Sampling visits n of them, from the last one on, evenly by their numbers. That is the schedule of
diffusers' `LCMScheduler`; `timestep_spacing` plays no part.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from latentddpm.diffusion.options import (
    check_num_steps,
    check_original_steps,
    check_sampler_of_schedule,
)
from latentddpm.diffusion.samplers.base import Array, Denoise, Noise, Sampler
from latentddpm.diffusion.schedule import NoiseSchedule

SIGMA_DATA = 0.5
TIMESTEP_SCALING = 10.0


class LCMSampler(Sampler):
    """LCM sampler: few steps with a network distilled for them, `train-diffusion --distill lcm`.

    Guidance is part of such a network, so it is sampled with a guidance scale of 1. Other networks
    give blurred images. With one step it draws no noise.

    Args:
        schedule, num_steps, timestep_spacing: see `Sampler`. The last plays no part here.
        original_steps: n₀, timesteps of the solver that the network was distilled along, at least
            `num_steps`; None for 50, or T where `num_steps` is more.
        clip_sample: clip each x̂0 to [-1, 1], for images that are not encoded.

    Raises:
        UserError: see `Sampler`; a flow schedule; or `original_steps` outside of that.

    Example:
        >>> sampler = latentddpm.samplers.LCMSampler(latentddpm.NoiseSchedule(), num_steps=4)
        >>> sampler.timesteps
        array([999, 759, 499, 259])
    """

    def __init__(
        self,
        schedule: NoiseSchedule,
        num_steps: int,
        timestep_spacing: str = "leading",
        original_steps: int | None = None,
        clip_sample: bool = False,
    ) -> None:
        check_sampler_of_schedule("lcm", {}, schedule.kind)
        check_num_steps(num_steps, schedule.num_train_timesteps)
        self.original_steps = check_original_steps(
            original_steps, num_steps, schedule.num_train_timesteps
        )
        self.clip_sample = clip_sample
        super().__init__(schedule, num_steps, timestep_spacing)

    def _levels(self, timesteps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        grid = solver_timesteps(self.schedule.num_train_timesteps, self.original_steps)
        chosen = np.linspace(0, len(grid), len(timesteps), endpoint=False).astype("int64")
        return super()._levels(grid[::-1][chosen])

    @property
    def stochastic(self) -> bool:
        return self.num_steps > 1

    def step(
        self, step_index: int, latents: Array, denoise: Denoise, noise: Noise, history: Any
    ) -> tuple[Array, Array, Any]:
        """Step of LCM: to x0, and back to the next level with fresh noise."""
        x0, _ = denoise(latents, step_index)
        skip, out = boundary_scalings(float(self.timesteps[step_index]))
        x0 = skip * latents + out * x0
        if step_index + 1 == self.num_steps:
            return x0, x0, None
        signal_rate, noise_rate = self.rates(step_index + 1)
        return signal_rate * x0 + noise_rate * noise(step_index), x0, None


def boundary_scalings(timesteps: Any) -> tuple[Any, Any]:
    """Factors c_skip and c_out of x and of x̂0 in a consistency model.

    Args:
        timesteps: a float, or an array or tensor of floats.

    Returns:
        Two of the same shape.
    """
    total = (TIMESTEP_SCALING * timesteps) ** 2 + SIGMA_DATA**2
    return SIGMA_DATA**2 / total, TIMESTEP_SCALING * timesteps / total**0.5


def solver_timesteps(num_train_timesteps: int, num_steps: int) -> np.ndarray:
    """Timesteps of the solver that a consistency model is distilled along: k − 1, 2k − 1, …

    Args:
        num_train_timesteps: T.
        num_steps: n₀, 1 .. T; k = ⌊T/n₀⌋.

    Returns:
        int64 (n₀,), increasing.
    """
    return np.arange(1, num_steps + 1) * (num_train_timesteps // num_steps) - 1
