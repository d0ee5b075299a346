"""The reverse process: from noise to latents in n of the T training timesteps.

A sampler visits timesteps t_0 > t_1 > … > t_{n−1}. At each one the network's prediction gives
an estimate of the clean latents x0 and of the noise ε (see `schedule`), and a step goes from
the noise level ᾱ = ᾱ_{t_i} to the lower level ᾱ' = ᾱ_{t_{i+1}}; the last goes to ᾱ' = 1, which
is x0 itself. Between the two levels (Nichol & Dhariwal 2021, eq. 19; with n = T these are the
betas of training, and β̃ is Ho 2020, eq. 7):

    β = 1 − ᾱ / ᾱ'                     the noise added between the levels
    β̃ = β · (1 − ᾱ') / (1 − ᾱ)         its variance once x0 is known, DDPM's "fixed small"

    DDPM   x' = √ᾱ' β / (1 − ᾱ) · x0 + √(ᾱ/ᾱ') (1 − ᾱ') / (1 − ᾱ) · x + √β̃ · z
                                                                       (Ho 2020, eq. 7, 11)
    DDIM   x' = √ᾱ' · x0 + √(1 − ᾱ' − σ²) · ε + σ · z,   σ = η √β̃     (Song 2021, eq. 12, 16)

where z is fresh noise. DDIM is deterministic with η = 0 and is DDPM with η = 1.

`Sampler` owns the timesteps and the loop; a subclass owns `step`. A sampler keeps nothing
between or during calls: it can be shared, and `sample` is a function of its arguments. Latents
stay float32 whatever the precision of the network.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from latentddpm.diffusion.schedule import NoiseSchedule
from latentddpm.errors import UserError, check_choice

TIMESTEP_SPACINGS = ("leading", "trailing", "linspace")

Array = Any
Denoiser = Callable[[Array, Array], Array]  # (noisy_latents, timesteps) -> prediction
Noise = Callable[[int], Array]  # step_index -> standard normal, the shape of the latents


class Sampler:
    """The timesteps and the loop that all samplers share. A subclass writes `step`.

    Args:
        schedule: the `NoiseSchedule` that the denoiser was trained with.
        num_steps: how many timesteps to visit, 1 .. T.
        timestep_spacing: which ones (Lin 2023, table 2). "leading" starts one stride below T
            and ends at `steps_offset`; "trailing" starts at T−1 and ends one stride above −1:
            the better one for few steps; "linspace" has both ends, T−1 and 0.
        steps_offset: what "leading" adds to every timestep; no other spacing takes it. By
            default 1, as Stable Diffusion has it, except 0 where 1 does not fit (n = T).

    Attributes:
        timesteps: int64 NumPy (num_steps,), read-only, strictly decreasing, in 0 .. T−1.

    Raises:
        UserError: an unknown spacing, or a number outside its range.
    """

    def __init__(
        self,
        schedule: NoiseSchedule,
        num_steps: int,
        timestep_spacing: str = "leading",
        steps_offset: int | None = None,
    ) -> None:
        self.schedule = schedule
        self.timestep_spacing = check_choice(
            "timestep_spacing", timestep_spacing, TIMESTEP_SPACINGS
        )
        self.timesteps = _timesteps(
            schedule.num_train_timesteps, num_steps, timestep_spacing, steps_offset
        )
        self.timesteps.setflags(write=False)
        self.num_steps = len(self.timesteps)

    @property
    def stochastic(self) -> bool:
        """Whether `sample` needs a `noise` function."""
        return False

    def sample(
        self,
        denoiser: Denoiser,
        latents: Array,
        noise: Noise | None = None,
        callback: Callable[[int, int, Array, Array], None] | None = None,
    ) -> Array:
        """Denoise `latents` from pure noise to clean scaled latents.

        Args:
            denoiser: `denoiser(noisy_latents, timesteps) -> prediction`, called with float32
                (B, h, w, c) and int32 (B,); the prediction has the shape of `noisy_latents`.
            latents: the starting noise, standard normal (B, h, w, c).
            noise: `noise(step_index) -> (B, h, w, c)`, the standard normal noise of one step;
                asked at most once for each of the steps 0 .. num_steps−1, by stochastic
                samplers only.
            callback: `callback(step_index, timestep, latents, x0)` after each step: the
                timestep it came from, the latents it reached, its estimate of the clean ones.

        Returns:
            float32 (B, h, w, c).

        Raises:
            UserError: a stochastic sampler without `noise`, or a prediction or noise whose
                shape is not that of the latents.
        """
        if self.stochastic and noise is None:
            raise UserError(f"noise: {type(self).__name__} draws noise in its steps; pass noise=")
        latents = keras.ops.cast(latents, "float32")

        def denoise(latents: Array, step_index: int) -> tuple[Array, Array]:
            timesteps = keras.ops.full(
                keras.ops.shape(latents)[:1], int(self.timesteps[step_index]), dtype="int32"
            )
            prediction = _like(latents, denoiser(latents, timesteps), "the denoiser's prediction")
            return (
                self.schedule.predict_x0(prediction, latents, timesteps),
                self.schedule.predict_noise(prediction, latents, timesteps),
            )

        def draw(step_index: int) -> Array:
            return _like(latents, noise(step_index), "noise(step_index)")

        history = None
        for step_index, timestep in enumerate(self.timesteps):
            latents, x0, history = self.step(step_index, latents, denoise, draw, history)
            if callback is not None:
                callback(step_index, int(timestep), latents, x0)
        return latents

    def step(
        self,
        step_index: int,
        latents: Array,
        denoise: Callable[[Array, int], tuple[Array, Array]],
        noise: Noise,
        history: Any,
    ) -> tuple[Array, Array, Any]:
        """One step, from the noise level of `step_index` to the next: what a subclass writes.

        Args:
            step_index: 0 .. num_steps−1; `alphas_cumprod_at` has both levels.
            latents: float32 (B, h, w, c) at this step's level.
            denoise: `denoise(latents, step_index) -> x0, epsilon`, both float32 (B, h, w, c):
                one call of the network. A method of higher order may call it more than once.
            noise: `noise(step_index)`, float32 (B, h, w, c).
            history: None at the first step, then whatever the step before returned: the
                memory of a multistep method, which lives no longer than one `sample`.

        Returns:
            The latents at the next level, the estimate x0, and the new history.
        """
        raise NotImplementedError(f"{type(self).__name__} has no step")

    def alphas_cumprod_at(self, step_index: int) -> tuple[float, float]:
        """ᾱ, ᾱ': the level `step_index` starts from and the one it goes to; 1.0 at the end."""
        levels = self.schedule.alphas_cumprod[self.timesteps[step_index : step_index + 2]]
        return float(levels[0]), float(levels[1]) if len(levels) == 2 else 1.0


