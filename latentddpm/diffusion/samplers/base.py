"""Sampler: the base class of all samplers, with the noise levels and the loop over steps.

A sampler visits timesteps t_0 > t_1 > … > t_{n−1}, each with its noise level, and ends without
noise, at x0 itself. A step goes from one level to the next. A level is a pair of rates, and the
latents of a level are x = signal_rate · x0 + noise_rate · ε, as the network was trained:

    ᾱ = signal_rate² / (signal_rate² + noise_rate²)          the share of the signal
    σ = noise_rate / signal_rate = √(1 − ᾱ) / √ᾱ
    signal_rate, noise_rate = scale · √ᾱ, scale · √(1 − ᾱ)     scale = `schedule.scale(ᾱ)`

ᾱ and σ say how noisy a level is, whatever the process; the scale says how large x is there. It is
1 where the variance is kept (`NoiseSchedule`) and 1 / (√ᾱ + √(1 − ᾱ)) where the rates add up to
one (`FlowSchedule`). A method written for x̂ = x0 + σ · ε computes x̂ = x / signal_rate, and one
written for kept variance x / scale.

`Sampler` owns the levels and the loop; a subclass owns `step`. A sampler has no state that
changes: it can be shared, and `sample` is a function of its arguments. Latents are float32,
whatever the precision of the network; the coefficients of a step are float64.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from latentddpm.choices import TIMESTEP_SPACINGS
from latentddpm.diffusion.process import ForwardProcess
from latentddpm.diffusion.samplers.spacing import start_for_epsilon, visited_timesteps
from latentddpm.errors import UserError, check_choice
from latentddpm.utils import arrays
from latentddpm.utils.arrays import Array

Denoiser = Callable[[Array, Array], Array]  # (noisy_latents, timesteps) -> prediction
Denoise = Callable[[Array, int], tuple[Array, ...]]  # (latents, step_index) -> x0, epsilon
Noise = Callable[..., Array]  # (step_index[, draw]) -> standard normal, the latents' shape


class Sampler:
    """Base class of samplers: the levels and the loop. A subclass writes `step`.

    Args:
        schedule: the `NoiseSchedule` or `FlowSchedule` that the denoiser was trained with.
        num_steps: number of timesteps to visit, 1 .. T.
        timestep_spacing: rule for these timesteps (Lin 2023, table 2). "leading" starts one
            stride below T and ends at `steps_offset`. "trailing" starts at T−1 and ends one
            stride above −1; it is the best for few steps. "linspace" has both ends, T−1 and 0.
        steps_offset: number that "leading" adds to every timestep; no other spacing takes it.
            By default 1, as in Stable Diffusion, or 0 where 1 does not fit (n = T).

    Attributes:
        num_steps: as given; a model that predicts epsilon may leave out steps that begin in pure
            noise (`spacing.start_for_epsilon`).
        timesteps: (num_steps,), decreasing, in 0 .. T−1, read-only; int64, or float64 where the
            sampler visits timesteps between whole ones, and with a flow schedule, in (0, T].
        left_out: the timestep of pure noise in place of which `timesteps` begin lower, or None.
        alphas_cumprod: ᾱ of every step's level, and 1 for the end; float64 (num_steps + 1,),
            read-only.

    Raises:
        UserError: an unknown spacing, or a number outside its range.

    Example:
        >>> class DDIM(latentddpm.samplers.Sampler):
        ...     def step(self, step_index, latents, denoise, noise, history):
        ...         x0, epsilon = denoise(latents, step_index)
        ...         signal_rate, noise_rate = self.rates(step_index + 1)
        ...         return signal_rate * x0 + noise_rate * epsilon, x0, None
        >>> sampler = DDIM(latentddpm.NoiseSchedule(), num_steps=4, timestep_spacing="trailing")
        >>> sampler.timesteps
        array([999, 749, 499, 249])
        >>> sampler.sample(lambda noisy_latents, t: noisy_latents, np.ones((2, 8, 8, 4))).shape
        (2, 8, 8, 4)
    """

    skip_lowest = False  # leave out the lowest of n + 1 timesteps: see `spaced_timesteps`
    whole_timesteps = True  # visit only whole timesteps, none between them
    set_alpha_to_one = True  # end without noise, ᾱ = 1; False: end at ᾱ of timestep 0
    clip_sample = False  # clip each x0 to [-1, 1]
    learned_variance = False  # `denoise` returns what the network says of the variance, too

    def __init__(
        self,
        schedule: ForwardProcess,
        num_steps: int,
        timestep_spacing: str = "leading",
        steps_offset: int | None = None,
    ) -> None:
        self.schedule = schedule
        self.timestep_spacing = check_choice(
            "timestep_spacing", timestep_spacing, TIMESTEP_SPACINGS
        )
        timesteps = visited_timesteps(
            schedule,
            num_steps,
            timestep_spacing,
            steps_offset,
            skip_lowest=self.skip_lowest,
            fractional=not self.whole_timesteps,
        )
        end = 1.0 if self.set_alpha_to_one else schedule.alphas_cumprod_at(0)
        timesteps, alphas_cumprod = self._levels(timesteps)
        alphas_cumprod = np.append(alphas_cumprod, end)
        self.left_out = None
        if schedule.prediction_type == "epsilon":
            first = timesteps[0]
            sigmas = np.sqrt(1 / alphas_cumprod - 1)
            timesteps, usable = start_for_epsilon(schedule, timesteps, sigmas)
            if usable is not sigmas:
                self.left_out = first.item()
                alphas_cumprod = 1 / (1 + usable**2)
        self.num_steps = len(timesteps)
        self.timesteps, self.alphas_cumprod = timesteps, alphas_cumprod
        self.timesteps.setflags(write=False)
        self.alphas_cumprod.setflags(write=False)

    def _levels(self, timesteps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Timesteps as the network is given them, and ᾱ of each: both (num_steps,)."""
        return timesteps, self.schedule.alphas_cumprod_at(timesteps)

    @property
    def stochastic(self) -> bool:
        """True where `sample` needs a `noise` function."""
        return False

    def sample(
        self,
        denoiser: Denoiser,
        latents: Array,
        noise: Noise | None = None,
        callback: Callable[[int, int | float, Array, Array], None] | None = None,
        first_step: int = 0,
    ) -> Array:
        """Denoise latents from pure noise, or from `first_step` on, to clean scaled latents.

        Args:
            denoiser: `denoiser(noisy_latents, timesteps) -> prediction`, called with float32
                (B, h, w, c) and (B,), int32, or float32 where `timesteps` are fractional; the
                prediction has the shape of `noisy_latents`, or twice the channels: those of a
                learned variance (`DDPMSampler`), which other samplers leave aside.
            latents: (B, h, w, c) at the noise level of `first_step`, as `add_noise` makes them;
                for step 0 that is standard normal noise, for every sampler. With a NumPy array
                NumPy computes the steps, with a tensor of Keras's backend that backend does.
            noise: `noise(step_index) -> (B, h, w, c)`, the standard normal noise of one step.
                Stochastic samplers call it at most once per step; others do not need it. One that
                needs more (`pc`) calls `noise(step_index, draw)` for those with draw = 1, 2, …
            callback: `callback(step_index, timestep, latents, x0)` after each step, with the
                timestep it started from, the new latents, and its estimate of the clean ones.
            first_step: the step to start from, 0 .. num_steps; with num_steps there is nothing to
                do and the latents are returned as they are.

        Returns:
            Clean latents, float32 (B, h, w, c), NumPy's or a tensor as `latents` are.

        Raises:
            UserError: a stochastic sampler without `noise`, a `first_step` out of range, or a
                prediction or noise whose shape is not that of the latents.
        """
        self._check_step("first_step", first_step)
        if self.stochastic and noise is None:
            raise UserError(f"noise: {type(self).__name__} draws noise in its steps; pass noise=")
        if first_step == 0 and self.left_out is not None:
            warnings.warn(
                f"starting at timestep {self.timesteps[0]:.0f} instead of {self.left_out:.0f}, "
                "which is almost pure noise: a model that predicts epsilon cannot tell anything "
                "of the picture there",
                stacklevel=2,
            )
        latents = arrays.cast(latents, "float32")
        whole = np.issubdtype(self.timesteps.dtype, np.integer)

        def denoise(latents: Array, step_index: int) -> tuple[Array, Array]:
            timestep, dtype = self.timesteps[step_index].item(), "int32" if whole else "float32"
            timesteps = arrays.one_for_each(latents, timestep, dtype)
            prediction, variance = _halves(latents, denoiser(latents, timesteps))
            x0, epsilon = self.schedule.split(prediction, latents, *self.rates(step_index))
            if self.clip_sample:
                x0 = arrays.clip(x0, -1, 1)
            return (x0, epsilon, variance) if self.learned_variance else (x0, epsilon)

        def draw(step_index: int, *more: int) -> Array:
            return _like(latents, noise(step_index, *more), "noise(step_index)")

        history = None
        for step_index in range(first_step, self.num_steps):
            latents, x0, history = self.step(step_index, latents, denoise, draw, history)
            if callback is not None:
                callback(step_index, self.timesteps[step_index].item(), latents, x0)
        return latents

    def step(
        self, step_index: int, latents: Array, denoise: Denoise, noise: Noise, history: Any
    ) -> tuple[Array, Array, Any]:
        """Step from the noise level of `step_index` to the next one; written by a subclass.

        Args:
            step_index: 0 .. num_steps−1; `rates` and `sigma` give its level and the next.
            latents: float32 (B, h, w, c), x at this step's level, with the rates of it.
            denoise: `denoise(latents, step_index) -> x0, epsilon`, both float32 (B, h, w, c):
                one call of the network, at the level of that step. A method of higher order
                may call it more than once. With `learned_variance` a third follows, or None.
            noise: `noise(step_index[, draw])`, standard normal, float32 (B, h, w, c).
            history: memory of a multistep method: None at the first step of `sample`, then the
                history that the step before returned.

        Returns:
            The latents at the next level, the estimate of x0, and the new history.
        """
        raise NotImplementedError(f"{type(self).__name__} has no step")

    def add_noise(self, latents: Array, noise: Array, step_index: int) -> Array:
        """Noisy latents at the level that step `step_index` starts from (Ho 2020, eq. 4).

        `sample` takes them with `first_step=step_index`; image-to-image starts so.

        Args:
            latents: x0, scaled latents, (B, h, w, c).
            noise: ε, standard normal, (B, h, w, c).
            step_index: 0 .. num_steps; num_steps is the end, without noise.

        Returns:
            x, (B, h, w, c), with the rates of the level, for every sampler.

        Raises:
            UserError: a step out of range.
        """
        self._check_step("step_index", step_index)
        signal_rate, noise_rate = self.rates(step_index)
        return signal_rate * latents + noise_rate * noise

    def alphas_cumprod_at(self, step_index: int) -> tuple[float, float]:
        """Levels ᾱ and ᾱ' that step `step_index` starts from and goes to; the last goes to 1."""
        return float(self.alphas_cumprod[step_index]), float(self.alphas_cumprod[step_index + 1])

    def rates(self, step_index: int) -> tuple[float, float]:
        """Rates of signal and noise that step `step_index` starts from; 1, 0 at num_steps."""
        alpha_cumprod, scale = float(self.alphas_cumprod[step_index]), self.scale(step_index)
        return scale * math.sqrt(alpha_cumprod), scale * math.sqrt(1 - alpha_cumprod)

    def scale(self, step_index: int) -> float:
        """Scale of x where step `step_index` starts: 1 for a process that keeps the variance."""
        return self.schedule.scale(float(self.alphas_cumprod[step_index]))

    def sigma(self, step_index: int) -> float:
        """Noise level σ = noise_rate / signal_rate that a step starts from; 0 at num_steps.

        It is ∞ where there is no signal.
        """
        signal_rate, noise_rate = self.rates(step_index)
        return noise_rate / signal_rate if signal_rate else math.inf

    def along_x0(self, step_index: int, latents: Array, x0: Array) -> Array:
        """Latents at the next level, where x0 stays what it is on the way; finite at any level.

            x' = noise_rate' / noise_rate · x + signal_rate' (1 − σ'/σ) · x0

        Args:
            step_index: 0 .. num_steps−1.
            latents: x at this step's level, (B, h, w, c).
            x0: (B, h, w, c); with the network's own this is a step of DDIM.

        Returns:
            x' at the level of the next step, (B, h, w, c).
        """
        _, noise_rate = self.rates(step_index)
        next_signal_rate, next_noise_rate = self.rates(step_index + 1)
        shrink = self.sigma(step_index + 1) / self.sigma(step_index)
        return next_noise_rate / noise_rate * latents + next_signal_rate * (1 - shrink) * x0

    def is_far(self, step_index: int) -> bool:
        """True where a step is too long to be mended by ε', the ε at its other end.

        A mended step moves x' by ½ √ᾱ' (σ − σ') · (ε' − ε), and √ᾱ' of an error in v is in ε'. So
        where (σ − σ') / (1 + σ'²) > 4 the error is more than doubled in x'. That is so from almost
        pure noise. A step along the mean of the two x0 (`along_x0`) enlarges no error in v.

        Args:
            step_index: 0 .. num_steps−1.
        """
        sigma, next_sigma = self.sigma(step_index), self.sigma(step_index + 1)
        return next_sigma > 0 and (sigma - next_sigma) / (1 + next_sigma**2) > 4

    def _check_step(self, name: str, step_index: int) -> None:
        if not isinstance(step_index, int | np.integer) or not 0 <= step_index <= self.num_steps:
            raise UserError(
                f"{name}: expected a whole number from 0 to {self.num_steps}, got {step_index!r}"
            )


def _halves(latents: Array, prediction: Array) -> tuple[Array, Array | None]:
    """A prediction, and the channels after it that are of a learned variance; None for none."""
    what, variance = "the denoiser's prediction", None
    if tuple(prediction.shape) == (*latents.shape[:-1], 2 * latents.shape[-1]):
        prediction, variance = arrays.split(prediction, 2, axis=-1)
        variance = _like(latents, variance, what)
    return _like(latents, prediction, what), variance


def _like(latents: Array, values: Array, what: str) -> Array:
    """`values` as float32 of the kind of `latents`, after a check that they have its shape."""
    if tuple(values.shape) != tuple(latents.shape):
        raise UserError(
            f"{what}: expected the shape of the latents, {tuple(latents.shape)}, "
            f"got {tuple(values.shape)}"
        )
    return arrays.like(values, latents)
