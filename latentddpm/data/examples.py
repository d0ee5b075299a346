"""Training examples: tf.data pipelines in which everything random is drawn.

    image_examples      position ─► image file ─► {images, noise}              (autoencoder)
    diffusion_examples  position ─► cached moments, caption ─► ({noisy_latents, timesteps
                        [, token_ids]}, target[, weight])                           (UNet)

Networks are deterministic functions of what comes out here; see `draws` for why.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from latentddpm.data.draws import Draws
from latentddpm.data.images import WHITE, UnreadableImage, read_image
from latentddpm.data.latents import LatentsCache
from latentddpm.diffusion.schedule import NoiseSchedule
from latentddpm.models.latent_space import LatentSpace
from latentddpm.models.tokenizer import ClipTokenizer


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


@dataclass(frozen=True)
class CaptionTokens:
    """Token ids of all captions, for drawing one per use.

    Attributes:
        ids: int32 (captions + 1, context length); the last row is the empty prompt.
        starts, counts: int32 (images,): image i owns rows starts[i] … starts[i] + counts[i] − 1.
            An image without a caption owns the empty prompt.
    """

    ids: np.ndarray
    starts: np.ndarray
    counts: np.ndarray


def tokenize_captions(
    captions: Sequence[Sequence[str]], tokenizer: ClipTokenizer
) -> CaptionTokens:
    """Tokenize the alternatives of each image."""
    flat = [text for alternatives in captions for text in alternatives]
    counts = np.array([len(alternatives) for alternatives in captions], np.int32)
    starts = (np.cumsum(counts) - counts).astype(np.int32)
    empty = counts == 0
    starts[empty], counts[empty] = len(flat), 1
    return CaptionTokens(tokenizer([*flat, ""]), starts, counts)


def diffusion_examples(
    cache: LatentsCache,
    indices: Sequence[int],
    schedule: NoiseSchedule,
    latent_space: LatentSpace,
    *,
    batch_size: int,
    draws: Draws,
    positions: tf.data.Dataset,
    tokens: CaptionTokens | None = None,
    condition_dropout: float = 0.0,
    min_snr_gamma: float = 0.0,
    offset_noise: float = 0.0,
    input_perturbation: float = 0.0,
) -> tf.data.Dataset:
    """Batches `({"noisy_latents", "timesteps"[, "token_ids"]}, target[, weight])` for the UNet.

    Each position draws an image, a mirroring (when the cache has mirrored rows), a posterior
    sample, a timestep, its noise, a caption, and whether the caption is dropped.

    Args:
        indices: images of the cache to draw from.
        tokens: captions, indexed like the cache; None for an unconditional network.
        condition_dropout: share of examples that get the empty prompt, which is what makes
            classifier-free guidance work (Ho & Salimans 2022, §3.2).
        min_snr_gamma: γ of `NoiseSchedule.min_snr_weights`, which come as weights (B, 1, 1);
            0 gives no weights.
        offset_noise: a; the noise becomes ε + a · ε', one ε' for a whole channel of a latent
            (Guttenberg 2023).
        input_perturbation: a; the noisy latents are made with the noise ε + a · ε'', of which
            the target knows only ε (Ning 2023, algorithm 1).
    """
    shape = cache.latent_shape
    chosen = tf.constant(np.asarray(indices, np.int32))
    weights = None
    if min_snr_gamma:
        weights = schedule.min_snr_weights(min_snr_gamma).astype("float32")

    def draw(position: tf.Tensor) -> dict[str, tf.Tensor]:
        image = chosen[draws.index(position, len(indices))]
        row = image
        if cache.mirrored:
            mirror = draws.chance("flip", position, 0.5)
            row = tf.where(mirror, image + len(cache.paths), image)
        drawn = {
            "row": row,
            "timesteps": draws.integer("timestep", position, schedule.num_train_timesteps),
            "posterior": draws.normal("posterior", position, shape),
            "noise": draws.normal("noise", position, shape),
        }
        if offset_noise:
            shift = draws.normal("offset noise", position, (1, 1, shape[-1]))
            drawn["noise"] += offset_noise * shift
        if input_perturbation:
            drawn["extra"] = input_perturbation * draws.normal("perturbation", position, shape)
        if tokens is not None:
            pick = draws.integer("caption", position, tf.gather(tokens.counts, image))
            caption = tf.gather(tokens.starts, image) + pick
            dropped = draws.chance("dropout", position, condition_dropout)
            drawn["caption"] = tf.where(dropped, len(tokens.ids) - 1, caption)
        return drawn

    def batch(drawn: dict[str, tf.Tensor]) -> tuple[Any, ...]:
        mean, logvar = tf.numpy_function(
            cache.gather, [drawn["row"]], [tf.float32, tf.float32], stateful=False
        )
        mean.set_shape((None, *shape))
        logvar.set_shape((None, *shape))
        latents = latent_space.to_latents(mean, logvar, drawn["posterior"], exp=tf.exp)
        noise, timesteps = drawn["noise"], drawn["timesteps"]
        seen = noise + drawn["extra"] if input_perturbation else noise
        inputs = {
            "noisy_latents": schedule.add_noise(latents, seen, timesteps, take=tf.gather),
            "timesteps": timesteps,
        }
        if tokens is not None:
            inputs["token_ids"] = tf.gather(tokens.ids, drawn["caption"])
        target = schedule.target(latents, noise, timesteps, take=tf.gather)
        if weights is None:
            return inputs, target
        return inputs, target, tf.gather(weights, timesteps)[:, None, None]

    dataset = positions.map(draw, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    dataset = dataset.batch(batch_size).map(batch, num_parallel_calls=1, deterministic=True)
    return dataset.prefetch(tf.data.AUTOTUNE)
