"""Training of an autoencoder (`train-vae`): images → an autoencoder with its scaling factor.

    images ─► Encoder ─► sample of the posterior ─► Decoder ─► loss of `AutoencoderTrainer`

At the end the moments of all training images give

    scaling_factor = 1 / std(raw latents)        over samples, so var = E[σ²] + Var[μ]

(Rombach et al. 2022, appendix D.1), which the model stores with statistics of each channel. With
`latent_normalization` "channels" each channel has a factor of its own, and its mean is subtracted.
Where only the decoder is trained, latents and their scaling stay the same, so a UNet trained on
these latents fits the new autoencoder too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

import latentddpm
from latentddpm.config import AutoencoderRun
from latentddpm.data.batches import ImageBatches
from latentddpm.data.places.places import Data
from latentddpm.distribution.strategy import any_process, in_scope
from latentddpm.evaluation.metrics.similarity import WINDOW, psnr, ssim
from latentddpm.interop.vgg import describe
from latentddpm.models.autoencoder.autoencoder import Autoencoder
from latentddpm.models.autoencoder.latent_space import LatentSpace
from latentddpm.pipeline.latent_diffusion import LatentDiffusion
from latentddpm.pipeline.model_folder import read_model_folder
from latentddpm.training.autoencoder_networks import (
    build_adversary,
    build_autoencoder,
    build_perceptual,
)
from latentddpm.training.plan.plan import Plan, plan_vae
from latentddpm.training.precision import settle_jit, settle_precision
from latentddpm.training.run.callbacks import StopEvaluation, averaged_weights
from latentddpm.training.run.loop import compile_options, in_float32, run_steps
from latentddpm.training.run.progress import large_plan, run_summary
from latentddpm.training.run.run import Run
from latentddpm.training.run.runlog import RunLog
from latentddpm.training.step.autoencoder_trainer import AutoencoderTrainer
from latentddpm.utils import signals
from latentddpm.utils.console import activity
from latentddpm.utils.images.labels import labelled_grid
from latentddpm.utils.images.pixel_format import PixelFormat
from latentddpm.utils.pixels import as_rgb, save_png, to_pixels

GRID_IMAGES = 16
LABELS = "validation images", "their reconstructions"
"""Text above the first rows of the grid; the further rows come in the same pairs."""
MEASURED_IMAGES = 64
"""Number of validation images, always the same ones, for the mean PSNR and SSIM."""


def train_vae(
    config: AutoencoderRun | dict[str, Any] | str | Path,
    data: Data,
    out: str | Path,
    *,
    catalog: str | Path | None = None,
    strict: bool = False,
    resume: bool = False,
    allow_changes: bool = False,
    quiet: bool = False,
    strategy: tf.distribute.Strategy | None = None,
) -> Autoencoder:
    """Train an autoencoder on images, as the command `train-vae` does; writes `out/model`.

    Args:
        config: settings, as an `AutoencoderRun`, a dictionary of those that differ from the
            defaults, the path of such a YAML file, or the name of a ready one.
        data: folder of images or shards, or several with weights; see
            `data.places.places.as_places`.
        out: run folder.
        catalog: folder of the catalog; None for `out/catalog`.
        strict: refuse data with unreadable images.
        resume: go on from the newest checkpoint.
        allow_changes: with `resume`, accept other settings or data than the run started with.
        quiet: show no progress.
        strategy: from `distribution.strategy.make_strategy`; None for one device.

    Returns:
        The trained autoencoder, with its EMA weights, in float32.

    Raises:
        UserError: see `training.plan.plan.plan_vae` and `train_planned`.
        signals.Stopped, Diverged, MemoryError, OSError: see `training.run.loop.run_steps`.

    Example:
        ```python
        autoencoder = train_vae("small-64-vae", "photos", "runs/vae")
        ```
    """
    plan = plan_vae(
        config,
        data,
        out,
        catalog=catalog,
        strict=strict,
        resume=resume,
        allow_changes=allow_changes,
        quiet=quiet,
        strategy=strategy,
    )
    return train_planned(plan)


@signals.listening()
def train_planned(plan: Plan) -> Autoencoder:
    """Train an autoencoder as planned; writes `model` in the run folder.

    Args:
        plan: returned by `training.plan.plan.plan_vae`.

    Returns:
        The trained autoencoder, with its EMA weights, in float32.

    Raises:
        UserError: networks that cannot be read or do not fit.
        signals.Stopped, Diverged, MemoryError, OSError: see `training.run.loop.run_steps`.
    """
    run, dataset = plan.run, plan.dataset
    out, strategy = run.folder, run.strategy
    config, precision = settle_precision(run.config, out if run.resume else None, strategy)
    config, may_fall_back = settle_jit(config, strategy)
    plan = replace(plan, run=replace(run, config=config))
    run = plan.run

    # === Networks ===
    with in_scope(strategy), activity("building the networks", run.silent):
        autoencoder = build_autoencoder(config)
        perceptual = build_perceptual(config)
        trainer = AutoencoderTrainer(
            autoencoder,
            config.training.reconstruction_loss,
            config.training.kl_weight,
            perceptual,
            config.perceptual.weight,
            build_adversary(config),
        )
        trainer.compile(**compile_options(config.training))
    late = {}
    if perceptual:
        late["perceptual distance"] = describe(perceptual)
    contract = plan.agreed(**late)

    # === Data ===
    side = config.data.resolution // autoencoder.downsample_factor
    latent_shape = (side, side, autoencoder.latent_channels)
    batches = ImageBatches(dataset, config, latent_shape, strategy)

    # === Fit ===
    parts = {"encoder": autoencoder.encoder, "decoder": autoencoder.decoder}
    if trainer.adversary:
        parts["discriminator"] = trainer.adversary.discriminator
    images = len(dataset.training), len(dataset.validation)
    notes = [*plan.notes, *[precision] * bool(precision), *large_plan(run)]
    run.say("\n".join([run_summary(run, trainer, parts, images), *notes]))
    if perceptual:
        run.say(f"distance   {describe(perceptual)}")
    best_metric = config.training.best_metric
    if best_metric == "perceptual":
        best_metric = perceptual.term
    validate = Validation(run, trainer, batches)
    run_steps(run, trainer, batches.training, validate, contract, best_metric, may_fall_back)
    autoencoder = in_float32(autoencoder)
    if run.is_chief:
        if config.training.train == "all":
            with activity("measuring the latents of all training images", run.silent):
                statistics = measure_latents(autoencoder, batches.in_order(dataset.training))
            space = measured_space(statistics, config.training.latent_normalization)
            autoencoder.scaling_factor = space.scaling_factor
            autoencoder.shift_factor = space.shift_factor
            autoencoder.latent_statistics = statistics
        whole_model(config, autoencoder).save(out / "model")
    run.processes.barrier()
    return autoencoder


class Validation:
    """Validation of an autoencoder: losses, PSNR, SSIM, and images above their reconstructions.

    Args:
        run: folder, settings and processes.
        trainer: compiled.
        batches: with the validation images.
    """

    def __init__(self, run: Run, trainer: AutoencoderTrainer, batches: ImageBatches) -> None:
        self.run, self.trainer, self.batches = run, trainer, batches

    def __call__(self, step: int, log: RunLog) -> dict[str, float]:
        """Validate with the EMA weights.

        Args:
            step: optimizer steps so far.
            log: to write to.

        Returns:
            The numbers written into the log, by name; none in processes other than the chief.

        Raises:
            signals.Stopped: a signal came.
        """
        images = self.batches.dataset.validation
        if not len(images):
            return {}
        with averaged_weights(self.trainer):
            values = self.trainer.evaluate(
                self.batches.validation(),
                steps=self.batches.validation_steps,
                verbose=0,
                callbacks=[StopEvaluation(any_process(self.run.strategy))],
                return_dict=True,
            )
            if not self.run.is_chief:
                return {}
            measured = self.batches.in_order(images, MEASURED_IMAGES)
            pairs = reconstruct(self.trainer.autoencoder, measured)
        values = {**values, **psnr_and_ssim(*pairs)}
        values = {f"validation_{key}": value for key, value in values.items()}
        log.write(step, values)
        picture = reconstruction_grid(*pairs)
        catalog = self.batches.dataset.catalog
        shown = images.rows(np.arange(min(len(images), GRID_IMAGES)))
        making = {
            "latentddpm": latentddpm.__version__,
            "training_step": step,
            "images": [catalog.name(int(row)) for row in shown],
        }
        save_png(self.run.sample_path(step), picture, making)
        log.picture(step, "reconstructions", picture)
        return values


def whole_model(config: AutoencoderRun, autoencoder: Autoencoder) -> LatentDiffusion:
    """Model to save at the end of a run.

    It has the autoencoder alone. Where only the decoder was trained, UNet and text encoder of
    `init` still fit and come with it.

    Args:
        config: of the run.
        autoencoder: trained.
    """
    if config.training.train == "decoder":
        base = read_model_folder(config.init)
        if "unet" in base.parts:
            whole = LatentDiffusion.load(base.path)
            whole.autoencoder = autoencoder
            return whole
    size = config.data.resolution, config.data.resolution
    pixels = PixelFormat.of(config.data)
    return LatentDiffusion(autoencoder, None, None, image_size=size, pixels=pixels)


def reconstruct(
    autoencoder: Autoencoder, dataset: tf.data.Dataset
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Images and their reconstructions from the mode of the posterior.

    Args:
        autoencoder: to use.
        dataset: batches `{"images": (B, H, W, 3) in [-1, 1]}`.

    Returns:
        (originals, decoded): lists of uint8 (B, H, W, 3), one array for each batch.
    """
    originals, decoded = [], []
    for batch in dataset:
        latents = autoencoder.to_latents(autoencoder.encode(batch["images"])[0])
        originals.append(to_pixels(batch["images"]))
        decoded.append(to_pixels(autoencoder.decode(latents)))
    return originals, decoded


