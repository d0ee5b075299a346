"""Batches of a run: its training and validation examples, split over processes and replicas.

    step s ─► positions s·B … s·B + B − 1 ─► examples ─► one batch ─► a part for each replica

The examples of a step depend only on the seed and the number of the step; see `data.random`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from latentddpm.config import AutoencoderRun, DiffusionRun
from latentddpm.data.buckets import Part, Shape, interleave, one_by_one, stream_name
from latentddpm.data.captioning.tags import DrawnTags
from latentddpm.data.captions import CaptionTokens
from latentddpm.data.catalog.split import Selection
from latentddpm.data.conditions.loss_masks import LossMasks
from latentddpm.data.conditions.source import ConditionSource
from latentddpm.data.dataset import Dataset
from latentddpm.data.examples import TEXT, diffusion_examples, image_examples
from latentddpm.data.latents.cache import LatentsCache
from latentddpm.data.latents.pixels import PixelLatents
from latentddpm.data.random import RandomStream, TimestepDensity
from latentddpm.data.shares import share, shared
from latentddpm.diffusion.process import ForwardProcess
from latentddpm.diffusion.samplers.lcm import solver_timesteps
from latentddpm.distribution.processes import ONE_PROCESS, ProcessGroup
from latentddpm.distribution.strategy import distribute_dataset, process_group
from latentddpm.models.autoencoder.latent_space import LatentSpace
from latentddpm.utils.images.pixel_format import PixelFormat

RECIPE = ("condition_dropout", "min_snr_gamma", "offset_noise", "input_perturbation")
"""Settings that change training examples; validation examples do not depend on them."""


class ImageBatches:
    """Batches of images for an autoencoder, `{"images"[, "noise"]}`; see `image_examples`.

    Args:
        dataset: with the training and validation images.
        config: of the run.
        latent_shape: (h, w, c) of the noise.
        strategy: of the run; None for one device.
    """

    def __init__(
        self,
        dataset: Dataset,
        config: AutoencoderRun,
        latent_shape: tuple[int, int, int],
        strategy: tf.distribute.Strategy | None = None,
    ) -> None:
        self.dataset, self.config, self.strategy = dataset, config, strategy
        self.batch_size = config.training.batch_size
        self._common = {
            "catalog": dataset.catalog,
            "resolution": config.data.resolution,
            "latent_shape": latent_shape,
            "pixels": PixelFormat.of(config.data),
        }

    def training(self, start: int, stop: int) -> tf.data.Dataset:
        """Batches of the steps `start` … `stop` − 1."""
        size, data = self.batch_size, self.config.data
        processes = process_group(self.strategy)
        positions, own = share(start * size, stop * size, size, processes)
        batches = image_examples(
            selection=self.dataset.training,
            stream=RandomStream(self.config.training.seed, "train-vae"),
            positions=positions,
            batch_size=own,
            background=data.background,
            flip=data.flip,
            augment=data.augment,
            **self._common,
        )
        return distribute_dataset(self.strategy, batches)

    def validation(self) -> tf.data.Dataset:
        """Batches with each validation image once, `validation_steps` of them."""
        processes = process_group(self.strategy)
        batches = self.in_order(self.dataset.validation, processes=processes)
        return distribute_dataset(self.strategy, batches)

    @property
    def validation_steps(self) -> int:
        """Number of validation batches."""
        return math.ceil(len(self.dataset.validation) / self.batch_size)

    def in_order(
        self, images: Selection, most: int | None = None, processes: ProcessGroup = ONE_PROCESS
    ) -> tf.data.Dataset:
        """Batches of images in order, without noise and flips.

        Args:
            images: of the dataset's catalog.
            most: number of images, the first ones; all by default.
            processes: that share each batch.
        """
        count = len(images) if most is None else min(len(images), most)
        positions, own = share(0, count, self.batch_size, processes)
        return image_examples(
            selection=images, stream=None, positions=positions, batch_size=own, **self._common
        )


@dataclass(frozen=True)
class PriorImages:
    """Images that a share of every batch is made of, such as those of prior preservation.

    Attributes:
        images: of `cache`.
        cache: moments of them; for a UNet of pixels the images themselves.
        tokens: of their captions; None for an unconditional UNet.
        weight: of each in the loss; that of the run's own images is 1.
    """

    images: Selection
    cache: LatentsCache | PixelLatents
    tokens: CaptionTokens | None
    weight: float


class LatentBatches:
    """Batches of noisy latents for a UNet; see `diffusion_examples`.

    With `prior` the last ⌊B/2⌋ examples of each batch of training are of these images, in an order
    of their own. Validation has none of them.

    Args:
        images: training and validation images, two dictionaries: shape of a bucket → its images.
        cache: moments of all images; for a UNet of pixels the images themselves.
        schedule: of the UNet.
        latent_space: of the autoencoder that made the cache.
        tokens: of the captions; None for an unconditional UNet.
        config: of the run.
        strategy: of the run; None for one device.
        conditions: what else the images tell.
        control: pictures that a ControlNet sees; None without one.
        tags: of the captions, drawn for each use in training; None to take captions whole.
        masks: of the loss; None where it counts everywhere.
        prior: images beside those of the run; None without them.
    """

    def __init__(
        self,
        images: tuple[Mapping[Shape, Selection], Mapping[Shape, Selection]],
        cache: LatentsCache | PixelLatents,
        schedule: ForwardProcess,
        latent_space: LatentSpace,
        tokens: CaptionTokens | None,
        config: DiffusionRun,
        strategy: tf.distribute.Strategy | None = None,
        conditions: Sequence[ConditionSource] = (),
        control: ConditionSource | None = None,
        tags: DrawnTags | None = None,
        masks: LossMasks | None = None,
        prior: PriorImages | None = None,
    ) -> None:
        self.conditions, self.control = conditions, control
        self.tags, self.masks, self.prior = tags, masks, prior
        self.training_images, self.validation_images = images
        self.cache, self.tokens, self.config, self.strategy = cache, tokens, config, strategy
        self._schedule_and_space = (schedule, latent_space)
        self.batch_size = config.training.batch_size

    def training(self, start: int, stop: int) -> tf.data.Dataset:
        """Batches of the steps `start` … `stop` − 1, each with images of one shape."""
        training = self.config.training
        recipe = {name: getattr(training, name) for name in RECIPE}
        recipe["density"] = TimestepDensity(
            training.timestep_sampling,
            training.logit_mean,
            training.logit_std,
            training.mode_scale,
        )
        augment = self.config.data.augment
        if augment.changes:
            recipe["augmented"] = augment.probability
        if self.conditions:
            recipe["dropouts"] = alone(self.config)
        images, prior = self.training_images, self.prior
        count = 0 if prior is None else self.config.prior.share(self.batch_size)
        own = self.batch_size - count
        background = {"random_background": self.cache.transparent}
        beside = {} if self.tags is None else {"tags": self.tags}
        beside |= {} if prior is None else {"loss_weight": 1.0}
        part = self._part(images, "train-diffusion", own, **recipe, **background, **beside)
        batches = interleave(images, start, stop, own, part)
        if prior is not None:
            (square,) = images
            recipe |= {"random_background": prior.cache.transparent, "loss_weight": prior.weight}
            part = self._part({square: prior.images}, "prior", count, prior, **recipe)
            batches = joined(batches, part(square, start * count, stop * count))
        return distribute_dataset(self.strategy, batches)

    def validation(self) -> tf.data.Dataset:
        """Batches with each validation image once, with the same noise and timestep every time.

        Without the settings of `RECIPE` and with uniform timesteps, so that runs which differ in
        these have comparable losses.
        """
        images = self.validation_images
        return distribute_dataset(
            self.strategy, one_by_one(images, self._part(images, "validation", self.batch_size))
        )

    @property
    def validation_steps(self) -> int:
        """Number of validation batches."""
        sizes = map(len, self.validation_images.values())
        return sum(math.ceil(size / self.batch_size) for size in sizes)

    def _part(
        self,
        images: Mapping[Shape, Selection],
        name: str,
        batch_size: int,
        prior: PriorImages | None = None,
        **recipe: Any,
    ) -> Part:
        """Batches of a bucket of `images`, which are those of the run or of `prior`."""
        source = self if prior is None else prior
        factor = self.config.data.resolution // self.cache.latent_shape[0]
        recipe |= _of_distillation(self.config)

        def part(shape: Shape, first: int, last: int) -> tf.data.Dataset:
            height, width = shape

            def batches(positions: tf.data.Dataset, batch_size: int) -> tf.data.Dataset:
                return diffusion_examples(
                    source.cache.shaped(height // factor, width // factor),
                    images[shape],
                    *self._schedule_and_space,
                    batch_size=batch_size,
                    stream=RandomStream(self.config.training.seed, stream_name(name, shape)),
                    positions=positions,
                    tokens=source.tokens,
                    conditions=[*self.conditions, *filter(None, [self.control])],
                    masks=self.masks if prior is None else None,
                    **recipe,
                )

            processes = process_group(self.strategy)
            return shared(range(first, last), batch_size, processes, batches)

        return part


def joined(first: tf.data.Dataset, second: tf.data.Dataset) -> tf.data.Dataset:
    """Batches of two datasets, those of the second behind those of the first.

    Args:
        first, second: batches (inputs, target, weight) with the same inputs. Weights have a 1, or
            the size of the target, for each axis of space.
    """

    def join(one: Any, other: Any) -> Any:
        shape = tf.broadcast_static_shape(one[2].shape[1:], other[2].shape[1:])
        pairs = (
            (*each[:2], tf.broadcast_to(each[2], [tf.shape(each[2])[0], *shape]))
            for each in (one, other)
        )
        return tf.nest.map_structure(lambda *parts: tf.concat(parts, 0), *pairs)

    return tf.data.Dataset.zip(first, second).map(join).prefetch(tf.data.AUTOTUNE)


def alone(config: DiffusionRun) -> dict[str, float]:
    """Shares of examples that are not told one thing alone, by its name.

    Args:
        config: of a run with conditions.
    """
    shares = {name: one.dropout for name, one in config.conditions.items()}
    return {TEXT: config.text.dropout or 0.0, **shares}


def _of_distillation(config: DiffusionRun) -> dict[str, Any]:
    """Arguments of `diffusion_examples` for the examples of a distillation; empty without one."""
    distill = config.distill
    if distill.kind == "none":
        return {}
    total = config.schedule.num_train_timesteps
    return {
        "timesteps": solver_timesteps(total, distill.solver_steps),
        "guidance_scales": distill.guidance_scale,
    }
