"""Forward process: what noise schedules have in common.

At each timestep clean latents x0 and noise ε ~ N(0, I) are mixed with two rates:

    x_t = signal_rate · x0 + noise_rate · ε

A network predicts ε, x0 or a mixture of both, the `prediction_type`, and with x_t any of them
gives the others. A schedule says the rates of a timestep and what its network predicts:

    NoiseSchedule    √ᾱ and √(1 − ᾱ), from betas                                   `schedule`
    FlowSchedule     1 − σ and σ                                                   `flow`
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self

import numpy as np

from latentddpm.errors import UserError, check_choice
from latentddpm.utils import arrays
from latentddpm.utils.arrays import Array


class ForwardProcess:
    """Forward process: base class of schedules. A subclass writes the rates and the predictions.

    Attributes:
        kind: name of the schedule's kind in `schedules.SCHEDULES`.
        continuous: True where timesteps are any numbers, False where they are whole.
        num_train_timesteps: T.
        prediction_type: what the network predicts.
    """

    kind: str
    continuous = False
    num_train_timesteps: int
    prediction_type: str

    @property
    def last_timestep(self) -> int:
        """Timestep of the most noise."""
        return self.num_train_timesteps - 1

    def add_noise(
        self,
        latents: Array,
        noise: Array,
        timesteps: Array,
        take: Callable[[Array, Array], Array] = arrays.take,
    ) -> Array:
        """Noisy latents x_t: `latents` at the noise level of `timesteps` (Ho 2020, eq. 4).

        Args:
            latents: x0, scaled latents, (B, ...), or (...) with scalar timesteps.
            noise: ε, standard normal, the shape of `latents`.
            timesteps: (B,) or scalar, from 0 to `last_timestep`.
            take: `take(table, timesteps)`. A tf.data pipeline passes `tf.gather`, so that it
                works on any Keras backend; all other operations are operators of its tensors.

        Returns:
            x_t, the shape of `latents`.

        Raises:
            UserError: NumPy timesteps outside of that.
        """
        signal_rate, noise_rate = self._rates(timesteps, latents, take)
        return signal_rate * latents + noise_rate * noise

    def predict_x0(self, prediction: Array, noisy_latents: Array, timesteps: Array) -> Array:
        """Clean latents x0 that follow from `prediction` at `noisy_latents`.

        Args:
            prediction: the network's output, of `prediction_type`, the shape of `noisy_latents`.
            noisy_latents: x_t, (B, ...), or (...) with scalar timesteps.
            timesteps: (B,) or scalar, from 0 to `last_timestep`.

        Returns:
            x0, the shape of `noisy_latents`.

        Raises:
            UserError: NumPy timesteps outside of that.
        """
        return self.split(prediction, noisy_latents, *self._rates(timesteps, noisy_latents))[0]

    def predict_noise(self, prediction: Array, noisy_latents: Array, timesteps: Array) -> Array:
        """Noise ε, the shape of `noisy_latents`, that follows from `prediction` there.

        Args:
            prediction, noisy_latents, timesteps: see `predict_x0`.

        Raises:
            UserError: NumPy timesteps outside of that.
        """
        return self.split(prediction, noisy_latents, *self._rates(timesteps, noisy_latents))[1]

    def score(self, prediction: Array, noisy_latents: Array, timesteps: Array) -> Array:
        """Score ∇ log p(x_t) = −ε / noise_rate that follows from `prediction` (Song 2021b, §4).

        Args:
            prediction, noisy_latents, timesteps: see `predict_x0`.

        Returns:
            The shape of `noisy_latents`.

        Raises:
            UserError: NumPy timesteps outside of that.
        """
        rates = self._rates(timesteps, noisy_latents)
        return -self.split(prediction, noisy_latents, *rates)[1] / rates[1]

    def _set_num_train_timesteps(self, value: int) -> None:
        """Set T after a check: a whole number of at least 1."""
        if not isinstance(value, int | np.integer) or value < 1:
            raise UserError(f"num_train_timesteps: {value!r} is not a whole number of at least 1")
        self.num_train_timesteps = int(value)

    def target(
        self,
        latents: Array,
        noise: Array,
        timesteps: Array,
        take: Callable[[Array, Array], Array] = arrays.take,
    ) -> Array:
        """Target of the network, the shape of `latents`; written by a subclass."""
        raise NotImplementedError(f"{type(self).__name__} has no target")

    def split(
        self, prediction: Array, noisy_latents: Array, signal_rate: Array, noise_rate: Array
    ) -> tuple[Array, Array]:
        """Split a prediction into x0 and ε, at the level of two rates; written by a subclass."""
        raise NotImplementedError(f"{type(self).__name__} has no split")

    def get_config(self) -> dict[str, Any]:
        """Arguments of the constructor, as plain JSON types; written by a subclass."""
        raise NotImplementedError(f"{type(self).__name__} has no configuration")

    def _rates_at(
        self, timesteps: Array, take: Callable[[Array, Array], Array], dtype: Any
    ) -> tuple[Array, Array]:
        """`signal_rate` and `noise_rate` of timesteps, in `dtype`; written by a subclass."""
        raise NotImplementedError(f"{type(self).__name__} has no rates")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Schedule of a `config` as of `get_config`; missing keys take their defaults.

        Raises:
            UserError: an unknown key, or a value that the constructor refuses.
        """
        known = cls().get_config()
        for key in config:
            check_choice("schedule key", key, {**known, "kind": cls.kind})
        check_choice("schedule kind", config.get("kind", cls.kind), (cls.kind,))
        return cls(**{key: value for key, value in config.items() if key != "kind"})

    def __repr__(self) -> str:
        arguments = ", ".join(f"{key}={value!r}" for key, value in self.get_config().items())
        return f"{type(self).__name__}({arguments})"

    def _rates(
        self,
        timesteps: Array,
        latents: Array,
        take: Callable[[Array, Array], Array] = arrays.take,
    ) -> tuple[Array, Array]:
        """`signal_rate` and `noise_rate` at `timesteps`, of shapes that broadcast to `latents`."""
        dtype = "float32"
        if isinstance(timesteps, int | float | np.number | np.ndarray):
            timesteps = np.asarray(timesteps)
            if np.min(timesteps) < 0 or np.max(timesteps) > self.last_timestep:
                raise UserError(
                    f"timesteps: expected 0 to {self.last_timestep}, "
                    f"got {np.min(timesteps)} to {np.max(timesteps)}"
                )
            if isinstance(latents, np.ndarray):
                take, dtype = np.take, latents.dtype
        signal_rate, noise_rate = self._rates_at(timesteps, take, dtype)
        if len(signal_rate.shape) == 1:  # (B,) -> (B, 1, ..., 1)
            axes = (..., *[None] * (len(latents.shape) - 1))
            return signal_rate[axes], noise_rate[axes]
        return signal_rate, noise_rate
