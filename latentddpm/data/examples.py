"""Training examples: the tf.data pipelines, in which all random numbers are drawn.

    image_examples      position ─► image file ─► {images, noise}              (autoencoder)
    diffusion_examples  position ─► cached moments, caption, conditions ─► ({noisy_latents,
                        timesteps[, token_ids][, conditions]}, target[, weight])    (UNet)

    noisy_examples      the same from latents and captions in memory

The networks are deterministic functions of these examples; see `data.random` for the reason.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from latentddpm.conditions.control import CONTROL
from latentddpm.config import AugmentConfig
from latentddpm.data.captioning.tags import DrawnTags
from latentddpm.data.captions import CaptionTokens
from latentddpm.data.catalog.catalog import Catalog
from latentddpm.data.catalog.split import Selection
from latentddpm.data.conditions.augmented import ChangesTold, change_image, in_colour
from latentddpm.data.conditions.loss_masks import LossMasks
from latentddpm.data.conditions.source import ConditionSource
from latentddpm.data.images import WHITE, UnreadableImage
from latentddpm.data.latents.cache import LatentsCache
from latentddpm.data.latents.pixels import PixelLatents
from latentddpm.data.pictures.augment import draw_changes
from latentddpm.data.random import UNIFORM, RandomStream, TimestepDensity
from latentddpm.diffusion.process import ForwardProcess
from latentddpm.models.autoencoder.latent_space import LatentSpace
from latentddpm.models.denoisers.told import CONCAT
from latentddpm.utils.images.pixel_format import RGB, PixelFormat

if TYPE_CHECKING:
    from latentddpm.clip.tokenizer import CLIPTokenizer


PER_CONDITION = ("dropped", "bits")
"""Random draws of each condition of an example."""
TEXT = "text"
"""Name of text among the dropouts."""
NOT_AUGMENTED = AugmentConfig()
NOT_CHANGED = np.int64(-1)


def image_examples(
    catalog: Catalog,
    selection: Selection,
    *,
    resolution: int,
    latent_shape: tuple[int, ...],
    batch_size: int,
    stream: RandomStream | None,
    positions: tf.data.Dataset,
    background: str = "white",
    flip: bool = False,
    augment: AugmentConfig = NOT_AUGMENTED,
    pixels: PixelFormat = RGB,
) -> tf.data.Dataset:
    """Batches of images, and of noise for a sample of the autoencoder's posterior.

    Args:
        catalog: of the images.
        selection: the images to read.
        resolution: side R of the square that images are scaled and cropped to, in pixels.
        latent_shape: of the noise of an example, (h, w, c).
        batch_size: examples of a batch.
        stream: random numbers. None reads the files in order, once, without noise, flips and
            random colours, for validation: the autoencoder then decodes the posterior's mode.
        positions: of the examples, int64.
        background: "white", or "random" for a new colour behind transparent pixels per use.
        flip: mirror each example with probability ½.
        augment: changes of images, drawn per use.
        pixels: format that the images are read in, with C channels.

    Returns:
        Batches `{"images": (B, R, R, C)[, "noise": (B, h, w, c)]}`, float32, images in [-1, 1].

    Raises:
        OSError: while it is read, when none of the images can be read any more.
    """
    keep_alpha = background == "random" and stream is not None
    changed = stream is not None and augment.changes

    def read(index: int, *bits: int) -> np.ndarray:
        # The scan has decoded every file before. One that breaks later (a lost disk, a replaced
        # file) is named in a warning, and the next image takes its place.
        count = len(selection)
        for offset in range(count):
            image = selection.row((int(index) + offset) % count)
            behind = None if keep_alpha else WHITE
            try:
                if bits and bits[0] >= 0:
                    rng = np.random.Generator(np.random.Philox(key=int(bits[0])))
                    changes = draw_changes(augment, rng, in_colour(pixels))
                    size = (resolution, resolution)
                    return change_image(catalog, image, size, pixels, behind, changes)
                return catalog.image(image, resolution, pixels, behind)
            except (UnreadableImage, OSError) as error:
                known = isinstance(error, UnreadableImage)
                what = error if known else f"{catalog.where(image)}: {error}"
                warnings.warn(f"{what}; another image takes its place", stacklevel=2)
        raise OSError(f"{catalog.source.place}: no image can be read any more")

    def example(position: tf.Tensor) -> dict[str, tf.Tensor]:
        index = position if stream is None else stream.draw(position, selection)
        drawn = [index]
        if changed:
            some = stream.chance("augment", position, augment.probability)
            drawn.append(tf.where(some, stream.bits("changes", position), NOT_CHANGED))
        values = tf.numpy_function(read, drawn, tf.as_dtype(pixels.dtype), stateful=False)
        values.set_shape((resolution, resolution, 4 if keep_alpha else pixels.channels))
        if keep_alpha:
            values = tf.cast(values, tf.float32)
            alpha = values[..., 3:] / 255.0
            colour = 255.0 * stream.uniform("background", position, (3,))
            values = values[..., :3] * alpha + colour * (1.0 - alpha)
        images = pixels.to_images(values, tf.cast)
        if stream is None:
            return {"images": images}
        if flip:
            mirrored = stream.chance("flip", position, 0.5)
            images = tf.where(mirrored, images[:, ::-1], images)
        return {"images": images, "noise": stream.normal("noise", position, latent_shape)}

    dataset = positions.map(example, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return dataset.batch(batch_size).prefetch(tf.data.AUTOTUNE)


def diffusion_examples(
    cache: LatentsCache | PixelLatents,
    selection: Selection,
    schedule: ForwardProcess,
    latent_space: LatentSpace,
    *,
    batch_size: int,
    stream: RandomStream,
    positions: tf.data.Dataset,
    tokens: CaptionTokens | None = None,
    condition_dropout: float = 0.0,
    min_snr_gamma: float = 0.0,
    offset_noise: float = 0.0,
    input_perturbation: float = 0.0,
    random_background: bool = False,
    density: TimestepDensity = UNIFORM,
    timesteps: np.ndarray | None = None,
    guidance_scales: Sequence[float] | None = None,
    conditions: Sequence[ConditionSource] = (),
    dropouts: Mapping[str, float] | None = None,
    tags: DrawnTags | None = None,
    masks: LossMasks | None = None,
    augmented: float = 0.0,
    loss_weight: float | None = None,
) -> tf.data.Dataset:
    """Batches of noisy latents with their targets, for the UNet.

    For each position an image, a flip (if the cache has mirrored rows), a posterior sample, a
    timestep, noise, a caption and its dropout are drawn.

    Args:
        cache: moments of the images; for a UNet of pixels the images themselves.
        selection: the images of the cache to draw from.
        schedule: of the UNet.
        latent_space: of the autoencoder that made the cache.
        batch_size: examples of a batch.
        stream: random numbers.
        positions: of the examples, int64.
        tokens: captions of the images of the cache; None for an unconditional UNet.
        condition_dropout: share of examples that get the empty prompt and are told none of the
            conditions, which guidance without a classifier needs (Ho & Salimans 2022, §3.2).
        min_snr_gamma: γ of `NoiseSchedule.min_snr_weights`; 0 for no weights.
        offset_noise: a; the noise becomes ε + a · ε', with one ε' for each channel (Guttenberg
            2023).
        input_perturbation: a; the latents get the noise ε + a · ε'', while the target is that of
            ε (Ning 2023, algorithm 1).
        random_background: draw a colour behind transparent pixels, of a `cache` that is
            `transparent`.
        density: of the timesteps.
        timesteps: the only ones that are drawn, increasing; None for all of the schedule.
        guidance_scales: lowest and highest of a guidance scale that is drawn with each example,
            for the teacher of a distillation; None for none.
        conditions: what else the images tell.
        dropouts: shares of examples that are not told one thing alone, by the name of the
            condition, of the caption by `TEXT`; None for none.
        tags: of the captions, drawn for each use; None to take captions as they are.
        masks: of the loss; None where it counts everywhere.
        augmented: share of examples that see a variant of their image, where one of `conditions`
            is `ChangesTold`; the rows of the variants lie behind those of the images.
        loss_weight: of every example in the loss, beside `min_snr_gamma`; None for no weights.

    Returns:
        Batches `({"noisy_latents": (B, h, w, c), "timesteps": (B,)[, "token_ids": (B, L)][,
        "guidance_scale": (B,)]}, target (B, h, w, c)[, weight (B, 1, 1)])`, float32 and int32,
        with the inputs of the conditions by their names; timesteps of a flow schedule are
        float32. With masks weights are (B, h, w). Signals are (B, L, c), with weights (B, 1).
    """
    shape = cache.latent_shape
    ones = (1,) * (len(shape) - 1)  # of the axes of space
    weights = None
    if min_snr_gamma:
        weights = schedule.min_snr_weights(min_snr_gamma).astype("float32")
    alone = dropouts or {}
    variants = next((one.variants for one in conditions if isinstance(one, ChangesTold)), 0)
    own = cache.count // (1 + variants)
    entries = [entry for one in conditions for entry in one.condition.inputs()]

    def dropped(position: tf.Tensor, name: str) -> tf.Tensor:
        """True where text or a condition is dropped, alone or together with all others."""
        together = stream.chance("dropout", position, condition_dropout)
        if not alone.get(name):
            return together
        return together | stream.chance(f"dropout of {name}", position, alone[name])

    def draw(position: tf.Tensor) -> dict[str, tf.Tensor]:
        drawn = {
            "number": stream.draw(position, selection),
            "mirrored": stream.chance("flip", position, 0.5 if cache.mirrored else 0.0),
            "timesteps": _timestep(schedule, density, stream, position, timesteps),
            "posterior": stream.normal("posterior", position, shape),
            "noise": stream.normal("noise", position, shape),
        }
        if offset_noise:
            shift = stream.normal("offset noise", position, (*ones, shape[-1]))
            drawn["noise"] += offset_noise * shift
        if input_perturbation:
            drawn["extra"] = input_perturbation * stream.normal("perturbation", position, shape)
        if guidance_scales is not None:
            low, high = guidance_scales
            drawn["guidance"] = low + (high - low) * stream.uniform("guidance", position, ())
        drawn["variant"] = tf.constant(0, tf.int64)
        if augmented:
            variant = 1 + stream.integer("variant", position, variants)
            some = stream.chance("augment", position, augmented)
            drawn["variant"] = tf.cast(tf.where(some, variant, 0), tf.int64)
        if random_background:
            drawn["background"] = stream.uniform("background", position, (3,))
        if tokens is not None:
            drawn["choice"] = stream.bits("caption", position)
            drawn["dropped"] = dropped(position, TEXT)
        if tags is not None:
            drawn["tags"] = stream.bits("tags", position)
        for one in conditions:
            name = one.condition.name
            null = dropped(position, name) if one.condition.null else tf.constant(False)
            drawn[f"dropped {name}"] = null
            drawn[f"bits {name}"] = stream.bits(f"condition {name}", position)
            if isinstance(one, ChangesTold):
                drawn[f"bits {name}"] = drawn["variant"]
        return drawn

    def tell(numbers: np.ndarray, mirrored: np.ndarray, *more: np.ndarray) -> list[np.ndarray]:
        """Inputs of all conditions for a batch."""
        images, pairs = selection.rows(numbers), zip(more[::2], more[1::2], strict=True)
        told = zip(conditions, pairs, strict=True)
        return [array for one, pair in told for array in one.batch(images, mirrored, *pair)]

    def look_up(
        numbers: np.ndarray, mirrored: np.ndarray, variant: np.ndarray, *more: np.ndarray
    ) -> list[np.ndarray]:
        """Cached mean and logvar of the images of a batch, and token ids of a caption of each."""
        images = selection.rows(numbers)
        colours, words = more[:random_background], more[random_background:]
        rows = images + own * variant
        found = [*cache.gather(rows + cache.count * mirrored, *colours)]
        return [*found, (tags or tokens).pick(images, *words)] if words else found

    def loss_mask(numbers: np.ndarray, mirrored: np.ndarray) -> np.ndarray:
        """Weights of the loss of a batch, by position."""
        return masks.batch(selection.rows(numbers), mirrored, shape[:-1])

    def batch(drawn: dict[str, tf.Tensor]) -> tuple[Any, ...]:
        keys = ["number", "mirrored", "variant", *["background"] * random_background]
        keys += ["choice", "dropped"] if tokens is not None else []
        keys += ["tags"] if tags is not None else []
        types = [tf.float32, tf.float32, tf.int32][: 2 + (tokens is not None)]
        mean, logvar, *ids = tf.numpy_function(
            look_up, [drawn[key] for key in keys], types, stateful=False
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
            inputs["token_ids"] = tf.ensure_shape(ids[0], (None, tokens.ids.shape[1]))
        if guidance_scales is not None:
            inputs["guidance_scale"] = drawn["guidance"]
        if entries:
            keys = [f"{key} {one.condition.name}" for one in conditions for key in PER_CONDITION]
            keys = ["number", "mirrored", *keys]
            arrays = tf.numpy_function(
                tell, [drawn[key] for key in keys], [tf.float32] * len(entries), stateful=False
            )
            for entry, array in zip(entries, arrays, strict=True):
                space = {CONCAT: shape[:-1], CONTROL: (None, None)}.get(entry.enters, ())
                inputs[entry.name] = tf.ensure_shape(array, (None, *space, entry.size))
        target = schedule.target(latents, noise, timesteps, take=tf.gather)
        loss = [] if weights is None else [tf.reshape(tf.gather(weights, timesteps), (-1, *ones))]
        if loss_weight is not None:
            own = loss_weight * tf.ones_like(timesteps, tf.float32)
            loss.append(tf.reshape(own, (-1, *ones)))
        if masks is not None:
            keys = [drawn["number"], drawn["mirrored"]]
            (mask,) = tf.numpy_function(loss_mask, keys, [tf.float32], stateful=False)
            loss.append(tf.ensure_shape(mask, (None, *shape[:-1])))
        return (inputs, target, *[math.prod(loss)] * bool(loss))

    dataset = positions.map(draw, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    dataset = dataset.batch(batch_size).map(batch, num_parallel_calls=1, deterministic=True)
    return dataset.prefetch(tf.data.AUTOTUNE)


def _timestep(
    schedule: ForwardProcess,
    density: TimestepDensity,
    stream: RandomStream,
    position: tf.Tensor,
    known: np.ndarray | None = None,
) -> tf.Tensor:
    """Timestep of an example, a scalar: int32, or float32 in (0, T] for a flow schedule.

    It is one of `known`, where these are given.
    """
    total = schedule.num_train_timesteps if known is None else len(known)
    if density.kind == "uniform" and not schedule.continuous:
        number = stream.integer("timestep", position, total)
    else:
        share = density.quantile(1.0 - stream.uniform("timestep", position, ()))
        if schedule.continuous:
            return total * schedule.shifted(share)
        number = tf.minimum(tf.cast(total * share, tf.int32), total - 1)
    return number if known is None else tf.gather(np.asarray(known, np.int32), number)


def noisy_examples(
    latents: np.ndarray,
    schedule: ForwardProcess,
    *,
    batch_size: int = 32,
    seed: int = 0,
    captions: Sequence[str] | None = None,
    tokenizer: CLIPTokenizer | None = None,
    condition_dropout: float = 0.1,
    timesteps: np.ndarray | None = None,
    guidance_scales: Sequence[float] | None = None,
    conditions: Sequence[ConditionSource] = (),
    dropouts: Mapping[str, float] | None = None,
) -> tf.data.Dataset:
    """Batches of noisy latents for a `DenoisingTrainer`, without end, from latents in memory.

    Every use of latents has its own timestep and noise, which depend on the seed and the position
    of the example.

    Args:
        latents: scaled, (N, h, w, c), as `Autoencoder.to_latents` gives them; signals (N, L, c)
            or volumes (N, D, H, W, c) for a UNet with that many `spatial_dims`.
        schedule: of the trainer.
        batch_size: examples of a batch.
        seed: of all random numbers.
        captions: N texts; None for an unconditional UNet.
        tokenizer: turns captions into token ids.
        condition_dropout: share of examples that get the empty prompt, and are told none of the
            conditions, for guidance.
        timesteps, guidance_scales: for a `ConsistencyTrainer`; see `diffusion_examples`.
        conditions: what else the network is told, such as
            `data.conditions.rows.ConditionRows.of(condition, values)`.
        dropouts: see `diffusion_examples`.

    Returns:
        Batches `({"noisy_latents": (B, h, w, c), "timesteps": (B,)[, "token_ids": (B, L)][,
        "guidance_scale": (B,)]}, target (B, h, w, c))`, float32 and int32, with the inputs of the
        conditions by their names.

    Raises:
        ValueError: captions without a tokenizer, or not N of them.

    Example:
        ```python
        batches = noisy_examples(latents, NoiseSchedule(), batch_size=16, seed=0)
        trainer.fit(batches, steps_per_epoch=100, epochs=10)
        ```
    """
    latents, tokens = np.asarray(latents, np.float32), None
    if captions is not None:
        if tokenizer is None or len(captions) != len(latents):
            raise ValueError(
                f"captions: {len(captions)} for {len(latents)} latents, expected one for each, "
                "and a tokenizer"
            )
        ends = np.arange(1, len(latents) + 1)
        tokens = CaptionTokens(np.asarray(tokenizer([*captions, ""])), ends)
    # A variance of exp(−∞) = 0, so that a posterior sample is the latents themselves.
    moments = np.concatenate([latents, np.full_like(latents, -np.inf)], axis=-1)
    return diffusion_examples(
        LatentsCache(len(latents), moments, mirrored=False),
        Selection(len(latents)),
        schedule,
        LatentSpace(1.0),
        batch_size=batch_size,
        stream=RandomStream(seed, "train-diffusion"),
        positions=tf.data.Dataset.range(np.iinfo(np.int64).max),
        tokens=tokens,
        condition_dropout=condition_dropout,
        timesteps=timesteps,
        guidance_scales=guidance_scales,
        conditions=conditions,
        dropouts=dropouts,
    )
