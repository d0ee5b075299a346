"""Flow schedule: a straight line from clean latents to noise, for flow matching.

With σ from 0 (clean) to 1 (noise), clean latents x0 and noise ε ~ N(0, I):

    x_σ = (1 − σ) · x0 + σ · ε                        `add_noise`   (Liu 2023, eq. 1; Lipman 2023)
    dx_σ/dσ = ε − x0                                  velocity

The velocity of a pair is constant along its line, so the network regresses to it, or to x0, and
either gives the other two:

    from velocity u:   x0 = x_σ − σ · u,   ε = x_σ + (1 − σ) · u
    from x0:           ε = (x_σ − (1 − σ) · x0) / σ

ε alone says nothing about x0 at σ = 1, so it is no choice. The network is given the timestep
t = T · σ, a number that need not be whole (as in Stable Diffusion 3 and in diffusers).

A shift s moves levels towards noise, where large images need them (Esser 2024, eq. 23):

    σ ← s σ / (1 + (s − 1) σ)

It acts on the σ that training draws, and on those that a sampler visits.

The level of σ is that of a `NoiseSchedule` with the same ratio of noise to signal, σ / (1 − σ), so

    ᾱ = (1 − σ)² / ((1 − σ)² + σ²),   x_σ = (√ᾱ · x0 + √(1 − ᾱ) · ε) / (√ᾱ + √(1 − ᾱ))

and every sampler that knows ᾱ works here, too (`samplers.base`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from latentddpm.choices import PREDICTIONS
from latentddpm.diffusion.options import check_shift
from latentddpm.diffusion.process import Array, ForwardProcess
from latentddpm.errors import UserError, check_choice
from latentddpm.utils import arrays

FLOW_PREDICTIONS = PREDICTIONS["flow"]


class FlowSchedule(ForwardProcess):
    """Flow schedule: x_σ = (1 − σ) x0 + σ ε, with timesteps t = T · σ, float, in 0 .. T.

    It has the methods of `NoiseSchedule`, and stands wherever one does.

    Args:
        num_train_timesteps: T, at least 1.
        prediction_type: what the network predicts: "velocity", ε − x0, or "sample", x0.
        shift: s > 0; above 1 more of training and of sampling is spent on high noise. 1 for none.

    Raises:
        UserError: an unknown choice, or a number outside its range.

    Example:
        >>> schedule = latentddpm.FlowSchedule()
        >>> latents, noise = np.zeros((2, 8, 8, 4)), np.ones((2, 8, 8, 4))
        >>> schedule.add_noise(latents, noise, np.array([250.0, 1000.0]))[:, 0, 0, 0]
        array([0.25, 1.  ])
    """

    kind = "flow"
    continuous = True

    def __init__(
        self,
        num_train_timesteps: int = 1000,
        prediction_type: str = "velocity",
        shift: float = 1.0,
    ) -> None:
        self.prediction_type = check_choice("prediction_type", prediction_type, FLOW_PREDICTIONS)
        self._set_num_train_timesteps(num_train_timesteps)
        check_shift(shift)
        self.shift = float(shift)

    @property
    def last_timestep(self) -> int:
        return self.num_train_timesteps

    def target(
        self,
        latents: Array,
        noise: Array,
        timesteps: Array,
        take: Callable[[Array, Array], Array] = arrays.take,
    ) -> Array:
        """Target of the network, the shape of `latents`: ε − x0 or x0, by `prediction_type`.

        Args:
            latents, noise, timesteps, take: see `add_noise`.
        """
        return latents if self.prediction_type == "sample" else noise - latents

    def split(
        self, prediction: Array, noisy_latents: Array, signal_rate: Array, noise_rate: Array
    ) -> tuple[Array, Array]:
        """Split a prediction into x0 and ε.

        Args:
            prediction: the network's output, of `prediction_type`, the shape of `noisy_latents`.
            noisy_latents: x = signal_rate · x0 + noise_rate · ε, (B, ...).
            signal_rate, noise_rate: 1 − σ and σ of the level, numbers or (B, 1, ...).

        Returns:
            x0 and ε, each the shape of `noisy_latents`.
        """
        if self.prediction_type == "sample":
            return prediction, (noisy_latents - signal_rate * prediction) / noise_rate
        return noisy_latents - noise_rate * prediction, noisy_latents + signal_rate * prediction

    def min_snr_weights(self, gamma: float) -> np.ndarray:
        """Weights of timesteps: none here.

        Raises:
            UserError: always; the density of the timesteps does what weights do.
        """
        raise UserError(
            "min_snr_gamma: a flow schedule has no weights of timesteps; choose "
            "timestep_sampling logit_normal, or a shift"
        )

    def shifted(self, shares: Array) -> Array:
        """Noise levels σ from those before the shift, s σ / (1 + (s − 1) σ).

        Args:
            shares: numbers or tensors, 0 .. 1.
        """
        if self.shift == 1:
            return shares
        return self.shift * shares / (1 + (self.shift - 1) * shares)

    def with_shift(self, shift: float) -> FlowSchedule:
        """Flow schedule of the same network with another shift.

        Raises:
            UserError: `shift` is not above 0.
        """
        return type(self)(self.num_train_timesteps, self.prediction_type, shift)

    def alphas_cumprod_at(self, timesteps: np.ndarray) -> np.ndarray:
        """Levels ᾱ, float64: the share of the signal in the power of x.

        Args:
            timesteps: of any shape, in 0 .. T.
        """
        return 1 / (1 + self.sigmas_at(timesteps) ** 2)

    def sigmas_at(self, timesteps: np.ndarray) -> np.ndarray:
        """Ratio of noise to signal, σ / (1 − σ), float64; ∞ at T.

        Args:
            timesteps: of any shape, in 0 .. T.
        """
        noise_rate = np.asarray(timesteps, "float64") / self.num_train_timesteps
        with np.errstate(divide="ignore"):
            return noise_rate / (1 - noise_rate)

    def scale(self, alpha_cumprod: float) -> float:
        """Scale of x at a level ᾱ: 1 / (√ᾱ + √(1 − ᾱ)), with which the rates add up to one.

        Args:
            alpha_cumprod: ᾱ, 0 .. 1.
        """
        return 1 / (math.sqrt(alpha_cumprod) + math.sqrt(1 - alpha_cumprod))

    def _rates_at(
        self, timesteps: Array, take: Callable[[Array, Array], Array], dtype: Any
    ) -> tuple[Array, Array]:
        """1 − σ and σ."""
        if isinstance(timesteps, np.ndarray):
            noise_rate = (timesteps / self.num_train_timesteps).astype(dtype)
        else:
            if not arrays.is_floating(timesteps):
                timesteps = arrays.cast(timesteps, dtype)
            noise_rate = timesteps / self.num_train_timesteps
        return 1 - noise_rate, noise_rate

    def get_config(self) -> dict[str, Any]:
        """Arguments of the constructor, as plain JSON types, and the kind."""
        return {
            "kind": self.kind,
            "num_train_timesteps": self.num_train_timesteps,
            "prediction_type": self.prediction_type,
            "shift": self.shift,
        }
