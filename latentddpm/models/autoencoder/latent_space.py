"""Latent space: the normalisation of raw latents to those of diffusion (Rombach et al. 2022).

    latents = (raw_latents − shift_factor) · scaling_factor

Both are one number, or one for each channel. A single scaling factor is Stable Diffusion's; with a
shift it is that of Stable Diffusion 3 and Flux; a mean and a standard deviation for each channel
(diffusers' `latents_mean` and `latents_std`) are a shift and the inverse of a scale.

Only this module shifts and scales. `Autoencoder` uses it; so does the input pipeline of training,
which reads the numbers from an archive without building the networks. After `train-vae` they are
measured over the raw latents of the training images (`training.autoencoder`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from latentddpm.utils import arrays

Factor = float | Sequence[float]
"""One number for all channels, or one for each."""


@dataclass(frozen=True)
class LatentSpace:
    """Latent space: raw latents ⇄ latents of about unit variance.

    Attributes:
        scaling_factor: multiplies raw latents; one number above 0, or one for each channel.
        shift_factor: subtracted from raw latents before that, one number or one for each channel.

    Raises:
        ValueError: a scaling factor that is not above 0, or a number that is not finite.

    Example:
        >>> space = LatentSpace(scaling_factor=[2.0, 0.5], shift_factor=[1.0, -1.0])
        >>> space.to_latents(np.array([[[[3.0, 3.0]]]], "float32")).tolist()
        [[[[4.0, 2.0]]]]
        >>> space.to_raw(np.array([[[[4.0, 2.0]]]], "float32")).tolist()
        [[[[3.0, 3.0]]]]
    """

    scaling_factor: Factor
    shift_factor: Factor = 0.0

    def __post_init__(self) -> None:
        for name in ("scaling_factor", "shift_factor"):
            value = getattr(self, name)
            object.__setattr__(self, name, tuple(value) if np.ndim(value) else value)
            if not np.all(np.isfinite(value)):
                raise ValueError(f"{name}={value}, expected finite numbers")
        if not np.all(np.asarray(self.scaling_factor) > 0):
            raise ValueError(f"scaling_factor={self.scaling_factor}, expected positive numbers")

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> LatentSpace:
        """Latent space of an autoencoder's configuration.

        Args:
            config: returned by `Autoencoder.get_config`.
        """
        return cls(config["scaling_factor"], config.get("shift_factor", 0.0))

    @property
    def log_scale(self) -> float:
        """Logarithm of the scaling factor, its mean over the channels."""
        return float(np.mean(np.log(self.scaling_factor)))

    def to_latents(
        self,
        mean: Any,
        logvar: Any = None,
        noise: Any = None,
        exp: Callable[[Any], Any] = arrays.exp,
    ) -> Any:
        """Scaled latents: the mode of the posterior, or with `noise` a sample of it.

        Args:
            mean, logvar: moments of the encoder, (B, h, w, c) each; `logvar` is needed for a
                sample.
            noise: standard normal, (B, h, w, c).
            exp: the exponential function. A tf.data pipeline passes `tf.exp`, so that it works
                on any Keras backend.

        Raises:
            ValueError: `noise` without `logvar`.
        """
        if noise is not None and logvar is None:
            raise ValueError("to_latents: a posterior sample needs logvar beside noise")
        raw = mean if noise is None else mean + exp(0.5 * logvar) * noise
        if self.shift_factor != 0:
            raw = raw - _numbers(self.shift_factor)
        return raw * _numbers(self.scaling_factor)

    def to_raw(self, latents: Any) -> Any:
        """Raw latents, as the decoder takes them, of scaled `latents`."""
        raw = latents / _numbers(self.scaling_factor)
        return raw if self.shift_factor == 0 else raw + _numbers(self.shift_factor)


def _numbers(factor: Factor) -> Any:
    """A single number as it is, one for each channel as float32 that broadcasts over latents."""
    return np.asarray(factor, np.float32) if np.ndim(factor) else factor
