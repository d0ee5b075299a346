"""Training examples: tf.data pipelines in which everything random is drawn.

    image_examples      position ─► image file ─► {images, noise}              (autoencoder)
    diffusion_examples  position ─► cached moments, caption ─► ({noisy_latents, timesteps
                        [, token_ids]}, target)                                     (UNet)

Networks are deterministic functions of what comes out here; see `draws` for why.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from latentddpm.data.draws import Draws
from latentddpm.data.images import WHITE, UnreadableImage, read_image
# from latentddpm.data.latents import LatentsCache
from latentddpm.diffusion.schedule import NoiseSchedule


def positions(start: int, stop: int | None, batch_size: int) -> tf.data.Dataset:
    """Example positions of steps `start` … `stop` (None: without end)."""
    last = np.iinfo(np.int64).max if stop is None else stop * batch_size
    return tf.data.Dataset.range(start * batch_size, last)


def to_unit_range(pixels: tf.Tensor) -> tf.Tensor:
    """0 … 255 → float32 in [-1, 1]."""
    return tf.cast(pixels, tf.float32) / 127.5 - 1.0


def image_examples(
    folder: Path,
    paths: Sequence[str],
    *,
    resolution: int,
    latent_shape: tuple[int, int, int],
    batch_size: int,
    draws: Draws | None,
    positions: tf.data.Dataset,
    background: str = "white",
    flip: bool = False,
) -> tf.data.Dataset:
    """Batches `{"images": (B, H, W, 3) in [-1, 1], "noise": (B, *latent_shape)}`.

    Args:
        draws: None reads the files in order, once, without noise, flips or drawn colours
            (validation: the autoencoder then reconstructs from the posterior's mode).
        background: "white", or "random" for a colour drawn per use behind transparency.
        flip: mirror half of the examples.
    """
    keep_alpha = background == "random" and draws is not None

    def read(index: int) -> np.ndarray:
        # The scan up front has decoded every file; one that breaks later (a disk that went
        # away, a file replaced) is named, and its neighbour stands in.
        for offset in range(len(paths)):
            path = folder / paths[(int(index) + offset) % len(paths)]
            try:
                return read_image(path, resolution, None if keep_alpha else WHITE)
            except UnreadableImage as error:
                warnings.warn(f"{error}; another image takes its place", stacklevel=2)
        raise OSError(f"{folder}: no image can be read any more")

    def example(position: tf.Tensor) -> dict[str, tf.Tensor]:
        index = position if draws is None else draws.index(position, len(paths))
        pixels = tf.numpy_function(read, [index], tf.uint8, stateful=False)
        pixels.set_shape((resolution, resolution, 4 if keep_alpha else 3))
        if keep_alpha:
            pixels = tf.cast(pixels, tf.float32)
            alpha = pixels[..., 3:] / 255.0
            colour = 255.0 * draws.uniform("background", position, (3,))
            pixels = pixels[..., :3] * alpha + colour * (1.0 - alpha)
        images = to_unit_range(pixels)
        if draws is None:
            return {"images": images}
        if flip:
            mirrored = draws.chance("flip", position, 0.5)
            images = tf.where(mirrored, images[:, ::-1], images)
        return {"images": images, "noise": draws.normal("noise", position, latent_shape)}

    dataset = positions.map(example, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return dataset.batch(batch_size).prefetch(tf.data.AUTOTUNE)
