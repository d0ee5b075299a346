"""Previews of x̂0 while it is drawn: small pictures by a linear map of the latents.

    colours of a position = W · [its latents and those of its 8 neighbours, 1]

W is fitted once, by least squares, to what the decoder makes of noise of several sizes of blobs.
A preview then takes a millisecond, where the decoder takes as long as a step. Models of pixels
need no map: their x̂0 is a picture.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from latentddpm.generation.frames import decoded

if TYPE_CHECKING:
    from latentddpm.pipeline.latent_diffusion import LatentDiffusion

SIDE = 8
"""Positions along a side of the latents that the map is fitted to."""
BLOBS = (8, 8, 4, 4, 2, 2)
"""Positions along a side of the noise that is scaled to each of them."""
DETAIL = 2
"""Pixels of a preview along a side of a position."""
MOST = 160
"""Pixels along a side of the preview of a model of pixels."""


class Previews:
    """Previews of a model.

    Args:
        model: whose latents are shown; its decoder is called once.

    Example:
        >>> previews = Previews(model)
        >>> previews(x0).shape  # of x0 (4, 16, 16, 4)
        (4, 32, 32, 3)
    """

    def __init__(self, model: LatentDiffusion) -> None:
        self._model = model
        self._map: np.ndarray | None = None
        if model.networks["vae"] is not None:
            noise = _blobs(model.autoencoder.latent_channels)
            pictures = decoded(model, "off", noise).astype(np.float64)
            colours = _cells(pictures, DETAIL * SIDE)
            self._map = np.linalg.lstsq(_neighbours(noise), colours, rcond=None)[0]

    def __call__(self, x0: np.ndarray) -> np.ndarray:
        """Small pictures of estimates.

        Args:
            x0: scaled latents, (B, h, w, c), or images of a model of pixels.

        Returns:
            uint8 (B, H, W, 3).
        """
        x0 = np.asarray(x0, np.float32)
        if self._map is None:
            pictures = self._model.pixels.to_rgb(self._model.pixels.from_images(x0))
            skip = -(-max(pictures.shape[1:3]) // MOST)
            return pictures[:, ::skip, ::skip]
        count, height, width, _ = x0.shape
        cells = (_neighbours(x0) @ self._map).reshape(count, height, width, DETAIL, DETAIL, 3)
        pictures = cells.transpose(0, 1, 3, 2, 4, 5)
        pictures = pictures.reshape(count, height * DETAIL, width * DETAIL, 3)
        return np.clip(np.rint(pictures), 0, 255).astype(np.uint8)


def _blobs(channels: int) -> np.ndarray:
    """Noise of several sizes of blobs, float32 (N, SIDE, SIDE, channels)."""
    numbers = np.random.default_rng(0)
    found = []
    for side in BLOBS:
        small = numbers.standard_normal((channels, side, side)).astype(np.float32)
        large = [np.asarray(Image.fromarray(one).resize((SIDE, SIDE))) for one in small]
        found.append(np.stack(large, axis=-1))
    return np.stack(found)


def _neighbours(latents: np.ndarray) -> np.ndarray:
    """Each position with its 8 neighbours and a 1, (N · h · w, 9 · c + 1)."""
    height, width = latents.shape[1:3]
    padded = np.pad(latents, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    shifted = [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    found = np.concatenate(shifted, axis=-1).reshape(-1, 9 * latents.shape[-1])
    return np.concatenate([found, np.ones((len(found), 1), found.dtype)], axis=1)


def _cells(pictures: np.ndarray, side: int) -> np.ndarray:
    """Mean colours of DETAIL × DETAIL cells of each position, (N · h · w, DETAIL² · 3)."""
    count, block = len(pictures), pictures.shape[1] // side
    cells = pictures.reshape(count, side, block, side, block, 3).mean(axis=(2, 4))
    cells = cells.reshape(count, SIDE, DETAIL, SIDE, DETAIL, 3).transpose(0, 1, 3, 2, 4, 5)
    return cells.reshape(-1, DETAIL * DETAIL * 3)
