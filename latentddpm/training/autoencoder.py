"""`train-vae`: a folder of images → an autoencoder whose latent scale was measured.

Images are read, encoded, sampled and decoded; the loss is reconstruction + KL (see
`models.autoencoder.autoencoder`), with a perceptual distance and a discriminator where they are
asked for (`training.step.adversarial_step`). At the end the moments of the whole training set give

    scaling_factor = 1 / std(raw latents)        over samples, so var = E[σ²] + Var[μ]

(Rombach et al. 2022, appendix D.1), stored in the model with per-channel statistics. Where the
decoder alone is trained, latents and all that was learned of them stay as they are.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from latentddpm.config import AutoencoderRun
from latentddpm.data import examples
from latentddpm.data.catalog.scan import open_catalog
from latentddpm.data.catalog.split import Selection, split_catalog
from latentddpm.data.random import RandomStream
from latentddpm.distribution.processes import ONE_PROCESS, ProcessGroup
from latentddpm.distribution.strategy import (
    any_process,
    distribute_dataset,
    in_scope,
    process_group,
)
from latentddpm.evaluation.metrics.similarity import WINDOW, psnr, ssim
from latentddpm.interop.vgg import describe
from latentddpm.models.autoencoder.autoencoder import Autoencoder
from latentddpm.pipeline.latent_diffusion import LatentDiffusion
from latentddpm.pipeline.model_folder import read_model_folder
from latentddpm.training.autoencoder_networks import (
    build_adversary,
    build_autoencoder,
    build_perceptual,
)
from latentddpm.training.run.callbacks import StopEvaluation, averaged_weights
from latentddpm.training.run.loop import (
    compile_options,
    in_float32,
    run_steps,
)
from latentddpm.training.run.progress import run_summary
from latentddpm.training.run.resume import check_best, check_resume, check_run, data_facts
from latentddpm.training.run.runlog import RunLog
from latentddpm.training.run.wandb_log import import_wandb
from latentddpm.utils import signals
from latentddpm.utils.console import say
from latentddpm.utils.pixels import grid, save_png, to_pixels

GRID_IMAGES = 16
MEASURED_IMAGES = 64
"""Held-back images, always the same, that PSNR and SSIM are the means over."""


@signals.listening()
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
        data: a folder of images or shards; see `data.sources.open.open_source`.
        catalog: folder of the catalog, `out/catalog` by default.
        allow_changes: with `resume`, other settings or data than the run was started with.
        strategy: of `distribute.make_strategy`; None for one device.

    Raises:
        UserError: unusable folder, a resolution the downsample factor does not divide, a run
            folder that is taken (or, with `resume`, empty or of another run).
        signals.Stopped, Diverged, MemoryError, OSError: see `loop.run_steps`.
    """
    check_run(out, resume)
    if config.training.wandb:
        import_wandb()
    with in_scope(strategy):
        config, model = build_autoencoder(config)
        settings = config.training
        perceptual = build_perceptual(config)
        model.compile(
            **compile_options(settings),
            reconstruction_loss=settings.reconstruction_loss,
            kl_weight=settings.kl_weight,
            perceptual=perceptual,
            perceptual_weight=config.perceptual.weight,
            adversary=build_adversary(config),
        )
    processes = process_group(strategy)
    quiet = quiet or not processes.is_chief
    catalog = catalog or out / "catalog"
    catalog = open_catalog(data, catalog, strict=strict, quiet=quiet, processes=processes)
    facts = {}
    if config.init:
        facts["init"] = read_model_folder(config.init).digest
    if perceptual:
        facts["perceptual distance"] = describe(perceptual)
    if config.data.validation_by == "caption":
        facts["captions"] = catalog.row_digest
    contract = check_resume(
        out,
        config,
        data_facts(catalog, **facts),
        resume=resume,
        allow_changes=allow_changes,
        quiet=quiet,
    )
    training_images, validation_images = split_catalog(catalog, config.data)
    check_best(settings, len(validation_images))
    factor = model.downsample_factor
    size = config.data.resolution // factor
    common = {
        "catalog": catalog,
        "resolution": config.data.resolution,
        "latent_shape": (size, size, model.latent_channels),
    }
    stream = RandomStream(settings.seed, "train-vae")

    def training_examples(start: int, stop: int) -> tf.data.Dataset:
        batch_size = settings.batch_size
        positions, own = examples.share(
            start * batch_size, stop * batch_size, batch_size, processes
        )
        batches = examples.image_examples(
            selection=training_images,
            stream=stream,
            positions=positions,
            batch_size=own,
            background=config.data.background,
            flip=config.data.flip,
            **common,
        )
        return distribute_dataset(strategy, batches)

    def in_order(
        images: Selection, most: int | None = None, processes: ProcessGroup = ONE_PROCESS
    ) -> tf.data.Dataset:
        count = len(images) if most is None else min(len(images), most)
        positions, own = examples.share(0, count, settings.batch_size, processes)
        return examples.image_examples(
            selection=images, stream=None, positions=positions, batch_size=own, **common
        )

    best_metric = settings.best_metric
    if best_metric == "perceptual":
        best_metric = perceptual.term
    parts = {"encoder": model.encoder, "decoder": model.decoder}
    if model.adversary:
        parts["discriminator"] = model.adversary.discriminator
    images = len(training_images), len(validation_images)
    say(run_summary(config, model, parts, images, out), quiet)
    if perceptual:
        say(f"distance   {describe(perceptual)}", quiet)

    def validate(step: int, log: RunLog) -> dict[str, float]:
        if not len(validation_images):
            return {}
        with averaged_weights(model):
            values = model.evaluate(
                distribute_dataset(strategy, in_order(validation_images, processes=processes)),
                steps=math.ceil(len(validation_images) / settings.batch_size),
                verbose=0,
                callbacks=[StopEvaluation(any_process(strategy))],
                return_dict=True,
            )
            if not processes.is_chief:
                return {}
            pairs = reconstruct(model, in_order(validation_images, MEASURED_IMAGES))
        values = {f"validation_{key}": v for key, v in {**values, **psnr_and_ssim(*pairs)}.items()}
        log.write(step, values)
        picture = reconstruction_grid(*pairs)
        save_png(out / "samples" / f"step-{step:08d}.png", picture)
        log.picture(step, "reconstructions", picture)
        return values

    run_steps(
        model,
        training_examples,
        config,
        out,
        validate,
        best_metric=best_metric,
        contract=contract,
        resume=resume,
        quiet=quiet,
        strategy=strategy,
    )
    model = in_float32(model)
    if processes.is_chief:
        if settings.train == "all":
            statistics = measure_latents(model, in_order(training_images))
            model.scaling_factor = 1.0 / statistics["std"]
            model.latent_statistics = statistics
        whole_model(config, model).save(out / "model")
    processes.barrier()
    return model


