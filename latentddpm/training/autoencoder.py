"""`train-vae`: a folder of images → an autoencoder whose latent scale was measured.

Images are read, encoded, sampled and decoded; the loss is reconstruction + KL (see
`models.autoencoder`). At the end the moments of the whole training set give

    scaling_factor = 1 / std(raw latents)        over samples, so var = E[σ²] + Var[μ]

(Rombach et al. 2022, appendix D.1), stored in the model with per-channel statistics.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from latentddpm import interrupt
from latentddpm.config import AutoencoderRun
from latentddpm.data import examples
from latentddpm.data.crew import ALONE, Crew
from latentddpm.data.draws import Draws
from latentddpm.data.scan import open_catalog
from latentddpm.data.split import Selection, split_catalog
from latentddpm.errors import UserError
from latentddpm.modelfolder import read_model_folder
from latentddpm.models.archive import load_archive
from latentddpm.models.autoencoder import Autoencoder
from latentddpm.models.functional import remade
from latentddpm.notes import say
from latentddpm.pictures import grid, save_png, to_pixels
from latentddpm.pipeline import LatentDiffusion
from latentddpm.training.callbacks import StopEvaluation, averaged_weights
from latentddpm.training.distribute import crew_of, feed, in_scope
from latentddpm.training.finetune import adopt_autoencoder
from latentddpm.training.loop import (
    compile_options,
    in_float32,
    layer_policy,
    run_steps,
)
from latentddpm.training.progress import introduce
from latentddpm.training.resume import agree, check_run, data_facts
from latentddpm.training.runlog import RunLog
from latentddpm.training.wandb_log import import_wandb

GRID_IMAGES = 16


def build_autoencoder(config: AutoencoderRun) -> tuple[AutoencoderRun, Autoencoder]:
    """The autoencoder of a configuration: untrained, reproducible by its seed, or that of `init`.

    Returns:
        The configuration as well, once it agrees with `init`.

    Raises:
        UserError: sizes that do not fit each other, the resolution, or `init`.
    """
    keras.utils.set_random_seed(config.training.seed)
    base = read_model_folder(config.init) if config.init else None
    if base is not None:
        config = adopt_autoencoder(config, base)
    dtype = layer_policy(config.training)
    if base is not None:
        model = remade(load_archive(base.file("vae"), Autoencoder), dtype=dtype)
    else:
        try:
            model = Autoencoder(**config.autoencoder.model_dump(), dtype=dtype)
        except ValueError as error:
            raise UserError(f"autoencoder: {error}") from None
    model.check_size(config.data.resolution, config.data.resolution)
    return config, model


@interrupt.listening()
def train_autoencoder(
    config: AutoencoderRun,
    data: str | Path,
    out: Path,
    *,
    catalog: Path | None = None,
    resume: bool = False,
    allow_changes: bool = False,
    strict: bool = False,
    quiet: bool = False,
    strategy: tf.distribute.Strategy | None = None,
) -> Autoencoder:
    """Train on the images of `data` and leave `out/model/vae.keras`.

    Args:
        data: a folder of images or shards; see `data.sources.open_source`.
        catalog: folder of the catalog, `out/catalog` by default.
        allow_changes: with `resume`, other settings or data than the run was started with.
        strategy: of `distribute.make_strategy`; None for one device.

    Raises:
        UserError: unusable folder, a resolution the downsample factor does not divide, a run
            folder that is taken (or, with `resume`, empty or of another run).
        interrupt.Stopped, Diverged, MemoryError, OSError: see `loop.run_steps`.
    """
    check_run(out, resume)
    if config.training.wandb:
        import_wandb()
    with in_scope(strategy):
        config, model = build_autoencoder(config)
        settings = config.training
        model.compile(
            **compile_options(settings),
            reconstruction_loss=settings.reconstruction_loss,
            kl_weight=settings.kl_weight,
        )
    crew = crew_of(strategy)
    quiet = quiet or not crew.chief
    catalog = catalog or out / "catalog"
    catalog = open_catalog(data, catalog, strict=strict, quiet=quiet, crew=crew)
    if crew.chief:
        catalog.report()
    by_caption = config.data.validation_by == "caption"
    facts = {"captions": catalog.row_digest} if by_caption else {}
    if config.init:
        facts["init"] = read_model_folder(config.init).digest
    contract = agree(
        out,
        config,
        data_facts(catalog, **facts),
        resume=resume,
        allow_changes=allow_changes,
        quiet=quiet,
    )
    training_images, validation_images = split_catalog(catalog, config.data)
    factor = model.downsample_factor
    size = config.data.resolution // factor
    common = {
        "catalog": catalog,
        "resolution": config.data.resolution,
        "latent_shape": (size, size, model.latent_channels),
    }
    draws = Draws(settings.seed, "train-vae")

    def training_examples(start: int, stop: int) -> tf.data.Dataset:
        batch_size = settings.batch_size
        positions, own = examples.share(start * batch_size, stop * batch_size, batch_size, crew)
        batches = examples.image_examples(
            selection=training_images,
            draws=draws,
            positions=positions,
            batch_size=own,
            background=config.data.background,
            flip=config.data.flip,
            **common,
        )
        return feed(strategy, batches)

    def in_order(
        images: Selection, most: int | None = None, crew: Crew = ALONE
    ) -> tf.data.Dataset:
        count = len(images) if most is None else min(len(images), most)
        positions, own = examples.share(0, count, settings.batch_size, crew)
        return examples.image_examples(
            selection=images, draws=None, positions=positions, batch_size=own, **common
        )

    parts = {"encoder": model.encoder, "decoder": model.decoder}
    images = len(training_images), len(validation_images)
    say(introduce(config, model, parts, images, out), quiet)

    def validate(step: int, log: RunLog) -> None:
        if not len(validation_images):
            return
        with averaged_weights(model):
            values = model.evaluate(
                feed(strategy, in_order(validation_images, crew=crew)),
                verbose=0,
                callbacks=[StopEvaluation()] if crew.count == 1 else None,
                return_dict=True,
            )
            values["psnr"] = 10.0 * math.log10(4.0 / max(values["mse"], 1e-12))
            log.write(step, {f"validation_{key}": v for key, v in values.items()})
            if not crew.chief:
                return
            picture = reconstruction_grid(model, in_order(validation_images, GRID_IMAGES))
        save_png(out / "samples" / f"step-{step:08d}.png", picture)
        log.picture(step, "reconstructions", picture)

    run_steps(
        model,
        training_examples,
        config,
        out,
        validate,
        contract=contract,
        resume=resume,
        quiet=quiet,
        strategy=strategy,
    )
    model = in_float32(model)
    if crew.chief:
        statistics = measure_latents(model, in_order(training_images))
        model.scaling_factor = 1.0 / statistics["std"]
        model.latent_statistics = statistics
        size = config.data.resolution, config.data.resolution
        LatentDiffusion(model, None, None, image_size=size).save(out / "model")
    crew.barrier()
    return model


def reconstruction_grid(model: Autoencoder, dataset: tf.data.Dataset) -> np.ndarray:
    """Originals above their reconstructions, uint8."""
    batch = next(iter(dataset.unbatch().batch(GRID_IMAGES)))["images"]
    half = max(len(batch) // 2, 1)
    decoded = model.decode(model.to_latents(model.encode(batch)[0]))
    pairs = to_pixels(batch), to_pixels(decoded)
    rows = [part[i : i + half] for i in range(0, len(batch), half) for part in pairs]
    return grid([row for row in rows if len(row)])


def measure_latents(model: Autoencoder, dataset: tf.data.Dataset) -> dict[str, Any]:
    """Mean and standard deviation of raw posterior samples over a whole dataset.

    The variance of a sample is E[σ²] + Var[μ], so nothing is drawn. Sums run in float64.
    """
    count, total, squares = 0, 0.0, 0.0
    for batch in dataset:
        images = np.asarray(batch["images"])
        mean, logvar = (part.astype(np.float64) for part in model.encode_on_batch(images))
        count += mean.shape[0]
        total = total + mean.mean(axis=(1, 2)).sum(axis=0)
        squares = squares + (np.square(mean) + np.exp(logvar)).mean(axis=(1, 2)).sum(axis=0)
    channel_mean = total / count
    second = squares / count
    overall = float(channel_mean.mean())
    return {
        "count": count,
        "mean": overall,
        "std": math.sqrt(float(second.mean()) - overall**2),
        "channel_mean": channel_mean.tolist(),
        "channel_std": np.sqrt(second - np.square(channel_mean)).tolist(),
    }
