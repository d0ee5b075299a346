"""Training of a UNet on latents or pixels (`train-diffusion`): captioned images → a model of them.

    images ─► latents cache ─► examples (noise drawn in the data) ─► DenoisingTrainer.fit

The network predicts the schedule's target (noise, v, or the clean latents) with a plain mean
squared error (Ho et al. 2020, eq. 14). A text encoder from scratch is trained along with it, as in
the original latent diffusion. One that is read from CLIP is frozen, unless `text.trainable` is
set. With `init` the networks start from a finished model, see `training.finetune`. Without an
autoencoder (`vae="none"`) images take the place of latents, see `training.plan.first_stage`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from latentddpm.conditions.conditions import Conditions
from latentddpm.config import DiffusionRun
from latentddpm.data.batches import LatentBatches
from latentddpm.data.buckets import buckets_of, table
from latentddpm.data.captioning.tags import DrawnTags
from latentddpm.data.places.places import Data
from latentddpm.diffusion import samplers
from latentddpm.diffusion.process import ForwardProcess
from latentddpm.diffusion.schedules import schedule_from_config
from latentddpm.distribution.strategy import any_process, in_scope
from latentddpm.errors import UserError
from latentddpm.models.archive import weights_digest
from latentddpm.pipeline.control.folder import FOLDER as CONTROL
from latentddpm.pipeline.latent_diffusion import LatentDiffusion
from latentddpm.pipeline.model_folder import EMBEDDING, LORA, ModelFolder
from latentddpm.pipeline.settings import DEFAULTS
from latentddpm.training.conditions import open_conditions, pictures_folder
from latentddpm.training.control import save_trained_control
from latentddpm.training.copies import Copies
from latentddpm.training.diffusion_networks import (
    build_networks,
    make_trainer,
    without_changes,
)
from latentddpm.training.finetune import save_trained_lora
from latentddpm.training.plan.plan import Plan, plan_diffusion
from latentddpm.training.precision import settle_jit, settle_precision
from latentddpm.training.run.callbacks import StopEvaluation, averaged_weights
from latentddpm.training.run.curves import LOG, Curve, read_curves
from latentddpm.training.run.loop import compile_options, in_float32, run_steps
from latentddpm.training.run.progress import large_plan, run_summary
from latentddpm.training.run.run import Run
from latentddpm.training.run.runlog import RunLog
from latentddpm.training.samples import (
    GridRow,
    draw_samples,
    grid_metadata,
    grid_rows,
    sample_grid,
)
from latentddpm.training.step.denoising_trainer import DenoisingTrainer
from latentddpm.training.subject.prior import drawn_prior, open_prior
from latentddpm.training.subject.token import finished_encoder, save_trained_token
from latentddpm.utils import signals
from latentddpm.utils.console import activity
from latentddpm.utils.images.pixel_format import PixelFormat
from latentddpm.utils.pixels import save_png

NEAR, LOSS = "validation_near", "validation_loss"
"""Names in the log."""


def train_diffusion(
    config: DiffusionRun | dict[str, Any] | str | Path,
    data: Data,
    vae: str | Path | None,
    out: str | Path,
    *,
    latents: str | Path | None = None,
    catalog: str | Path | None = None,
    strict: bool = False,
    resume: bool = False,
    allow_changes: bool = False,
    quiet: bool = False,
    strategy: tf.distribute.Strategy | None = None,
) -> LatentDiffusion:
    """Train a UNet on captioned images, as the command `train-diffusion` does.

    Writes the model folder `out/model`, or for a LoRA the file `out/lora.safetensors`, for a
    ControlNet the folder `out/control`, for a new word the file `out/embedding.safetensors`.

    Args:
        config: settings, as a `DiffusionRun`, a dictionary of those that differ from the
            defaults, the path of such a YAML file, or the name of a ready one.
        data: folder of images or shards, or several with weights; see
            `data.places.places.as_places`.
        vae: model folder or finished `train-vae` run; the text "none" to train on pixels; None
            for the first stage of `config.init`.
        out: run folder.
        latents: folder of the latents cache; None for `out/latents`. A run on pixels has none.
        catalog: folder of the catalog; None for `catalog` in the latents cache, or in `out`.
        strict: refuse data with unreadable images.
        resume: go on from the newest checkpoint.
        allow_changes: with `resume`, accept other settings or data than the run started with.
        quiet: show no progress.
        strategy: from `distribution.strategy.make_strategy`; None for one device.

    Returns:
        The model, with its EMA weights, in float32.

    Raises:
        UserError: see `training.plan.plan.plan_diffusion` and `train_planned`.
        signals.Stopped, Diverged, MemoryError, OSError: see `training.run.loop.run_steps`.

    Example:
        ```python
        config = "small-64-diffusion"
        model = train_diffusion(config, "photos", "runs/vae", "runs/ldm")
        images = model.generate("a red boat", num_images=4)
        ```
    """
    plan = plan_diffusion(
        config,
        data,
        vae,
        out,
        latents=latents,
        catalog=catalog,
        strict=strict,
        resume=resume,
        allow_changes=allow_changes,
        quiet=quiet,
        strategy=strategy,
    )
    return train_planned(plan)


@signals.listening()
def train_planned(plan: Plan) -> LatentDiffusion:
    """Train a UNet as planned.

    Args:
        plan: returned by `training.plan.plan.plan_diffusion`.

    Returns:
        The model, with its EMA weights, in float32.

    Raises:
        UserError: networks that cannot be read or do not fit, or a caption that cannot be used.
        signals.Stopped, Diverged, MemoryError, OSError: see `training.run.loop.run_steps`.
    """
    run, dataset, sources = plan.run, plan.dataset, plan.sources
    out, strategy = run.folder, run.strategy
    config, precision = settle_precision(run.config, out if run.resume else None, strategy)
    config, may_fall_back = settle_jit(config, strategy)
    plan = replace(plan, run=replace(run, config=config))
    run = plan.run

    # === Networks ===
    schedule = build_schedule(config)
    shown = drawn_prior(run, plan.prior, sources.base)  # before other networks take memory
    with in_scope(strategy), activity("building the networks", run.silent):
        conditions = Conditions(tuple(one.condition for one in plan.conditions))
        unet, text_encoder, tokenizer = build_networks(config, sources, conditions)
        trainer = make_trainer(config, schedule, unet, text_encoder, tokenizer, conditions)
        trainer.compile(**compile_options(config.training))
    late = {}
    if not plan.judged:
        late["text encoder"] = weights_digest(text_encoder)
    contract = plan.agreed(**late)

    # === Data ===
    buckets = buckets_of(config.data)
    images = tuple(
        buckets.parts(part, dataset.catalog) for part in (dataset.training, dataset.validation)
    )
    if config.data.aspect_buckets:
        run.say(table(*images, config.training.batch_size))
    tokens = tags = None
    if tokenizer is not None:
        with activity("reading the captions", run.silent):
            tokens = dataset.tokens(tokenizer)
        if config.data.tags.drawn:
            tags = DrawnTags(dataset.captions, tokenizer, config.data.tags)
    first_stage = sources.first_stage
    cache = first_stage.latents(dataset, run, plan.latents)
    told = open_conditions(plan.conditions, run, first_stage, pictures_folder(out, plan.latents))
    asked = [one for one in told if one.condition.asked]
    rows = grid_rows(config, dataset, tokens, asked, plan.control)
    prior = open_prior(run, shown, first_stage, tokenizer)
    latent_space = first_stage.latent_space()
    batches = LatentBatches(
        *(images, cache, schedule, latent_space, tokens, config, strategy, told),
        *(plan.control, tags, plan.masks, prior),
    )

    # === Fit ===
    model = LatentDiffusion(
        first_stage.load(config.data),
        unet,
        schedule,
        text_encoder,
        tokenizer,
        (config.data.resolution,) * config.data.spatial_dims,
        sampling_defaults(config, sources.base),
        pixels=PixelFormat.of(config.data),
        conditions=conditions,
    )
    parts = {"UNet": unet, "text encoder": text_encoder, "autoencoder": model.autoencoder}
    images = len(dataset.training), len(dataset.validation)
    notes = [*plan.notes, *filter(None, (cache.note, precision)), *large_plan(run)]
    run.say("\n".join([run_summary(run, trainer, parts, images), *notes]))
    validate = Validation(run, trainer, batches, model, rows, Copies(dataset, config))
    run_steps(
        *(run, trainer, batches.training, validate, contract),
        *(config.training.best_metric, may_fall_back),
    )
    if run.is_chief:
        validate.say_copies()
    if config.lora.rank:
        if run.is_chief:
            save_trained_lora(unet, out / LORA, config, sources.base, model.defaults)
    elif config.text.new_token:
        model.text_encoder = finished_encoder(text_encoder)
        if run.is_chief:
            save_trained_token(text_encoder, out / EMBEDDING, config, sources.base)
    elif plan.control is not None:
        model.unet = unet.base
        if run.is_chief:
            condition = plan.control.condition
            save_trained_control(unet, out / CONTROL, config, condition, sources.base)
    else:
        model.unet = in_float32(unet)
        without_changes(model)
        if text_encoder is not None:
            model.text_encoder = in_float32(text_encoder)
        if run.is_chief:
            model.save(out / "model")
    run.processes.barrier()
    return model


def build_schedule(config: DiffusionRun) -> ForwardProcess:
    """Noise schedule of a configuration; the sampler of its sample grids has to fit it.

    Args:
        config: of the run.

    Raises:
        UserError: an unknown sampler, or more sampler steps than the schedule has timesteps.
    """
    schedule = schedule_from_config(config.schedule.arguments())
    try:
        samplers.get(config.samples.sampler)(schedule, config.samples.num_steps)
    except UserError as error:
        raise UserError(f"samples.{error}") from None
    return schedule


def sampling_defaults(config: DiffusionRun, base: ModelFolder | None) -> dict[str, Any]:
    """Default settings of the finished model for `generate`, by name.

    Args:
        config: of the run; its section `samples:` comes first.
        base: model that the run starts from, whose other defaults are kept; None from scratch.
    """
    defaults = {key: getattr(config.samples, key) for key in DEFAULTS}
    beside = dict(base.defaults) if base is not None else {}
    if beside.get("sampler") != defaults["sampler"]:
        beside.pop("sampler_options", None)
    if config.distill.kind == defaults["sampler"]:
        beside["sampler_options"] = {"original_steps": config.distill.solver_steps}
    return {**beside, **defaults}


class Validation:
    """Validation of a UNet: its losses, and a grid of samples of fixed prompts and seeds.

    Args:
        run: folder, settings and processes.
        trainer: compiled.
        batches: with the validation images.
        model: whose networks are those of `trainer`, to draw samples with.
        rows: of the grid.
        copies: comparison of samples with training images.
    """

    def __init__(
        self,
        run: Run,
        trainer: DenoisingTrainer,
        batches: LatentBatches,
        model: LatentDiffusion,
        rows: Sequence[GridRow],
        copies: Copies,
    ) -> None:
        self.run, self.trainer, self.batches = run, trainer, batches
        self.model, self.rows, self.copies = model, rows, copies

    def __call__(self, step: int, log: RunLog) -> dict[str, float]:
        """Validate with the EMA weights.

        Args:
            step: optimizer steps so far.
            log: to write to.

        Returns:
            The numbers written into the log, by name.

        Raises:
            signals.Stopped: a signal came.
        """
        values = {}
        with averaged_weights(self.trainer):
            if self.batches.validation_images:
                values = self.trainer.evaluate(
                    self.batches.validation(),
                    steps=self.batches.validation_steps,
                    verbose=0,
                    callbacks=[StopEvaluation(any_process(self.run.strategy))],
                    return_dict=True,
                )
                values = {f"validation_{key}": value for key, value in values.items()}
                log.write(step, values)
            if not self.run.is_chief:
                return values
            with signals.deferred():  # only the chief draws, so it may stop without the others
                samples = draw_samples(self.model, self.rows, self.run.config)
        picture = sample_grid(self.model, self.rows, samples)
        values = {**values, **self._look(step, log, samples)}
        making = grid_metadata(self.model, self.rows, self.run.config, step)
        save_png(self.run.sample_path(step), picture, making)
        log.picture(step, "samples", picture)
        return values

    def _look(self, step: int, log: RunLog, samples: np.ndarray) -> dict[str, float]:
        """Look for copies of training images; the first warning is said at once."""
        near = self.copies.look(step, samples)
        if near is None:
            return {}
        found = {NEAR: near}
        log.write(step, found)
        if self.copies.first == step:
            self.run.say(self.copies.warning(self._validation_losses()))
        return found

    def _validation_losses(self) -> Curve | None:
        """Validation losses of the run so far; None where none is logged."""
        folder = self.run.folder
        return read_curves(folder).get(LOSS) if (folder / LOG).is_file() else None

    def say_copies(self) -> None:
        """Say at the end of a run that its drawings are copies, if they are."""
        if said := self.copies.warning(self._validation_losses()):
            self.run.say(said)