class DDPMSampler(Sampler):
    """Ancestral sampling (Ho 2020, algorithm 2), with the "fixed small" variance β̃.

    Arguments, attributes and errors are those of `Sampler`. With fewer steps than T the betas
    are those between the visited timesteps (Nichol & Dhariwal 2021, eq. 19).
    """

    @property
    def stochastic(self) -> bool:
        return True

    def step(
        self, step_index: int, latents: Array, denoise: Callable, noise: Noise, history: Any
    ) -> tuple[Array, Array, Any]:
        """Ho 2020, eq. 7: x' ~ N(μ̃(x, x0), β̃); with ε in place of x0, μ̃ is eq. 11."""
        x0, _ = denoise(latents, step_index)
        alpha_cumprod, next_alpha_cumprod = self.alphas_cumprod_at(step_index)
        alpha = alpha_cumprod / next_alpha_cumprod
        x0_weight = math.sqrt(next_alpha_cumprod) * (1 - alpha) / (1 - alpha_cumprod)
        latents_weight = math.sqrt(alpha) * (1 - next_alpha_cumprod) / (1 - alpha_cumprod)
        latents = x0_weight * x0 + latents_weight * latents
        variance = posterior_variance(alpha_cumprod, next_alpha_cumprod)
        if variance > 0:
            latents = latents + math.sqrt(variance) * noise(step_index)
        return latents, x0, None


