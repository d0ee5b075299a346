"""Facts of an autoencoder: sizes and the latent space, told by its attributes.

An `Autoencoder` of Keras layers has them, and so has one that consists of two graphs
(`models.graph_networks`).
"""

from __future__ import annotations

from typing import Any

from latentddpm.models.autoencoder.latent_space import Factor, LatentSpace
from latentddpm.utils.images.sizes import check_multiple

LOGVAR_RANGE = (-30.0, 20.0)
"""Range to which the log-variance of the posterior is clipped."""


class AutoencoderFacts:
    """Facts of an autoencoder, from attributes with the names of its constructor's arguments."""

    channel_multipliers: tuple[int, ...]
    scaling_factor: Factor
    shift_factor: Factor

    @property
    def downsample_factor(self) -> int:
        """Pixels per position of the latents, along a side: 8 with four levels."""
        return 2 ** (len(self.channel_multipliers) - 1)

    @property
    def latent_space(self) -> LatentSpace:
        """Shift and scaling between raw latents and those of diffusion."""
        return LatentSpace(self.scaling_factor, self.shift_factor)

    def check_size(self, height: int | None, width: int | None) -> None:
        """Check that the size of an image is a multiple of `downsample_factor`.

        Args:
            height, width: in pixels; None, an unknown size in a graph, is valid.

        Raises:
            UserError: it is not; the message has the nearest valid sizes.
        """
        for name, size in (("height", height), ("width", width)):
            if size is not None:
                of = "the autoencoder's downsample factor"
                check_multiple(name, size, self.downsample_factor, of)

    def to_latents(self, mean: Any, logvar: Any = None, noise: Any = None) -> Any:
        """Scaled latents: the mode of the posterior, or with `noise` a sample of it.

        Args:
            mean, logvar: as of `encode`, (B, h, w, c) each.
            noise: standard normal, (B, h, w, c).

        Returns:
            (B, h, w, c), scaled.
        """
        return self.latent_space.to_latents(mean, logvar, noise)