def whole_model(config: AutoencoderRun, autoencoder: Autoencoder) -> LatentDiffusion:
    """What a run leaves: the autoencoder; where its latents are those of `init`, with all that
    `init` has beside it."""
    if config.training.train == "decoder":
        base = read_model_folder(config.init)
        if "unet" in base.parts:
            whole = LatentDiffusion.load(base.path)
            whole.autoencoder = autoencoder
            return whole
    size = config.data.resolution, config.data.resolution
    return LatentDiffusion(autoencoder, None, None, image_size=size)


def reconstruct(
    model: Autoencoder, dataset: tf.data.Dataset
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Images and their reconstructions, uint8, in batches."""
    originals, decoded = [], []
    for batch in dataset:
        latents = model.to_latents(model.encode(batch["images"])[0])
        originals.append(to_pixels(batch["images"]))
        decoded.append(to_pixels(model.decode(latents)))
    return originals, decoded


def psnr_and_ssim(originals: list[np.ndarray], decoded: list[np.ndarray]) -> dict[str, float]:
    """Mean PSNR in dB and, where images are large enough for it, mean SSIM."""
    measures = {"psnr": psnr, "ssim": ssim}
    if min(originals[0].shape[1:3]) < WINDOW:
        del measures["ssim"]
    return {
        name: float(np.mean(np.concatenate([*map(measure, decoded, originals)])))
        for name, measure in measures.items()
    }


def reconstruction_grid(originals: list[np.ndarray], decoded: list[np.ndarray]) -> np.ndarray:
    """The first originals above their reconstructions, uint8."""
    pairs = [np.concatenate(part)[:GRID_IMAGES] for part in (originals, decoded)]
    half = max(len(pairs[0]) // 2, 1)
    return grid([part[i : i + half] for i in range(0, len(pairs[0]), half) for part in pairs])


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
