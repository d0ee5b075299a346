"""The forward process: how much signal and how much noise there is at each timestep.

With betas β_t, α_t = 1 − β_t and ᾱ_t = Π α_s, a clean latent x0 and noise ε ~ N(0, I):

    x_t = √ᾱ_t · x0 + √(1 − ᾱ_t) · ε                  `add_noise`    (Ho 2020, eq. 4)
    v_t = √ᾱ_t · ε − √(1 − ᾱ_t) · x0                  v_prediction   (Salimans & Ho 2022, §4)

√ᾱ_t is the `signal_rate`, √(1 − ᾱ_t) the `noise_rate`; their squares add up to one, so
(x_t, v_t) is (x0, ε) turned by an angle, and any two of x0, ε, v, x_t give the others:

    from ε:   x0 = (x_t − noise_rate · ε) / signal_rate               (Ho 2020, eq. 15)
    from v:   x0 = signal_rate · x_t − noise_rate · v,   ε = noise_rate · x_t + signal_rate · v
    from x0:  ε  = (x_t − signal_rate · x0) / noise_rate

The betas, t = 0 .. T−1 (the papers count 1 .. T):

    linear         evenly spaced from `beta_start` to `beta_end`      (Ho 2020, §4)
    scaled_linear  evenly spaced in √β; the choice of latent diffusion (Rombach 2022, its code)
    cosine         ᾱ_t = f(t) / f(0),  f(t) = cos²((t/T + 0.008) / 1.008 · π/2),
                   β_t at most 0.999                    (Nichol & Dhariwal 2021, eq. 17, §3.2)

None of them ends in pure noise: √ᾱ_{T−1} of scaled_linear is 0.068, enough to tell a network
how bright the image is, while sampling starts from noise that does not know. Zero terminal SNR
moves √ᾱ so that it ends at 0 and still begins where it did (Lin 2023, algorithm 1):

    √ᾱ_t ← (√ᾱ_t − √ᾱ_{T−1}) · √ᾱ_0 / (√ᾱ_0 − √ᾱ_{T−1})

There the noise is all there is, ε says nothing about x0: such a model predicts v or x0.

Tables are float64 NumPy and are cast where they are used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

from latentddpm.errors import UserError, check_choice

BETA_SCHEDULES = ("linear", "scaled_linear", "cosine")
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")

# What ᾱ = 0 counts as where σ = √(1 − ᾱ) / √ᾱ has to be finite: σ = 4096, as in diffusers.
NEARLY_NO_SIGNAL = 2.0**-24

Array = Any  # a NumPy array, or a tensor of the Keras backend (or of TensorFlow, in tf.data)


@keras.saving.register_keras_serializable(package="latentddpm")
class NoiseSchedule:
    """Noise levels of the T training timesteps, and the arithmetic between x0, ε, v and x_t.

    Args:
        beta_schedule: "scaled_linear" (latent diffusion), "linear" (DDPM) or "cosine".
        beta_start: β_0, in (0, 1). Not used by "cosine".
        beta_end: β_{T−1}, in [beta_start, 1). Not used by "cosine".
        num_train_timesteps: T, at least 1.
        prediction_type: what the network predicts: "epsilon", "v_prediction" or "sample".
        rescale_zero_terminal_snr: make ᾱ_{T−1} zero (Lin 2023, algorithm 1). Not for "epsilon".

    Attributes (float64 NumPy, read-only, shape (T,)):
        betas, alphas, alphas_cumprod: β_t, α_t, ᾱ_t.
        signal_rate, noise_rate: √ᾱ_t, √(1 − ᾱ_t).
        sigmas: noise_rate / signal_rate, the noise level of variance-exploding samplers.
        snr, log_snr: ᾱ_t / (1 − ᾱ_t) = sigmas⁻², and its natural logarithm.
        With zero terminal SNR the last of `sigmas` and `log_snr` are ∞ and −∞.

    The methods take tensors, float32, or NumPy arrays, whose precision they keep. Latents may
    have any rank; `timesteps` is int (B,), one per example, or a scalar, in 0 .. T−1. Float
    timesteps may lie between the whole ones: there σ is interpolated, see `sigmas_at`.

    Raises:
        UserError: an unknown choice, or a number outside its range.
    """

    def __init__(
        self,
        beta_schedule: str = "scaled_linear",
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
        num_train_timesteps: int = 1000,
        prediction_type: str = "epsilon",
        rescale_zero_terminal_snr: bool = False,
    ) -> None:
        self.beta_schedule = check_choice("beta_schedule", beta_schedule, BETA_SCHEDULES)
        self.prediction_type = check_choice("prediction_type", prediction_type, PREDICTION_TYPES)
        if not isinstance(num_train_timesteps, int | np.integer) or num_train_timesteps < 1:
            raise UserError(
                f"num_train_timesteps: {num_train_timesteps!r} is not a whole number of at least 1"
            )
        if not 0 < beta_start <= beta_end < 1:
            raise UserError(
                "beta_start, beta_end: expected 0 < beta_start <= beta_end < 1, "
                f"got {beta_start!r} and {beta_end!r}"
            )
        if not isinstance(rescale_zero_terminal_snr, bool):
            raise UserError(
                f"rescale_zero_terminal_snr: expected true or false, got "
                f"{rescale_zero_terminal_snr!r}"
            )
        self.rescale_zero_terminal_snr = rescale_zero_terminal_snr
        self.num_train_timesteps = int(num_train_timesteps)
        self.beta_start = float(beta_start)
        self.beta_end = float(beta_end)

        self.betas = _betas(beta_schedule, beta_start, beta_end, self.num_train_timesteps)
        if rescale_zero_terminal_snr:
            self._check_zero_terminal_snr()
            self.betas = _rescale_zero_terminal_snr(self.betas)
        self.alphas = 1 - self.betas
        self.alphas_cumprod = np.cumprod(self.alphas)
        least = np.finfo("float32").tiny
        if (self.alphas_cumprod < least)[: -1 if rescale_zero_terminal_snr else None].any():
            raise UserError(
                f"beta_end: with {beta_end!r} over {num_train_timesteps} timesteps no signal is "
                "left at the last one; expected smaller betas or fewer timesteps"
            )
        self.signal_rate = np.sqrt(self.alphas_cumprod)
        self.noise_rate = np.sqrt(1 - self.alphas_cumprod)
        with np.errstate(divide="ignore"):  # ᾱ = 0: σ = ∞, log snr = −∞
            self.sigmas = self.noise_rate / self.signal_rate
            self.snr = self.alphas_cumprod / (1 - self.alphas_cumprod)
            self.log_snr = np.log(self.snr)
        for value in vars(self).values():
            if isinstance(value, np.ndarray):
                value.setflags(write=False)

    def add_noise(
        self,
        latents: Array,
        noise: Array,
        timesteps: Array,
        take: Callable[[Array, Array], Array] = keras.ops.take,
    ) -> Array:
        """`noisy_latents`, x_t: the latents at the noise level of `timesteps` (Ho 2020, eq. 4).

        Args:
            latents: x0, scaled latents, (B, ...), or (...) with scalar timesteps.
            noise: ε, standard normal, the shape of `latents`.
            timesteps: int (B,) or scalar, 0 .. T−1.
            take: reads a table at the timesteps. A tf.data pipeline passes `tf.gather`, and
                the rest is plain operators, so that it works whatever the Keras backend is.

        Returns:
            x_t, the shape of `latents`.

        Raises:
            UserError: NumPy timesteps outside 0 .. T−1.
        """
        signal_rate, noise_rate = self._rates(timesteps, latents, take)
        return signal_rate * latents + noise_rate * noise

    def target(
        self,
        latents: Array,
        noise: Array,
        timesteps: Array,
        take: Callable[[Array, Array], Array] = keras.ops.take,
    ) -> Array:
        """What the network regresses to: ε, v or x0, by `prediction_type`.

        Arguments, returned shape and errors are those of `add_noise`.
        """
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "sample":
            return latents
        signal_rate, noise_rate = self._rates(timesteps, latents, take)
        return signal_rate * noise - noise_rate * latents

    def min_snr_weights(self, gamma: float) -> np.ndarray:
        """How much the squared error at each timestep counts (min-SNR-γ, Hang 2023).

        An error in x0 counts min(snr, γ), so the loss of each `prediction_type` counts

            epsilon  min(snr, γ) / snr      v  min(snr, γ) / (snr + 1)      x0  min(snr, γ)

        Where snr is 0 (zero terminal SNR) the weight is 1: the formulas for v and x0 give 0,
        and sampling with trailing spacing starts at a timestep that was never trained.

        Args:
            gamma: γ > 0; 5 in the paper.

        Returns:
            float64 (T,).
        """
        clipped = np.minimum(self.snr, gamma)
        divisor = {"epsilon": self.snr, "v_prediction": self.snr + 1, "sample": 1.0}
        weights = np.ones_like(clipped)
        return np.divide(clipped, divisor[self.prediction_type], out=weights, where=self.snr > 0)

    def predict_x0(self, prediction: Array, noisy_latents: Array, timesteps: Array) -> Array:
        """The clean latents x0 that `prediction` implies at `noisy_latents`.

        Args:
            prediction: the network's output, of `prediction_type`, the shape of `noisy_latents`.
            noisy_latents: x_t, (B, ...), or (...) with scalar timesteps.
            timesteps: int (B,) or scalar, 0 .. T−1.

        Returns:
            x0, the shape of `noisy_latents`.

        Raises:
            UserError: NumPy timesteps outside 0 .. T−1.
        """
        return self.split(prediction, noisy_latents, *self._rates(timesteps, noisy_latents))[0]

    def predict_noise(self, prediction: Array, noisy_latents: Array, timesteps: Array) -> Array:
        """The noise ε that `prediction` implies at `noisy_latents`.

        Arguments, returned shape and errors are those of `predict_x0`.
        """
        return self.split(prediction, noisy_latents, *self._rates(timesteps, noisy_latents))[1]

    def split(
        self, prediction: Array, noisy_latents: Array, signal_rate: Array, noise_rate: Array
    ) -> tuple[Array, Array]:
        """x0 and ε that `prediction` implies at a noise level, also one between two timesteps.

        Args:
            prediction: the network's output, of `prediction_type`, the shape of `noisy_latents`.
            noisy_latents: x = signal_rate · x0 + noise_rate · ε, (B, ...).
            signal_rate, noise_rate: √ᾱ and √(1 − ᾱ) of the level, numbers or (B, 1, ...).

        Returns:
            x0 and ε, each the shape of `noisy_latents`.
        """
        if self.prediction_type == "epsilon":
            return (noisy_latents - noise_rate * prediction) / signal_rate, prediction
        if self.prediction_type == "sample":
            return prediction, (noisy_latents - signal_rate * prediction) / noise_rate
        return (
            signal_rate * noisy_latents - noise_rate * prediction,
            noise_rate * noisy_latents + signal_rate * prediction,
        )

    def sigmas_at(self, timesteps: np.ndarray) -> np.ndarray:
        """σ at timesteps that need not be whole, 0 .. T−1: linear in t, as in diffusers.

        Finite also with zero terminal SNR: ᾱ = 0 counts as `NEARLY_NO_SIGNAL`.

        Returns:
            float64, the shape of `timesteps`.
        """
        return np.interp(timesteps, np.arange(self.num_train_timesteps), self._finite_sigmas())

    def timesteps_at(self, sigmas: np.ndarray) -> np.ndarray:
        """The timesteps of noise levels σ > 0: linear in log σ between the whole ones.

        Returns:
            float64, the shape of `sigmas`, in 0 .. T−1.
        """
        table = np.log(self._finite_sigmas())
        return np.interp(np.log(sigmas), table, np.arange(self.num_train_timesteps))

    def _finite_sigmas(self) -> np.ndarray:
        alphas_cumprod = self.alphas_cumprod.copy()
        if alphas_cumprod[-1] == 0:  # and still the least of all, however small the others are
            alphas_cumprod[-1] = min(NEARLY_NO_SIGNAL, alphas_cumprod[-2] / 2)
        return np.sqrt(1 / alphas_cumprod - 1)

    def _check_zero_terminal_snr(self) -> None:
        if self.prediction_type == "epsilon":
            raise UserError(
                "rescale_zero_terminal_snr: at the last timestep there is only noise, and "
                "prediction_type 'epsilon' says nothing about the image there; choose "
                "prediction_type 'v_prediction' or 'sample'"
            )
        if self.num_train_timesteps == 1:
            raise UserError("rescale_zero_terminal_snr: expected at least 2 num_train_timesteps")

    def _rates(
        self,
        timesteps: Array,
        latents: Array,
        take: Callable[[Array, Array], Array] = keras.ops.take,
    ) -> tuple[Array, Array]:
        """`signal_rate` and `noise_rate` at `timesteps`, shaped to broadcast over `latents`."""
        dtype = "float32"
        if isinstance(timesteps, int | float | np.number | np.ndarray):
            timesteps = np.asarray(timesteps)
            if np.min(timesteps) < 0 or np.max(timesteps) > self.num_train_timesteps - 1:
                raise UserError(
                    f"timesteps: expected 0 to {self.num_train_timesteps - 1}, "
                    f"got {np.min(timesteps)} to {np.max(timesteps)}"
                )
            if isinstance(latents, np.ndarray):
                take, dtype = np.take, latents.dtype
        if "float" in keras.backend.standardize_dtype(timesteps.dtype):
            signal_rate, noise_rate = self._rates_between(timesteps, take, dtype)
        else:
            signal_rate = take(self.signal_rate.astype(dtype), timesteps)
            noise_rate = take(self.noise_rate.astype(dtype), timesteps)
        if len(signal_rate.shape) == 1:  # (B,) -> (B, 1, ..., 1)
            axes = (..., *[None] * (len(latents.shape) - 1))
            return signal_rate[axes], noise_rate[axes]
        return signal_rate, noise_rate

    def _rates_between(
        self, timesteps: Array, take: Callable[[Array, Array], Array], dtype: Any
    ) -> tuple[Array, Array]:
        """The rates at float timesteps: those of σ, interpolated as in `sigmas_at`."""
        if isinstance(timesteps, np.ndarray):
            sigmas = self.sigmas_at(timesteps).astype(dtype)
        else:
            table = self._finite_sigmas().astype(dtype)
            lower = keras.ops.floor(timesteps)
            upper = keras.ops.minimum(lower + 1, self.num_train_timesteps - 1)
            weight = timesteps - lower
            lower, upper = (take(table, keras.ops.cast(t, "int32")) for t in (lower, upper))
            sigmas = lower + weight * (upper - lower)
        signal_rate = (1 + sigmas**2) ** -0.5
        return signal_rate, sigmas * signal_rate

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, as plain JSON types."""
        return {
            "beta_schedule": self.beta_schedule,
            "beta_start": self.beta_start,
            "beta_end": self.beta_end,
            "num_train_timesteps": self.num_train_timesteps,
            "prediction_type": self.prediction_type,
            "rescale_zero_terminal_snr": self.rescale_zero_terminal_snr,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> NoiseSchedule:
        """The schedule that `get_config` described; keys left out take their defaults.

        Raises:
            UserError: an unknown key, or a value the constructor refuses.
        """
        known = cls().get_config()
        for key in config:
            check_choice("schedule key", key, known)
        return cls(**config)

    def __repr__(self) -> str:
        arguments = ", ".join(f"{key}={value!r}" for key, value in self.get_config().items())
        return f"NoiseSchedule({arguments})"


def _betas(beta_schedule: str, beta_start: float, beta_end: float, count: int) -> np.ndarray:
    """β_0 .. β_{T−1}, float64 (T,)."""
    if beta_schedule == "linear":
        return np.linspace(beta_start, beta_end, count, dtype="float64")
    if beta_schedule == "scaled_linear":
        return np.linspace(beta_start**0.5, beta_end**0.5, count, dtype="float64") ** 2
    alphas_cumprod = np.cos((np.arange(count + 1) / count + 0.008) / 1.008 * math.pi / 2) ** 2
    return np.minimum(1 - alphas_cumprod[1:] / alphas_cumprod[:-1], 0.999)


def _rescale_zero_terminal_snr(betas: np.ndarray) -> np.ndarray:
    """The betas of √ᾱ moved to end at exactly 0 (Lin 2023, algorithm 1), float64 (T,)."""
    signal_rate = np.sqrt(np.cumprod(1 - betas))
    first, last = signal_rate[0], signal_rate[-1]
    alphas_cumprod = ((signal_rate - last) * (first / (first - last))) ** 2
    return 1 - alphas_cumprod / np.concatenate([[1.0], alphas_cumprod[:-1]])