def psnr_and_ssim(originals: list[np.ndarray], decoded: list[np.ndarray]) -> dict[str, float]:
    """Mean PSNR in dB, `psnr`, and for images of at least 11×11 pixels mean SSIM, `ssim`.

    Args:
        originals, decoded: batches of images and reconstructions, uint8 (B, H, W, 3) each.
    """
    measures = {"psnr": psnr, "ssim": ssim}
    if min(originals[0].shape[1:3]) < WINDOW:
        del measures["ssim"]
    return {
        name: float(np.mean(np.concatenate([*map(measure, decoded, originals)])))
        for name, measure in measures.items()
    }


def reconstruction_grid(originals: list[np.ndarray], decoded: list[np.ndarray]) -> np.ndarray:
    """Picture of the first images above their reconstructions, uint8 (H', W', 3).

    Args:
        originals, decoded: batches of images and reconstructions, uint8 (B, H, W, C) each.
    """
    pairs = [as_rgb(np.concatenate(part)[:GRID_IMAGES]) for part in (originals, decoded)]
    half = max(len(pairs[0]) // 2, 1)
    rows = [part[i : i + half] for i in range(0, len(pairs[0]), half) for part in pairs]
    return labelled_grid(rows, [*LABELS, *[""] * (len(rows) - len(LABELS))])


def measured_space(statistics: Mapping[str, Any], normalization: str = "scale") -> LatentSpace:
    """Latent space in which latents of some statistics have unit variance.

    Args:
        statistics: returned by `measure_latents`.
        normalization: "scale": one factor for all latents, which keeps their mean; "channels":
            each channel has mean 0 and variance 1.
    """
    if normalization == "scale":
        return LatentSpace(1.0 / statistics["std"])
    scales = [1.0 / std for std in statistics["channel_std"]]
    return LatentSpace(scales, statistics["channel_mean"])


def measure_latents(autoencoder: Autoencoder, dataset: tf.data.Dataset) -> dict[str, Any]:
    """Mean and standard deviation of unscaled latents over a dataset.

    The variance of posterior samples is E[σ²] + Var[μ], so no sample is drawn. Sums are float64.

    Args:
        autoencoder: to measure.
        dataset: batches `{"images": (B, H, W, 3) in [-1, 1]}`.

    Returns:
        `Autoencoder.latent_statistics`: "count" of images, "mean" and "std" over all channels,
        "channel_mean" and "channel_std" as lists.
    """
    count, total, squares = 0, 0.0, 0.0
    for batch in dataset:
        moments = autoencoder.encode_on_batch(np.asarray(batch["images"]))
        mean, logvar = (part.astype(np.float64) for part in moments)
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
