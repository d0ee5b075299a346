"""The scaling between raw latents and the latents that diffusion sees (Rombach et al. 2022).

    latents = raw_latents · scaling_factor

The only place that multiplies by it; `Autoencoder` has one, and the training pipeline reads
one from the archive without building the networks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from keras import ops


@dataclass(frozen=True)
class LatentSpace:
    """Raw latents ⇄ latents of about unit variance."""

    scaling_factor: float

    def to_latents(
        self,
        mean: Any,
        logvar: Any = None,
        noise: Any = None,
        exp: Callable[[Any], Any] = ops.exp,
    ) -> Any:
        """Scaled latents: the mode, or with `logvar` and `noise` a posterior sample.

        `exp` is for tf.data, which must not depend on Keras's backend: pass `tf.exp`.

        Raises:
            ValueError: `noise` without `logvar`.
        """
        if noise is not None and logvar is None:
            raise ValueError("to_latents: a posterior sample needs logvar beside noise")
        if noise is None:
            return mean * self.scaling_factor
        return (mean + exp(0.5 * logvar) * noise) * self.scaling_factor

    def to_raw(self, latents: Any) -> Any:
        """What the decoder takes."""
        return latents / self.scaling_factor
