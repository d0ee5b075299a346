"""Pixel space: the first stage of a model that diffuses pixels themselves (Ho et al. 2020).

    images in [-1, 1]  ─►  latents = images  ─►  images

It is the identity, with the interface of `Autoencoder`. So a model of pixels trains and samples by
the same code as a model of latents, and has no archive of a first stage.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from latentddpm.models.autoencoder.latent_space import LatentSpace
from latentddpm.utils import arrays


class PixelSpace:
    """Pixel space: images are their own latents.

    Args:
        channels: of the images.

    Attributes:
        image_channels: of the images.
        latent_channels: the same.
        downsample_factor: pixels per position of the latents, 1.
        scaling_factor: of the latents, 1.
        latent_space: neither shifts nor scales.
        variables: weights, none.

    Raises:
        ValueError: no channel.

    Example:
        >>> first_stage = PixelSpace(channels=1)
        >>> images = np.zeros((2, 28, 28, 1), "float32")
        >>> mean, logvar = first_stage.encode(images)
        >>> tuple(first_stage.decode(first_stage.to_latents(mean, logvar)).shape)
        (2, 28, 28, 1)
    """

    downsample_factor = 1
    scaling_factor = 1.0
    latent_space = LatentSpace(1.0)
    variables = ()

    def __init__(self, channels: int = 3) -> None:
        if channels < 1:
            raise ValueError(f"channels={channels}, expected at least 1")
        self.image_channels = self.latent_channels = channels

    def check_size(self, height: int | None, width: int | None) -> None:
        """Check the size of an image: every size is valid.

        Args:
            height, width: in pixels.
        """

    def encode(self, images: Any) -> tuple[Any, Any]:
        """Posterior of images: themselves, with a variance of 0.

        Args:
            images: float (B, H, W, C) in [-1, 1].

        Returns:
            mean and logvar, (B, H, W, C) each; the log-variance is −∞.
        """
        images = arrays.cast(images, "float32")
        return images, arrays.like(np.full(images.shape, -np.inf), images)

    def encode_on_batch(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Posterior of images, as `encode`, in NumPy.

        Args:
            images: float32 (B, H, W, C) in [-1, 1].
        """
        images = np.asarray(images, np.float32)
        return images, np.full_like(images, -np.inf)

    def to_latents(self, mean: Any, logvar: Any = None, noise: Any = None) -> Any:
        """Latents: the images.

        Args:
            mean: images, (B, H, W, C).
            logvar, noise: of no effect, since the variance is 0.
        """
        return mean

    def decode(self, latents: Any) -> Any:
        """Images of latents: the same, float32 (B, H, W, C).

        Args:
            latents: (B, H, W, C).
        """
        return arrays.cast(latents, "float32")

    def __repr__(self) -> str:
        return f"PixelSpace(channels={self.image_channels})"
