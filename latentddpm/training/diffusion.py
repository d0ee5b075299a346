"""`train-diffusion`: captioned images and an autoencoder → a text-to-image model.

    images ─► latents cache ─► examples (noise drawn in the data) ─► UNet.fit(loss="mse")

The network regresses the schedule's target (noise, v, or the clean latents) with a plain
mean squared error (Ho et al. 2020, eq. 14). A text encoder from scratch trains with it, as
in the original latent diffusion; one read from CLIP stays as it is, unless it is told to train.
With `init` all of it starts from a finished model, see `finetune`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from latentddpm.config import DiffusionRun
from latentddpm.data import examples
from latentddpm.data.buckets import (
    Part,
    Shape,
    buckets_of,
    interleave,
    one_by_one,
    stream_name,
    table,
)
from latentddpm.data.captions import Captions, CaptionTokens, prepare_tokens
from latentddpm.data.catalog.scan import open_catalog
from latentddpm.data.catalog.split import Selection, split_catalog
from latentddpm.data.latents.cache import LatentsCache, prepare_latents
from latentddpm.data.random import RandomStream
from latentddpm.diffusion import samplers
from latentddpm.diffusion.schedule import NoiseSchedule
from latentddpm.distribution.strategy import (
    any_process,
    distribute_dataset,
    in_scope,
    process_group,
)
from latentddpm.errors import UserError
from latentddpm.models.archive import load_archive, weights_digest
from latentddpm.models.autoencoder.autoencoder import Autoencoder
from latentddpm.models.autoencoder.latent_space import LatentSpace
from latentddpm.pipeline.latent_diffusion import DEFAULTS, LatentDiffusion
from latentddpm.pipeline.model_folder import LORA, ModelFolder
from latentddpm.training.diffusion_networks import build_networks, read_sources, with_text
from latentddpm.training.finetune import save_trained_lora
from latentddpm.training.run.callbacks import StopEvaluation, averaged_weights
from latentddpm.training.run.loop import compile_options, in_float32, run_steps
from latentddpm.training.run.progress import run_summary
from latentddpm.training.run.resume import check_best, check_resume, check_run, data_facts
from latentddpm.training.run.runlog import RunLog
from latentddpm.training.run.wandb_log import import_wandb
from latentddpm.utils import signals
from latentddpm.utils.console import say
from latentddpm.utils.pixels import grid, save_png

GRID_PROMPTS = 8
RECIPE = ("condition_dropout", "min_snr_gamma", "offset_noise", "input_perturbation")
"""What of the settings changes training examples, and leaves validation alone."""


def build_schedule(config: DiffusionRun) -> NoiseSchedule:
    """The schedule of a configuration, once the sampler of its sample grids fits it.

    Raises:
        UserError: an unknown sampler, or more steps than the schedule has.
    """
    schedule = NoiseSchedule(**config.schedule.model_dump())
    try:
        samplers.get(config.samples.sampler)(schedule, config.samples.num_steps)
    except UserError as error:
        raise UserError(f"samples.{error}") from None
    return schedule


@signals.listening()
def train_diffusion(
    config: DiffusionRun,
    data: str | Path,
    vae: Path | None,
    out: Path,
    *,
    latents: Path | None = None,
    catalog: Path | None = None,
    resume: bool = False,
    allow_changes: bool = False,
    strict: bool = False,
    quiet: bool = False,
    strategy: tf.distribute.Strategy | None = None,
) -> LatentDiffusion:
    """Train on the captioned images of `data` and leave the model folder `out/model`, or the
    file `out/lora.safetensors` of a LoRA.

    Args:
        data: a folder of images or shards; see `data.sources.open.open_source`.
        vae: a model folder or finished `train-vae` run; None for the one of `config.init`.
        latents: folder of the latents cache, `out/latents` by default.
        catalog: folder of the catalog, `catalog` in the latents cache by default.
        allow_changes: with `resume`, other settings or data than the run was started with.
        strategy: of `distribute.make_strategy`; None for one device.

    Raises:
        UserError: unusable data or model folder, no captions for a text-conditioned model, a
            resolution that does not fit the networks, a run folder that is taken (or, with
            `resume`, empty or of another run).
        signals.Stopped, Diverged, MemoryError, OSError: see `loop.run_steps`.
    """
    settings = config.training
    check_run(out, resume)
    if config.training.wandb:
        import_wandb()
    config, sources = read_sources(config, vae)
    vae_file = sources.vae.file("vae")
    schedule = build_schedule(config)
    with in_scope(strategy):
        unet, text_encoder, tokenizer = build_networks(config, sources)
        model = with_text(unet, text_encoder, tokenizer.context_length if tokenizer else 0)
        model.compile(
            **compile_options(settings),
            loss="mse",
            num_train_timesteps=schedule.num_train_timesteps,
        )

    latents = latents or out / "latents"
    processes = process_group(strategy)
    quiet = quiet or not processes.is_chief
    catalog = catalog or latents / "catalog"
    catalog = open_catalog(data, catalog, strict=strict, quiet=quiet, processes=processes)
    vae_digest = sources.vae.parts["vae"]["digest"]
    by_caption = config.data.validation_by == "caption"
    facts = {"captions": catalog.row_digest} if tokenizer or by_caption else {}
    if sources.base is not None:
        facts["init"] = sources.base.digest
    elif text_encoder is not None and not config.text.trained:
        facts["text encoder"] = weights_digest(text_encoder)
    contract = check_resume(
        out,
        config,
        data_facts(catalog, autoencoder=vae_digest, **facts),
        resume=resume,
        allow_changes=allow_changes,
        quiet=quiet,
    )
    buckets = buckets_of(config.data)
    split = split_catalog(catalog, config.data)
    check_best(settings, len(split[1]))
    training_images, validation_images = (buckets.parts(images, catalog) for images in split)
    if config.data.aspect_buckets:
        say(table(training_images, validation_images, settings.batch_size), quiet)
    captions = Captions(catalog, config.data.caption_templates) if tokenizer else None
    tokens = prepare_tokens(captions, tokenizer, quiet, processes) if tokenizer else None
    prompts = grid_prompts(config, captions, tokens)
    cache = prepare_latents(
        catalog,
        latents,
        vae_digest=vae_digest,
        load_autoencoder=lambda: load_archive(vae_file, Autoencoder),
        resolution=buckets,
        mirrored=config.data.flip,
        quiet=quiet,
        processes=processes,
    )
    batches = Examples(
        cache,
        schedule,
        LatentSpace(sources.vae_config["scaling_factor"]),
        tokens,
        config,
        strategy,
    )
    size = (config.data.resolution,) * 2
    sampled = LatentDiffusion(
        load_archive(vae_file, Autoencoder),
        unet,
        schedule,
        text_encoder,
        tokenizer,
        size,
        sampling_defaults(config, sources.base),
    )

    parts = {"UNet": unet, "text encoder": text_encoder, "autoencoder": sampled.autoencoder}
    say(run_summary(config, model, parts, tuple(map(len, split)), out), quiet)

    def validate(step: int, log: RunLog) -> dict[str, float]:
        values = {}
        with averaged_weights(model):
            if validation_images:
                values = model.evaluate(
                    batches.validation(validation_images),
                    steps=sum(
                        math.ceil(len(images) / settings.batch_size)
                        for images in validation_images.values()
                    ),
                    verbose=0,
                    callbacks=[StopEvaluation(any_process(strategy))],
                    return_dict=True,
                )
                values = {f"validation_{key}": value for key, value in values.items()}
                log.write(step, values)
            if not processes.is_chief:
                return values
            with signals.deferred():  # the chief draws alone, and may stop drawing alone
                picture = sample_grid(sampled, prompts, config)
        save_png(out / "samples" / f"step-{step:08d}.png", picture)
        log.picture(step, "samples", picture)
        return values

    run_steps(
        model,
        lambda start, stop: batches.training(training_images, start, stop),
        config,
        out,
        validate,
        best_metric=settings.best_metric,
        contract=contract,
        resume=resume,
        quiet=quiet,
        strategy=strategy,
    )
    if config.lora.rank:
        if processes.is_chief:
            save_trained_lora(unet, out / LORA, config, sources.base)
        processes.barrier()
        return sampled
    sampled.unet = in_float32(unet)
    if text_encoder is not None:
        sampled.text_encoder = in_float32(text_encoder)
    if processes.is_chief:
        sampled.save(out / "model")
    processes.barrier()
    return sampled


def sampling_defaults(config: DiffusionRun, base: ModelFolder | None) -> dict[str, Any]:
    """What `generate` does with the finished model: `samples`, and what `base` has beside it."""
    defaults = {key: getattr(config.samples, key) for key in DEFAULTS}
    beside = dict(base.defaults) if base is not None else {}
    if beside.get("sampler") != defaults["sampler"]:
        beside.pop("sampler_options", None)
    return {**beside, **defaults}


class Examples:
    """The training and the validation stream of one run."""

    def __init__(
        self,
        cache: LatentsCache,
        schedule: NoiseSchedule,
        latent_space: LatentSpace,
        tokens: CaptionTokens | None,
        config: DiffusionRun,
        strategy: tf.distribute.Strategy | None = None,
    ) -> None:
        self.parts, self.strategy = (schedule, latent_space), strategy
        self.cache, self.tokens, self.config = cache, tokens, config

    def training(
        self, images: Mapping[Shape, Selection], start: int, stop: int
    ) -> tf.data.Dataset:
        """Batches of steps `start` … `stop` − 1, each of images of one shape."""
        settings = self.config.training
        recipe = {name: getattr(settings, name) for name in RECIPE}
        part = self._part(images, "train-diffusion", **recipe)
        return distribute_dataset(
            self.strategy, interleave(images, start, stop, settings.batch_size, part)
        )

    def validation(self, images: Mapping[Shape, Selection]) -> tf.data.Dataset:
        """Each held-back image once, with the same noise and timestep every time.

        Nothing of the recipe applies: runs that differ in it have comparable losses.
        """
        return distribute_dataset(
            self.strategy, one_by_one(images, self._part(images, "validation"))
        )

    def _part(self, images: Mapping[Shape, Selection], name: str, **recipe: float) -> Part:
        settings, factor = (
            self.config.training,
            self.config.data.resolution // self.cache.latent_shape[0],
        )

        def part(shape: Shape, first: int, last: int) -> tf.data.Dataset:
            height, width = shape

            def batches(positions: tf.data.Dataset, batch_size: int) -> tf.data.Dataset:
                return examples.diffusion_examples(
                    self.cache.shaped(height // factor, width // factor),
                    images[shape],
                    *self.parts,
                    batch_size=batch_size,
                    stream=RandomStream(settings.seed, stream_name(name, shape)),
                    positions=positions,
                    tokens=self.tokens,
                    **recipe,
                )

            processes = process_group(self.strategy)
            return examples.shared(range(first, last), settings.batch_size, processes, batches)

        return part


def grid_prompts(
    config: DiffusionRun, captions: Captions | None, tokens: CaptionTokens | None
) -> list[str]:
    """The fixed prompts of the sample grids; the empty one when unconditional.

    Raises:
        UserError: none of the images has a caption.
    """
    if captions is None:
        return [""]
    known = Selection(len(captions), tokens.captioned)
    bare = len(captions) - len(known)
    if not len(known):
        raise UserError(
            f"{captions.catalog.source.place}: no captions, but text.source is "
            f"{config.text.source!r}; add NAME.txt files or a metadata.jsonl, or train without "
            "text (text.source=none)"
        )
    if bare:
        first = Selection(len(captions), lambda *block: ~tokens.captioned(*block)).row(0)
        say(
            f"{bare} of {len(captions)} images have no caption and train on the empty prompt, "
            f"such as {captions.catalog.name(first)}"
        )
    spread = np.linspace(0, len(known) - 1, min(GRID_PROMPTS, len(known))).astype(int)
    return config.samples.prompts or [captions[int(row)][0] for row in known.rows(spread)]


def sample_grid(model: LatentDiffusion, prompts: list[str], config: DiffusionRun) -> np.ndarray:
    """One row of images per prompt, the same seeds in every row, uint8."""
    settings = config.samples
    count = settings.images_per_prompt
    pixels = model.generate(
        [prompt for prompt in prompts for _ in range(count)],
        seed=[settings.seed + k for _ in prompts for k in range(count)],
    )
    return grid([pixels[i : i + count] for i in range(0, len(pixels), count)])
