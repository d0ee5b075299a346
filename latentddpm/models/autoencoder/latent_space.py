"""Latent space: the scaling of raw latents to those of diffusion (Rombach et al. 2022).

    latents = raw_latents · scaling_factor

Only this module multiplies by the factor. `Autoencoder` uses it; so does the input pipeline of
training, which reads the factor from an archive without building the networks. After `train-vae`
the factor is 1 / std of the training images' raw latents (`training.autoencoder`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from keras import ops


@dataclass(frozen=True)
class LatentSpace:
    """Latent space: raw latents ⇄ latents of about unit variance.

    Attributes:
        scaling_factor: multiplies raw latents.
    """

    scaling_factor: float

    def to_latents(
        self,
        mean: Any,
        logvar: Any = None,
        noise: Any = None,
        exp: Callable[[Any], Any] = ops.exp,
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
        if noise is None:
            return mean * self.scaling_factor
        return (mean + exp(0.5 * logvar) * noise) * self.scaling_factor

    def to_raw(self, latents: Any) -> Any:
        """Raw latents, as the decoder takes them, of scaled `latents`."""
        return latents / self.scaling_factor
