"""Training of a UNet in latent space (`train-diffusion`): captioned images → a model of them.

    images ─► latents cache ─► examples (noise drawn in the data) ─► DenoisingTrainer.fit

The network predicts the schedule's target (noise, v, or the clean latents) with a plain mean
squared error (Ho et al. 2020, eq. 14). A text encoder from scratch is trained along with it, as in
the original latent diffusion. One that is read from CLIP is frozen, unless `text.trainable` is
set. With `init` the networks start from a finished model, see `training.finetune`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from latentddpm.config import DiffusionRun
from latentddpm.config_file import as_config
from latentddpm.data.batches import LatentBatches
from latentddpm.data.buckets import buckets_of, table
from latentddpm.data.captions import CaptionTokens
from latentddpm.data.catalog.split import Selection
from latentddpm.data.dataset import Dataset, open_dataset
from latentddpm.data.latents.cache import prepare_latents
from latentddpm.diffusion import samplers
from latentddpm.diffusion.schedule import NoiseSchedule
from latentddpm.distribution.strategy import any_process, in_scope
from latentddpm.errors import UserError
from latentddpm.models.archive import weights_digest
from latentddpm.models.autoencoder.latent_space import LatentSpace
from latentddpm.pipeline.latent_diffusion import LatentDiffusion
from latentddpm.pipeline.model_folder import LORA, ModelFolder
from latentddpm.pipeline.settings import DEFAULTS
from latentddpm.training.diffusion_networks import Sources, build_networks, read_sources
from latentddpm.training.finetune import save_trained_lora
from latentddpm.training.precision import settle_precision
from latentddpm.training.run.callbacks import StopEvaluation, averaged_weights
from latentddpm.training.run.contract import Contract
from latentddpm.training.run.loop import compile_options, in_float32, run_steps
from latentddpm.training.run.progress import run_summary
from latentddpm.training.run.resume import check_best, check_resume, check_run, data_facts
from latentddpm.training.run.run import Run
from latentddpm.training.run.runlog import RunLog
from latentddpm.training.run.wandb_log import import_wandb
from latentddpm.training.step.denoising_trainer import DenoisingTrainer
from latentddpm.utils import signals
from latentddpm.utils.console import say
from latentddpm.utils.pixels import grid, save_png

GRID_PROMPTS = 8


@signals.listening()
def train_diffusion(
    config: DiffusionRun | dict[str, Any] | str | Path,
    data: str | Path,
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

    Writes the model folder `out/model`, or for a LoRA the file `out/lora.safetensors`.

    Args:
        config: settings, as a `DiffusionRun`, a dictionary of those that differ from the
            defaults, or the path of such a YAML file.
        data: folder of images or shards; see `data.sources.open.open_source`.
        vae: model folder or finished `train-vae` run; None for the autoencoder of `config.init`.
        out: run folder.
        latents: folder of the latents cache; None for `out/latents`.
        catalog: folder of the catalog; None for `catalog` in the latents cache.
        strict: refuse data with unreadable images.
        resume: go on from the newest checkpoint.
        allow_changes: with `resume`, accept other settings or data than the run started with.
        quiet: show no progress.
        strategy: from `distribution.strategy.make_strategy`; None for one device.

    Returns:
        The model, with its EMA weights, in float32.

    Raises:
        UserError: unusable data or model folder, no captions for a text-conditioned model, a
            resolution that does not fit the networks, a run folder that holds a run (or, with
            `resume`, a finished or another one).
        signals.Stopped, Diverged, MemoryError, OSError: see `training.run.loop.run_steps`.

    Example:
        ```python
        config = "configs/small-64-diffusion.yaml"
        model = train_diffusion(config, "photos", "runs/vae", "runs/ldm")
        images = model.generate("a red boat", num_images=4)
        ```
    """
    config, out = as_config(DiffusionRun, config), Path(out)
    check_run(out, resume)
    if config.training.wandb:
        import_wandb()

    # === Networks ===
    config, sources = read_sources(config, vae)
    config, precision = settle_precision(config, out if resume else None, strategy)
    schedule = build_schedule(config)
    with in_scope(strategy):
        unet, text_encoder, tokenizer = build_networks(config, sources)
        trainer = DenoisingTrainer(unet, schedule, text_encoder)
        trainer.compile(**compile_options(config.training))
    run = Run(config, out, resume, allow_changes, quiet, strategy)

    # === Data ===
    latents = Path(latents) if latents else out / "latents"
    dataset = open_dataset(
        data,
        catalog or latents / "catalog",
        config.data,
        run.processes,
        strict=strict,
        quiet=run.silent,
    )
    contract = run_contract(run, dataset, sources, trainer)
    check_best(config.training, len(dataset.validation))
    buckets = buckets_of(config.data)
    images = tuple(
        buckets.parts(part, dataset.catalog) for part in (dataset.training, dataset.validation)
    )
    if config.data.aspect_buckets:
        run.say(table(*images, config.training.batch_size))
    tokens = dataset.tokens(tokenizer) if tokenizer else None
    prompts = grid_prompts(config, dataset, tokens)
    cache = prepare_latents(
        dataset.catalog,
        latents,
        vae_digest=sources.vae_digest,
        load_autoencoder=sources.load_autoencoder,
        resolution=buckets,
        mirrored=config.data.flip,
        quiet=run.silent,
        processes=run.processes,
    )
    latent_space = LatentSpace(sources.vae_config["scaling_factor"])
    batches = LatentBatches(images, cache, schedule, latent_space, tokens, config, strategy)

    # === Fit ===
    model = LatentDiffusion(
        sources.load_autoencoder(),
        unet,
        schedule,
        text_encoder,
        tokenizer,
        (config.data.resolution,) * 2,
        sampling_defaults(config, sources.base),
    )
    parts = {"UNet": unet, "text encoder": text_encoder, "autoencoder": model.autoencoder}
    run.say(run_summary(run, trainer, parts, (len(dataset.training), len(dataset.validation))))
    if precision:
        run.say(precision)
    validate = Validation(run, trainer, batches, model, prompts)
    run_steps(run, trainer, batches.training, validate, contract, config.training.best_metric)
    if config.lora.rank:
        if run.is_chief:
            save_trained_lora(unet, out / LORA, config, sources.base)
    else:
        model.unet = in_float32(unet)
        if text_encoder is not None:
            model.text_encoder = in_float32(text_encoder)
        if run.is_chief:
            model.save(out / "model")
    run.processes.barrier()
    return model


