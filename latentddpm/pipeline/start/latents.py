"""Latents that a sampler starts from: noise, or those of a picture with noise added.

noise [, picture ─► encoder ─► latents] ─► noisy latents at the first step
"""

from __future__ import annotations

import numpy as np

from latentddpm.diffusion import samplers
from latentddpm.diffusion.inpainting import Inpainting, repaint_weights
from latentddpm.models.autoencoder.tiling import FirstStage, encode
from latentddpm.pipeline.start.init_image import InitImage, first_step
from latentddpm.utils.images.pixel_format import PixelFormat
from latentddpm.utils.timing import timed


def start_latents(
    autoencoder: FirstStage,
    start: InitImage | None,
    sampler: samplers.Sampler,
    noise: np.ndarray,
    tile: str | int,
    pixels: PixelFormat,
    start_step: int = 0,
    trained: bool = False,
) -> tuple[np.ndarray, samplers.Sampler, int]:
    """Latents to start from: the noise itself, or those of a picture with noise added.

    Args:
        autoencoder: to encode the picture.
        start: picture, mask and strength; None to start from the noise.
        sampler: of the settings.
        noise: standard normal, float32 (N, h, w, c).
        tile: see `models.autoencoder.tiling.encode`.
        pixels: format of the picture.
        start_step: first step from noise, which from 1 on is scaled as that level expects it.
        trained: the network is told the mask and the rest of the picture, so that the sampler
            is taken as it is, and begins with pure noise at strength 1.

    Returns:
        Noisy latents (N, h, w, c), the sampler, which with a mask keeps the rest of the picture,
        and the step that it starts at.

    Raises:
        UserError: the strength leaves no step to run, or a `start_step` beside a picture.
    """
    first = first_step(start, sampler.num_steps, start_step)
    if start is None or (trained and start.mask is not None and not first):
        starts = sampler.add_noise(np.zeros_like(noise), noise, first) if first else noise
        return starts, sampler, first
    with timed("encoder"):
        mean, _ = encode(autoencoder, pixels.to_images(start.init_image)[None], tile)
        known = np.asarray(autoencoder.to_latents(mean))
    starts = sampler.add_noise(known, noise, first)
    if start.mask is not None and not trained:
        weights = repaint_weights(start.repaint, autoencoder.downsample_factor)
        sampler = Inpainting(sampler, known, weights)
    return starts, sampler, first