class DDIMSampler(Sampler):
    """Implicit sampling (Song 2021): good at few steps, deterministic with `eta=0`.

    Arguments, attributes and errors are those of `Sampler`, and

    Args:
        eta: the share of DDPM's noise that each step draws, 0 (none) .. 1 (DDPM itself).
    """

    def __init__(
        self,
        schedule: NoiseSchedule,
        num_steps: int,
        timestep_spacing: str = "leading",
        steps_offset: int | None = None,
        eta: float = 0.0,
    ) -> None:
        super().__init__(schedule, num_steps, timestep_spacing, steps_offset)
        if not 0 <= eta <= 1:
            raise UserError(f"eta: expected 0 (deterministic) to 1 (DDPM), got {eta!r}")
        self.eta = float(eta)

    @property
    def stochastic(self) -> bool:
        return self.eta > 0

    def step(
        self, step_index: int, latents: Array, denoise: Callable, noise: Noise, history: Any
    ) -> tuple[Array, Array, Any]:
        """Song 2021, eq. 12 with the σ of eq. 16."""
        x0, epsilon = denoise(latents, step_index)
        alpha_cumprod, next_alpha_cumprod = self.alphas_cumprod_at(step_index)
        sigma = self.eta * math.sqrt(posterior_variance(alpha_cumprod, next_alpha_cumprod))
        direction = math.sqrt(max(1 - next_alpha_cumprod - sigma**2, 0.0))
        latents = math.sqrt(next_alpha_cumprod) * x0 + direction * epsilon
        if sigma > 0:
            latents = latents + sigma * noise(step_index)
        return latents, x0, None


def posterior_variance(alpha_cumprod: float, next_alpha_cumprod: float) -> float:
    """β̃ = (1 − ᾱ') / (1 − ᾱ) · (1 − ᾱ / ᾱ') (Ho 2020, eq. 7): the variance of a DDPM step.

    Args:
        alpha_cumprod: ᾱ of the level the step leaves, in (0, 1).
        next_alpha_cumprod: ᾱ' of the level it goes to, in (ᾱ, 1].
    """
    beta = 1 - alpha_cumprod / next_alpha_cumprod
    return (1 - next_alpha_cumprod) / (1 - alpha_cumprod) * beta


_SAMPLERS: dict[str, type[Sampler]] = {"ddim": DDIMSampler, "ddpm": DDPMSampler}
NAMES = tuple(_SAMPLERS)


def get(name: str) -> type[Sampler]:
    """The sampler class called `name`, one of `NAMES`.

    Raises:
        UserError: an unknown name.
    """
    return _SAMPLERS[check_choice("sampler", name, NAMES)]


def _timesteps(total: int, count: int, spacing: str, offset: int | None) -> np.ndarray:
    """`count` strictly decreasing timesteps in 0 .. total−1, int64."""
    if not isinstance(count, int | np.integer) or not 1 <= count <= total:
        raise UserError(f"num_steps: expected a whole number from 1 to {total}, got {count!r}")
    if spacing == "leading":
        # A stride of total // count leaves total % count timesteps unvisited at the noisy end.
        # As long as that is less than one stride (always so for count <= √total) we keep to
        # it, for Stable Diffusion and diffusers do. Beyond, sampling would start far too low
        # (count 501 of 1000: at t = 501), and the steps are spread over the whole range.
        span = total - total % count if total % count < total // count else total
        timesteps = np.arange(count - 1, -1, -1) * span // count
        room = total - 1 - int(timesteps[0])
        if offset is None:
            offset = min(1, room)
        if not isinstance(offset, int | np.integer) or not 0 <= offset <= room:
            raise UserError(
                f"steps_offset: expected a whole number from 0 to {room} for {count} of {total} "
                f"steps, got {offset!r}"
            )
        return timesteps + offset
    if offset is not None:
        raise UserError(f"steps_offset: only 'leading' spacing takes one, not {spacing!r}")
    if spacing == "trailing":
        return np.round(np.arange(count, 0, -1) * total / count).astype("int64") - 1
    if count == 1:
        return np.array([total - 1])
    return np.linspace(0, total - 1, count).round()[::-1].astype("int64")


def _like(latents: Array, values: Array, what: str) -> Array:
    """`values` in float32, once they have the shape of `latents`."""
    if tuple(values.shape) != tuple(latents.shape):
        raise UserError(
            f"{what}: expected the shape of the latents, {tuple(latents.shape)}, "
            f"got {tuple(values.shape)}"
        )
    return keras.ops.cast(values, "float32")