def build_schedule(config: DiffusionRun) -> NoiseSchedule:
    """Noise schedule of a configuration; the sampler of its sample grids has to fit it.

    Args:
        config: of the run.

    Raises:
        UserError: an unknown sampler, or more sampler steps than the schedule has timesteps.
    """
    schedule = NoiseSchedule(**config.schedule.model_dump())
    try:
        samplers.get(config.samples.sampler)(schedule, config.samples.num_steps)
    except UserError as error:
        raise UserError(f"samples.{error}") from None
    return schedule


def run_contract(
    run: Run, dataset: Dataset, sources: Sources, trainer: DenoisingTrainer
) -> Contract:
    """Contract of the run; on resuming it has to match that of the newest checkpoint.

    Args:
        run: to start or to resume.
        dataset: opened.
        sources: finished models that the run uses.
        trainer: with the networks.

    Raises:
        UserError: see `training.run.resume.check_resume`.
    """
    catalog, config = dataset.catalog, run.config
    facts = {"autoencoder": sources.vae_digest}
    if trainer.text_encoder is not None or config.data.validation_by == "caption":
        facts["captions"] = catalog.row_digest
    if sources.base is not None:
        facts["init"] = sources.base.digest
    elif trainer.text_encoder is not None and not config.text.trained:
        facts["text encoder"] = weights_digest(trainer.text_encoder)
    return check_resume(run, data_facts(catalog, **facts))


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
    return {**beside, **defaults}


class Validation:
    """Validation of a UNet: its losses, and a grid of samples of fixed prompts and seeds.

    Args:
        run: folder, settings and processes.
        trainer: compiled.
        batches: with the validation images.
        model: whose networks are those of `trainer`, to draw samples with.
        prompts: of the grid, one for each row.
    """

    def __init__(
        self,
        run: Run,
        trainer: DenoisingTrainer,
        batches: LatentBatches,
        model: LatentDiffusion,
        prompts: list[str],
    ) -> None:
        self.run, self.trainer, self.batches = run, trainer, batches
        self.model, self.prompts = model, prompts

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
                picture = sample_grid(self.model, self.prompts, self.run.config)
        save_png(self.run.sample_path(step), picture)
        log.picture(step, "samples", picture)
        return values


def grid_prompts(
    config: DiffusionRun, dataset: Dataset, tokens: CaptionTokens | None
) -> list[str]:
    """Fixed prompts of the sample grids: `samples.prompts`, else captions of the data.

    Args:
        config: of the run.
        dataset: with the captions.
        tokens: of the captions; None for an unconditional model, whose only prompt is "".

    Raises:
        UserError: none of the images has a caption.
    """
    if tokens is None:
        return [""]
    count, captions = len(dataset), dataset.captions
    known = Selection(count, tokens.captioned)
    bare = count - len(known)
    if not len(known):
        raise UserError(
            f"{dataset.catalog.source.place}: no captions, but text.source is "
            f"{config.text.source!r}; {captions.remedy()}; or train without text "
            "(text.source=none)"
        )
    if bare:
        first = Selection(count, lambda *block: ~tokens.captioned(*block)).row(0)
        reason = captions.reason(first)
        say(
            f"{bare} of {count} images have no caption and train on the empty prompt, "
            f"such as {dataset.catalog.name(first)}" + f" ({reason})" * bool(reason)
        )
    spread = np.linspace(0, len(known) - 1, min(GRID_PROMPTS, len(known))).astype(int)
    return config.samples.prompts or [captions[int(row)][0] for row in known.rows(spread)]


def sample_grid(model: LatentDiffusion, prompts: list[str], config: DiffusionRun) -> np.ndarray:
    """Grid of samples, uint8 (H', W', 3): a row for each prompt, the same seeds in every row.

    Args:
        model: to draw with.
        prompts: of the rows.
        config: of the run; its section `samples:` has the seed and the number of columns.
    """
    settings = config.samples
    count = settings.images_per_prompt
    pixels = model.generate(
        [prompt for prompt in prompts for _ in range(count)],
        seed=[settings.seed + k for _ in prompts for k in range(count)],
    )
    return grid([pixels[i : i + count] for i in range(0, len(pixels), count)])
