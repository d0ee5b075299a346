"""Encoding of images into the latents cache (`encode`), ahead of `train-diffusion`."""

from __future__ import annotations

from pathlib import Path

import tensorflow as tf

from latentddpm.data.buckets import Buckets, make_buckets
from latentddpm.data.dataset import open_dataset
from latentddpm.data.latents.cache import LatentsCache, prepare_latents
from latentddpm.distribution.strategy import process_group
from latentddpm.errors import UserError
from latentddpm.models.archive import load_archive
from latentddpm.models.autoencoder.autoencoder import Autoencoder
from latentddpm.pipeline.model_folder import read_model_folder
from latentddpm.utils import signals


@signals.listening()
def encode_folder(
    data: str | Path,
    vae: Path,
    out: Path,
    *,
    catalog: Path | None = None,
    resolution: int | None = None,
    aspect_buckets: tuple[int, float] | None = None,
    mirrored: bool = False,
    strict: bool = False,
    quiet: bool = False,
    strategy: tf.distribute.Strategy | None = None,
) -> LatentsCache:
    """Encode every readable image of `data`; a cache that fits already is left as it is.

    Args:
        data: a folder of images or shards; see `data.sources.open.open_source`.
        catalog: folder of the catalog, `out/catalog` by default.
        resolution: side in pixels; None for the size the autoencoder was trained at.
        aspect_buckets: step and greatest ratio of `data.buckets`; None for squares alone.
        strategy: of several processes each encodes a part of the images.

    Raises:
        UserError: unusable data or model folder, a resolution that does not fit.
        signals.Stopped: a signal came; what was encoded is noted.
    """
    source = read_model_folder(vae)
    if resolution is None:
        if source.image_size is None:
            raise UserError("--resolution: needed, this autoencoder names no size of its own")
        resolution = source.image_size[0]
    buckets = make_buckets(resolution, *aspect_buckets) if aspect_buckets else Buckets(resolution)
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
        load_autoencoder=lambda: load_archive(source.file("vae"), Autoencoder),
        resolution=buckets,
        mirrored=mirrored,
        quiet=quiet,
        processes=processes,
    )
