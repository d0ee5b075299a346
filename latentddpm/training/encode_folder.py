"""Encoding of images into a latents cache (`encode`), before `train-diffusion`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from latentddpm.choices import PRECISIONS
from latentddpm.data.buckets import Buckets, make_buckets
from latentddpm.data.dataset import open_dataset
from latentddpm.data.latents.cache import LatentsCache, prepare_latents
from latentddpm.data.places.places import Data, open_places
from latentddpm.errors import UserError, check_choice
from latentddpm.models.precision import settle_precision
from latentddpm.pipeline.model_folder import ModelFolder, read_model_folder
from latentddpm.training.plan.plan import check_out
from latentddpm.training.plan.sizes import check_multiple, factor_of
from latentddpm.utils import signals
from latentddpm.utils.files import AUTOENCODER, read_arguments

if TYPE_CHECKING:
    import tensorflow as tf


def plan_encoding(
    data: Data,
    vae: Path,
    out: Path,
    resolution: int | None = None,
    aspect_buckets: tuple[int, float] | None = None,
) -> tuple[ModelFolder, Buckets]:
    """Judge an encoding, without Keras; arguments as of `encode_folder`.

    Returns:
        Folder of the autoencoder, and shapes of the images.

    Raises:
        UserError: nothing at the place, no autoencoder, or a size that does not fit it.
        OSError: the folder cannot be written.
    """
    check_out(out)
    open_places(data)
    source = read_model_folder(vae)
    if resolution is None:
        if source.image_size is None:
            raise UserError("--resolution: needed, this autoencoder names no size of its own")
        resolution = source.image_size[0]
    if resolution < 1:
        raise UserError(f"--resolution: {resolution}, expected pixels")
    multipliers = read_arguments(source.file("vae"), AUTOENCODER)["channel_multipliers"]
    factor, whose = factor_of(multipliers), "the autoencoder's downsample factor"
    check_multiple("--resolution", resolution, factor, whose)
    if aspect_buckets is None:
        return source, Buckets(resolution)
    check_multiple("--bucket-step", aspect_buckets[0], factor, whose)
    return source, make_buckets(resolution, *aspect_buckets)


@signals.listening()
def encode_folder(
    data: Data,
    vae: Path,
    out: Path,
    *,
    catalog: Path | None = None,
    resolution: int | None = None,
    aspect_buckets: tuple[int, float] | None = None,
    mirrored: bool = False,
    precision: str = "float32",
    strict: bool = False,
    quiet: bool = False,
    strategy: tf.distribute.Strategy | None = None,
) -> LatentsCache:
    """Encode every readable image; a cache that is already complete is left as it is.

    Args:
        data: folder of images or shards, or several; see `data.places.places.as_places`.
        vae: model folder, or finished `train-vae` run.
        out: folder of the latents cache.
        catalog: folder of the catalog; None for `out/catalog`.
        resolution: side of the square in pixels; None for the size of the autoencoder's training.
        aspect_buckets: (step in pixels, greatest ratio of the sides) of `data.buckets`; None for
            squares only.
        mirrored: encode a mirrored copy of each image too.
        precision: that the autoencoder computes in, one of `choices.PRECISIONS`.
        strict: refuse data with unreadable images.
        quiet: show no progress.
        strategy: from `distribution.strategy.make_strategy`; with several processes each encodes
            a part of the images. None for one process.

    Returns:
        The cache.

    Raises:
        UserError: unusable data or model folder, or a resolution that does not fit.
        signals.Stopped: a signal came; the next call goes on from there.
    """
    from latentddpm.distribution.strategy import process_group
    from latentddpm.models.archive import load_archive
    from latentddpm.models.autoencoder.autoencoder import Autoencoder

    check_choice("precision", precision, PRECISIONS)
    precision = settle_precision(precision)
    source, buckets = plan_encoding(data, vae, out, resolution, aspect_buckets)
    processes = process_group(strategy)
    dataset = open_dataset(
        data,
        catalog or out / "catalog",
        processes=processes,
        strict=strict,
        quiet=quiet or not processes.is_chief,
    )
    return prepare_latents(
        dataset.catalog,
        out,
        vae_digest=source.parts["vae"]["digest"],
        load_autoencoder=lambda: load_archive(
            source.file("vae"), Autoencoder, precision=precision
        ),
        resolution=buckets,
        pixels=source.pixels,
        mirrored=mirrored,
        precision=precision,
        quiet=quiet,
        processes=processes,
    )
