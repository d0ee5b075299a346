"""Noise schedule of the forward process: the signal and the noise at each timestep.

With betas β_t, α_t = 1 − β_t and ᾱ_t = Π α_s, a clean latent x0 and noise ε ~ N(0, I):

    x_t = √ᾱ_t · x0 + √(1 − ᾱ_t) · ε                  `add_noise`    (Ho 2020, eq. 4)
    v_t = √ᾱ_t · ε − √(1 − ᾱ_t) · x0                  v_prediction   (Salimans & Ho 2022, §4)

√ᾱ_t is the `signal_rate`, √(1 − ᾱ_t) the `noise_rate`. Their squares add up to one, so
(x_t, v_t) is (x0, ε) turned by an angle, and any two of x0, ε, v, x_t give the others:

    from ε:   x0 = (x_t − noise_rate · ε) / signal_rate               (Ho 2020, eq. 15)
    from v:   x0 = signal_rate · x_t − noise_rate · v,   ε = noise_rate · x_t + signal_rate · v
    from x0:  ε  = (x_t − signal_rate · x0) / noise_rate

The betas, and zero terminal SNR, are in `diffusion.betas`. With zero terminal SNR ᾱ_{T−1} = 0: the
last timestep is pure noise, where ε says nothing about x0, so such a model predicts v or x0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from latentddpm.choices import PREDICTIONS
from latentddpm.diffusion.betas import BETA_SCHEDULES, make_betas, with_zero_terminal_snr
from latentddpm.diffusion.process import Array, ForwardProcess
from latentddpm.errors import UserError, check_choice
from latentddpm.utils import arrays

PREDICTION_TYPES = PREDICTIONS["ddpm"]

NEARLY_NO_SIGNAL = 2.0**-24
"""ᾱ in place of 0 where σ = √(1 − ᾱ) / √ᾱ has to be finite: σ = 4096, as in diffusers."""


class NoiseSchedule(ForwardProcess):
    """Noise schedule: levels of the T training timesteps, and conversions of x0, ε, v and x_t.

    The methods take tensors, and compute in float32, or NumPy arrays, whose precision they keep.
    Latents may have any rank. `timesteps` is int (B,), one per example, or a scalar, in 0 .. T−1.
    At float timesteps, which may lie between whole ones, σ is interpolated; see `sigmas_at`.

    Args:
        beta_schedule: "scaled_linear" (latent diffusion), "linear" or "cosine"; see
            `diffusion.betas`.
        beta_start: β_0, in (0, 1). Not used by "cosine". The default is Stable Diffusion's, also
            with "linear"; DDPM's is 1e-4.
        beta_end: β_{T−1}, in [beta_start, 1). Not used by "cosine". DDPM's is 0.02.
        num_train_timesteps: T, at least 1.
        prediction_type: what the network predicts: "epsilon", "v_prediction" or "sample".
        rescale_zero_terminal_snr: make ᾱ_{T−1} zero (Lin 2023, algorithm 1). Not for "epsilon".

    Attributes:
        betas: β_t; like all these tables a read-only NumPy array, float64 (T,).
        alphas: α_t.
        alphas_cumprod: ᾱ_t.
        signal_rate: √ᾱ_t.
        noise_rate: √(1 − ᾱ_t).
        sigmas: noise_rate / signal_rate; it ends at ∞ with zero terminal SNR.
        snr: ᾱ_t / (1 − ᾱ_t) = sigmas⁻².
        log_snr: its natural logarithm; it ends at −∞ with zero terminal SNR.

    Raises:
        UserError: an unknown choice, or a number outside its range.

    Example:
        >>> schedule = latentddpm.NoiseSchedule()
        >>> latents, noise = np.zeros((2, 8, 8, 4)), np.ones((2, 8, 8, 4))
        >>> noisy_latents = schedule.add_noise(latents, noise, np.array([0, 999]))
        >>> noisy_latents[:, 0, 0, 0].round(3)
        array([0.029, 0.998])
    """

    kind = "ddpm"

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
        self._set_num_train_timesteps(num_train_timesteps)
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
        self.beta_start = float(beta_start)
        self.beta_end = float(beta_end)

        self.betas = make_betas(beta_schedule, beta_start, beta_end, self.num_train_timesteps)
        if rescale_zero_terminal_snr:
            self._check_zero_terminal_snr()
            self.betas = with_zero_terminal_snr(self.betas)
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

    def target(
        self,
        latents: Array,
        noise: Array,
        timesteps: Array,
        take: Callable[[Array, Array], Array] = arrays.take,
    ) -> Array:
        """Target of the network, the shape of `latents`: ε, v or x0, by `prediction_type`.

        Args:
            latents, noise, timesteps, take: see `add_noise`.

        Raises:
            UserError: NumPy timesteps outside 0 .. T−1.
        """
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "sample":
            return latents
        signal_rate, noise_rate = self._rates(timesteps, latents, take)
        return signal_rate * noise - noise_rate * latents

    def min_snr_weights(self, gamma: float) -> np.ndarray:
        """Weights of the squared error at each timestep (min-SNR-γ, Hang 2023).

        A squared error in x0 is weighted by min(snr, γ). For each `prediction_type` that is

            epsilon  min(snr, γ) / snr      v  min(snr, γ) / (snr + 1)      x0  min(snr, γ)

        Where snr is 0 (zero terminal SNR) the weight is 1. The formulas of v and x0 give 0 there,
        so that the timestep at which trailing spacing starts would never be trained.

        Args:
            gamma: γ > 0; 5 in the paper.

        Returns:
            float64 (T,).
        """
        clipped = np.minimum(self.snr, gamma)
        divisor = {"epsilon": self.snr, "v_prediction": self.snr + 1, "sample": 1.0}
        weights = np.ones_like(clipped)
        return np.divide(clipped, divisor[self.prediction_type], out=weights, where=self.snr > 0)

    def split(
        self, prediction: Array, noisy_latents: Array, signal_rate: Array, noise_rate: Array
    ) -> tuple[Array, Array]:
        """Split a prediction into x0 and ε, at a level that may lie between two timesteps.

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
        """Noise levels σ, float64, at float timesteps: linear in t between whole ones.

        As in diffusers they are finite with zero terminal SNR too: ᾱ = 0 counts as
        `NEARLY_NO_SIGNAL`.

        Args:
            timesteps: of any shape, in 0 .. T−1.
        """
        return np.interp(timesteps, np.arange(self.num_train_timesteps), self._finite_sigmas())

    def timesteps_at(self, sigmas: np.ndarray) -> np.ndarray:
        """Timesteps, float64, of noise levels σ: linear in log σ between whole ones.

        Args:
            sigmas: of any shape, > 0.
        """
        table = np.log(self._finite_sigmas())
        return np.interp(np.log(sigmas), table, np.arange(self.num_train_timesteps))

    def alphas_cumprod_at(self, timesteps: np.ndarray) -> np.ndarray:
        """Levels ᾱ of whole timesteps, float64.

        Args:
            timesteps: int, of any shape, in 0 .. T−1.
        """
        return self.alphas_cumprod[timesteps]

    def scale(self, alpha_cumprod: float) -> float:
        """Scale of x at a level ᾱ: 1, because this process keeps the variance.

        x = scale · (√ᾱ · x0 + √(1 − ᾱ) · ε). Samplers ask for it; see `FlowSchedule.scale`.

        Args:
            alpha_cumprod: ᾱ, 0 .. 1.
        """
        return 1.0

    def _finite_sigmas(self) -> np.ndarray:
        alphas_cumprod = self.alphas_cumprod.copy()
        if alphas_cumprod[-1] == 0:  # still less than all others
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

    def _rates_at(
        self, timesteps: Array, take: Callable[[Array, Array], Array], dtype: Any
    ) -> tuple[Array, Array]:
        """`signal_rate` and `noise_rate`; at float timesteps from σ as of `sigmas_at`."""
        if not arrays.is_floating(timesteps):
            tables = self.signal_rate, self.noise_rate
            return tuple(take(table.astype(dtype), timesteps) for table in tables)
        if isinstance(timesteps, np.ndarray):
            sigmas = self.sigmas_at(timesteps).astype(dtype)
        else:
            table = self._finite_sigmas().astype(dtype)
            lower = arrays.floor(timesteps)
            upper = arrays.minimum(lower + 1, self.num_train_timesteps - 1)
            weight = timesteps - lower
            lower, upper = (take(table, arrays.cast(t, "int32")) for t in (lower, upper))
            sigmas = lower + weight * (upper - lower)
        signal_rate = (1 + sigmas**2) ** -0.5
        return signal_rate, sigmas * signal_rate

    def get_config(self) -> dict[str, Any]:
        """Arguments of the constructor, as plain JSON types."""
        return {
            "beta_schedule": self.beta_schedule,
            "beta_start": self.beta_start,
            "beta_end": self.beta_end,
            "num_train_timesteps": self.num_train_timesteps,
            "prediction_type": self.prediction_type,
            "rescale_zero_terminal_snr": self.rescale_zero_terminal_snr,
        }
