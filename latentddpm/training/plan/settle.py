"""Settings of a run, judged and completed: first without the data, then with it.

settle_…    with those of the finished models that the run uses; some may stay open
complete_…  with those that follow from the data
check_…     refuse settings that do not fit each other
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from latentddpm.choices import CONDITIONAL, DENOISERS
from latentddpm.config import AutoencoderRun, DiffusionRun
from latentddpm.data.buckets import buckets_of
from latentddpm.data.dataset import Dataset, open_dataset
from latentddpm.data.places.places import Data
from latentddpm.errors import UserError
from latentddpm.pipeline.model_folder import ModelFolder, read_model_folder
from latentddpm.training.plan import resolve, sizes
from latentddpm.training.plan.augment import check_augment
from latentddpm.training.plan.inherit import (
    check_distillation,
    inherit_autoencoder_config,
    inherit_pixels,
)
from latentddpm.training.plan.pixels import complete_pixels
from latentddpm.training.plan.signals import check_of_images
from latentddpm.training.plan.sources import Sources, read_sources
from latentddpm.training.plan.words import captions_of


def settle_vae(config: AutoencoderRun) -> tuple[AutoencoderRun, ModelFolder | None]:
    """Settings of a `train-vae` run with those of `init`, judged.

    Args:
        config: as given.

    Returns:
        The settings, where some may still be open, and the model that the run starts from.

    Raises:
        UserError: settings that do not fit each other, or `init`.
    """
    if config.training.train == "decoder" and config.training.latent_normalization != "scale":
        raise UserError(
            "training.latent_normalization=channels: with train=decoder the latents stay as they "
            "are; leave it out, or set training.train=all"
        )
    base = read_model_folder(config.init) if config.init else None
    if base is not None:
        config = inherit_autoencoder_config(config, base)
    elif config.training.train == "decoder":
        raise UserError("training.train=decoder: of which model? name it: init=MODEL or --init")
    config = _with_autoencoder_levels(config)
    check_vae(config)
    return config, base


def settle_diffusion(config: DiffusionRun, vae: str | Path | None) -> tuple[DiffusionRun, Sources]:
    """Settings of a `train-diffusion` run with those of its finished models, judged.

    Args:
        config: as given.
        vae: folder that holds an autoencoder, or "none" for pixels; None for the first stage of
            `config.init`.

    Returns:
        The settings, where some may still be open, and the finished models.

    Raises:
        UserError: settings that do not fit each other, or the finished models.
    """
    config, sources = read_sources(config, vae)
    if sources.first_stage.folder is not None:
        config = inherit_pixels(config, sources.first_stage.folder)
    if sources.first_stage.image_size is not None:
        side = min(sources.first_stage.image_size)
        config = resolve.fill(config, {"data": {"resolution": side}})
    config = _with_unet_levels(config, sources)
    check_diffusion(config, sources)
    return config, sources


def complete_vae(config: AutoencoderRun, dataset: Dataset) -> AutoencoderRun:
    """Settings of a `train-vae` run with those that follow from its data.

    Args:
        config: returned by `settle_vae`.
        dataset: of the run.

    Raises:
        UserError: settings that do not fit the resolution of the data.
    """
    config = complete_pixels(_with_captions(config, dataset), dataset.catalog)
    if config.data.resolution is not None:
        return config
    multipliers = config.autoencoder.channel_multipliers
    multiple = 1 if multipliers is None else sizes.factor_of(multipliers)
    side = resolve.resolution_of(dataset.catalog, multiple)
    config = _with_autoencoder_levels(resolve.fill(config, {"data": {"resolution": side}}))
    check_vae(config)
    return config


def complete_diffusion(
    config: DiffusionRun, sources: Sources, dataset: Dataset, captioned: bool
) -> DiffusionRun:
    """Settings of a `train-diffusion` run with those that follow from its data.

    Args:
        config: returned by `settle_diffusion`.
        sources: finished models of the run.
        dataset: of the run.
        captioned: True where an image has a caption.

    Raises:
        UserError: settings that do not fit the resolution of the data.
    """
    source = "scratch" if captioned and config.unet.kind in CONDITIONAL else "none"
    config = complete_pixels(_with_captions(config, dataset), dataset.catalog)
    share = resolve.TEXT_DROPOUT if config.conditions else 0.0
    config = resolve.fill(config, {"text": {"source": source, "dropout": share}})
    if config.data.resolution is None:
        multiple = sources.first_stage.downsample_factor
        if config.unet.channel_multipliers is not None:
            multiple *= sizes.factor_of(config.unet.channel_multipliers)
        side = resolve.resolution_of(dataset.catalog, multiple)
        config = resolve.fill(config, {"data": {"resolution": side}})
    config = _with_unet_levels(config, sources)
    check_diffusion(config, sources)
    return config


def dry_vae(config: AutoencoderRun, data: Data) -> AutoencoderRun:
    """Complete settings of a `train-vae` run; the data is opened only where they depend on it.

    Args:
        config: as given.
        data: of the run.

    Raises:
        UserError: see `plan_vae`.
    """
    config, _ = settle_vae(config)
    if config.data.resolution is None or resolve.is_open(config.data.captions):
        with tempfile.TemporaryDirectory() as folder:
            config = complete_vae(config, open_dataset(data, folder, config.data))
    return config


def dry_diffusion(
    config: DiffusionRun, data: Data, vae: str | Path | None
) -> tuple[DiffusionRun, Sources]:
    """Complete settings of a `train-diffusion` run, and the finished models that it uses.

    The data is opened only where the settings depend on it.

    Args:
        config: as given.
        data: of the run.
        vae: folder that holds an autoencoder, or "none" for pixels; None for the first stage of
            `config.init`.

    Raises:
        UserError: see `plan_diffusion`.
    """
    config, sources = settle_diffusion(config, vae)
    open_keys = config.data.resolution, config.text.source, config.data.captions
    if any(map(resolve.is_open, open_keys)):
        with tempfile.TemporaryDirectory() as folder:
            dataset = open_dataset(data, folder, config.data)
            config = complete_diffusion(config, sources, dataset, captions_of(dataset))
    return config, sources


def check_vae(config: AutoencoderRun) -> None:
    """Refuse settings of a `train-vae` run that do not fit each other, as far as they are known.

    Args:
        config: of the run.

    Raises:
        UserError: naming the setting.
    """
    side, own = config.data.resolution, config.autoencoder
    if config.data.spatial_dims == 1:
        raise UserError(
            "data.spatial_dims=1: there is no autoencoder of signals; train on them directly: "
            "train-diffusion --vae none"
        )
    sizes.check_autoencoder(own)
    if side is not None and own.channel_multipliers is not None:
        factor = sizes.factor_of(own.channel_multipliers)
        sizes.check_multiple(
            "data.resolution", side, factor, "the autoencoder's downsample factor"
        )
    if config.adversarial.weight:
        sizes.check_discriminator(config.discriminator, side)
    if config.perceptual.source == "none":
        if config.training.best_metric == "perceptual":
            raise UserError("training.best_metric=perceptual: needs a perceptual.source")
        return
    if side is not None and side < sizes.SMALLEST_PERCEPTUAL:
        raise UserError(
            f"perceptual.source: VGG16 needs a data.resolution of at least "
            f"{sizes.SMALLEST_PERCEPTUAL}, got {side}"
        )
    if config.perceptual.source not in ("imagenet", "hed"):
        path = Path(config.perceptual.source)
        if not path.is_file():
            raise UserError(
                f"perceptual.source: {str(path)!r}: neither 'imagenet' nor 'hed', and no such file"
            )


def check_diffusion(config: DiffusionRun, sources: Sources) -> None:
    """Refuse settings of a `train-diffusion` run that do not fit each other, as far as known.

    Args:
        config: of the run.
        sources: finished models of the run.

    Raises:
        UserError: naming the setting.
    """
    if sources.base is None:
        sizes.check_unet(config.unet)
        sizes.check_text(config.text, config.unet.kind)
        if config.text.source == "clip" and not Path(config.text.path).is_dir():
            raise UserError(f"text.path: {config.text.path}: no such folder of a CLIP model")
    check_of_images(config)
    check_augment(config)
    check_distillation(config)
    sizes.check_schedule(config.schedule, config.samples, config.training)
    if config.data.resolution is not None:
        sizes.check_sides(config.data, sources.first_stage.downsample_factor)
        buckets_of(config.data)


def _with_captions(config: resolve.Config, dataset: Dataset) -> resolve.Config:
    """Settings with the rule for captions that `auto` was settled on."""
    return resolve.fill(config, {"data": {"captions": dataset.config.captions}})


def _with_autoencoder_levels(config: AutoencoderRun) -> AutoencoderRun:
    side = config.data.resolution
    levels = None if side is None else resolve.autoencoder_levels(side)
    return resolve.fill(config, {"autoencoder": {"channel_multipliers": levels}})


def _with_unet_levels(config: DiffusionRun, sources: Sources) -> DiffusionRun:
    taken = DENOISERS[config.unet.kind]
    if config.data.resolution is None or "channel_multipliers" not in taken:
        return config
    side = config.data.resolution // sources.first_stage.downsample_factor
    levels = resolve.unet_levels(side, config.unet.kind)
    config = resolve.fill(config, {"unet": {"channel_multipliers": levels}})
    if "attention_levels" in taken:
        count = len(config.unet.channel_multipliers)
        attention = resolve.attention_levels(count, side, config.data.spatial_dims)
        config = resolve.fill(config, {"unet": {"attention_levels": attention}})
    return config
