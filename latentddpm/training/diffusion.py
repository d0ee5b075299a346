"""`train-diffusion`: captioned images and an autoencoder → a text-to-image model.

    images ─► latents cache ─► examples (noise drawn in the data) ─► UNet.fit(loss="mse")

The network regresses the schedule's target (noise, v, or the clean latents) with a plain
mean squared error (Ho et al. 2020, eq. 14). A text encoder from scratch trains with it, as
in the original latent diffusion; one read from CLIP stays as it is, unless it is told to train.
With `init` all of it starts from a finished model, see `finetune`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from latentddpm import interrupt
from latentddpm.config import DiffusionRun
from latentddpm.data import examples
from latentddpm.data.captions import Captions
from latentddpm.data.draws import Draws
from latentddpm.data.latents import LatentsCache, prepare_latents
from latentddpm.data.scan import open_catalog
from latentddpm.data.split import Selection, split_catalog
from latentddpm.data.tokens import CaptionTokens, prepare_tokens
from latentddpm.diffusion import samplers
from latentddpm.diffusion.schedule import NoiseSchedule
from latentddpm.errors import UserError
from latentddpm.interop.clip import load_clip_folder
from latentddpm.modelfolder import LORA, ModelFolder, read_model_folder
from latentddpm.models.archive import load_archive, read_config
from latentddpm.models.autoencoder import Autoencoder
from latentddpm.models.functional import remade
from latentddpm.models.latent_space import LatentSpace
from latentddpm.models.text import TextEncoder, build_text_encoder, load_preset
from latentddpm.models.tokenizer import ClipTokenizer
from latentddpm.models.train_step import TrainStep
from latentddpm.models.unet import UNet
from latentddpm.pictures import grid, save_png
from latentddpm.pipeline import DEFAULTS, LatentDiffusion
from latentddpm.training.callbacks import RunLog, StopEvaluation, averaged_weights
from latentddpm.training.distribute import crew_of, feed, in_scope
from latentddpm.training.finetune import (
    adopt,
    base_networks,
    check_autoencoder,
    save_trained_lora,
)
from latentddpm.training.loop import (
    compile_options,
    in_float32,
    layer_policy,
    run_steps,
)
from latentddpm.training.resume import agree, check_run, data_facts

GRID_PROMPTS = 8
RECIPE = ("condition_dropout", "min_snr_gamma", "offset_noise", "input_perturbation")
"""What of the settings changes training examples, and leaves validation alone."""


@dataclass(frozen=True)
class Sources:
    """The finished models that a run stands on.

    Attributes:
        vae: the folder of the autoencoder.
        vae_config: the arguments that it was built from.
        base: the folder of the model to start from, None to train from scratch.
    """

    vae: ModelFolder
    vae_config: dict[str, Any]
    base: ModelFolder | None = None


def read_sources(config: DiffusionRun, vae: Path | None) -> tuple[DiffusionRun, Sources]:
    """What a run stands on, and its configuration once it agrees with that.

    Args:
        vae: a folder that holds an autoencoder; None for the one of `config.init`.

    Raises:
        UserError: neither is given, one is no model folder, or they do not fit each other.
    """
    base = read_model_folder(config.init) if config.init else None
    if base is not None:
        config = adopt(config, base)
    elif config.lora.rank:
        raise UserError("lora.rank: a LoRA changes a finished model; name it with --init MODEL")
    elif config.text.source == "init":
        raise UserError("text.source: 'init' is the text encoder of --init MODEL; give that")
    if vae is None and base is None:
        raise UserError("--vae: needed, unless --init names a model that has its autoencoder")
    source = base if vae is None else read_model_folder(vae)
    arguments = read_config(source.file("vae"), Autoencoder)
    if base is not None:
        check_autoencoder(base, source)
    return config, Sources(source, arguments, base)


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


def build_text(config: DiffusionRun) -> tuple[TextEncoder | None, ClipTokenizer | None]:
    """The text encoder and tokenizer of a configuration; (None, None) when unconditional."""
    text = config.text
    if text.source == "none":
        return None, None
    if not text.trained and text.source == "scratch":
        raise UserError("text.trainable: a text encoder from scratch knows nothing until trained")
    if text.source == "scratch":
        sizes = {k: getattr(text, k) for k in ("hidden_dim", "num_layers", "num_heads")}
        encoder = build_text_encoder(**sizes, context_length=text.context_length)
        return encoder, ClipTokenizer(text.context_length)
    if not text.path:
        raise UserError(f"text.path: needed with text.source={text.source}")
    encoder, tokenizer = (load_clip_folder if text.source == "clip" else load_preset)(text.path)
    encoder.trainable = text.trained
    return encoder, tokenizer


def build_networks(
    config: DiffusionRun, sources: Sources
) -> tuple[UNet, TextEncoder | None, ClipTokenizer | None]:
    """The UNet, and the text encoder with its tokenizer, reproducible by the seed.

    They are untrained, or those of `sources.base`. The autoencoder's arguments fix the latents'
    channels.

    Raises:
        UserError: sizes that do not fit each other, or the resolution.
    """
    keras.utils.set_random_seed(config.training.seed)
    dtype = layer_policy(config.training)
    if sources.base is not None:
        networks = base_networks(config, sources.base, dtype)
        check_resolution(config.data.resolution, sources.vae_config, networks[0])
        return networks
    text_encoder, tokenizer = build_text(config)
    if text_encoder is not None and dtype != "float32":
        text_encoder = remade(text_encoder, dtype=dtype)
    try:
        unet = UNet(
            **config.unet.model_dump(),
            latent_channels=sources.vae_config["latent_channels"],
            context_dim=None if text_encoder is None else text_encoder.hidden_dim,
            dtype=dtype,
        )
    except ValueError as error:
        raise UserError(f"unet: {error}") from None
    check_resolution(config.data.resolution, sources.vae_config, unet)
    return unet, text_encoder, tokenizer


@keras.saving.register_keras_serializable(package="latentddpm")
class TextToLatents(TrainStep, keras.Model):
    """A text encoder and a UNet as one function of noisy latents, timesteps and token ids."""


def with_text(unet: UNet, text_encoder: TextEncoder | None, context_length: int) -> keras.Model:
    """What trains: the UNet alone, or text encoder and UNet as one function of token ids."""
    if text_encoder is None:
        return unet
    inputs = {
        name: keras.Input(shape, dtype=dtype, name=name)
        for name, shape, dtype in (
            ("noisy_latents", unet.input["noisy_latents"].shape[1:], "float32"),
            ("timesteps", (), "int32"),
            ("token_ids", (context_length,), "int32"),
        )
    }
    context = text_encoder({"token_ids": inputs["token_ids"]})
    prediction = unet(
        {
            "noisy_latents": inputs["noisy_latents"],
            "timesteps": inputs["timesteps"],
            "context": context,
        }
    )
    return TextToLatents(inputs, prediction, name="text_to_latents")


@interrupt.listening()
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
        data: a folder of images or shards; see `data.sources.open_source`.
        vae: a model folder or finished `train-vae` run; None for the one of `config.init`.
        latents: folder of the latents cache, `out/latents` by default.
        catalog: folder of the catalog, `catalog` in the latents cache by default.
        allow_changes: with `resume`, other settings or data than the run was started with.
        strategy: of `distribute.make_strategy`; None for one device.

    Raises:
        UserError: unusable data or model folder, no captions for a text-conditioned model, a
            resolution that does not fit the networks, a run folder that is taken (or, with
            `resume`, empty or of another run).
        interrupt.Stopped, Diverged, MemoryError, OSError: see `loop.run_steps`.
    """
    settings = config.training
    check_run(out, resume)
    config, sources = read_sources(config, vae)
    vae_file = sources.vae.file("vae")
    schedule = build_schedule(config)
    with in_scope(strategy):
        unet, text_encoder, tokenizer = build_networks(config, sources)
        model = with_text(unet, text_encoder, tokenizer.context_length if tokenizer else 0)
        model.compile(**compile_options(settings), loss="mse")

    latents = latents or out / "latents"
    crew = crew_of(strategy)
    quiet = quiet or not crew.chief
    catalog = catalog or latents / "catalog"
    catalog = open_catalog(data, catalog, strict=strict, quiet=quiet, crew=crew)
    if crew.chief:
        catalog.report()
    vae_digest = sources.vae.parts["vae"]["digest"]
    by_caption = config.data.validation_by == "caption"
    words = {"captions": catalog.row_digest} if tokenizer or by_caption else {}
    contract = agree(
        out,
        config,
        data_facts(catalog, autoencoder=vae_digest, **words),
        resume=resume,
        allow_changes=allow_changes,
        quiet=quiet,
    )
    training_images, validation_images = split_catalog(catalog, config.data)
    captions = Captions(catalog, config.data.caption_templates) if tokenizer else None
    tokens = prepare_tokens(captions, tokenizer, quiet, crew) if tokenizer else None
    prompts = grid_prompts(config, captions, tokens)
    cache = prepare_latents(
        catalog,
        latents,
        vae_digest=vae_digest,
        load_autoencoder=lambda: load_archive(vae_file, Autoencoder),
        resolution=config.data.resolution,
        mirrored=config.data.flip,
        quiet=quiet,
        crew=crew,
    )
    stream = Examples(
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

    def validate(step: int, log: RunLog) -> None:
        with averaged_weights(model):
            if len(validation_images):
                values = model.evaluate(
                    stream.validation(validation_images),
                    verbose=0,
                    callbacks=[StopEvaluation()] if crew.count == 1 else None,
                    return_dict=True,
                )
                log.write(step, {f"validation_{key}": v for key, v in values.items()})
            if not crew.chief:
                return
            picture = sample_grid(sampled, prompts, config)
        save_png(out / "samples" / f"step-{step:08d}.png", picture)
        log.picture(step, "samples", picture)

    run_steps(
        model,
        lambda start, stop: stream.training(training_images, start, stop),
        config,
        out,
        validate,
        contract=contract,
        resume=resume,
        quiet=quiet,
        strategy=strategy,
    )
    if config.lora.rank:
        if crew.chief:
            save_trained_lora(unet, out / LORA, config, sources.base)
        crew.barrier()
        return sampled
    sampled.unet = in_float32(unet)
    if text_encoder is not None:
        sampled.text_encoder = in_float32(text_encoder)
    if crew.chief:
        sampled.save(out / "model")
    crew.barrier()
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

    def training(self, images: Selection, start: int, stop: int) -> tf.data.Dataset:
        """Batches of steps `start` … `stop` − 1."""
        settings = self.config.training
        return self._batches(
            images,
            "train-diffusion",
            range(start * settings.batch_size, stop * settings.batch_size),
            **{name: getattr(settings, name) for name in RECIPE},
        )

    def validation(self, images: Selection) -> tf.data.Dataset:
        """Each held-back image once, with the same noise and timestep every time.

        Nothing of the recipe applies: runs that differ in it have comparable losses.
        """
        return self._batches(images, "validation", range(len(images)))

    def _batches(
        self, images: Selection, stream: str, places: range, **recipe: float
    ) -> tf.data.Dataset:
        settings = self.config.training
        positions, batch_size = examples.share(
            places.start, places.stop, settings.batch_size, crew_of(self.strategy)
        )
        batches = examples.diffusion_examples(
            self.cache,
            images,
            *self.parts,
            batch_size=batch_size,
            draws=Draws(settings.seed, stream),
            positions=positions,
            tokens=self.tokens,
            **recipe,
        )
        return feed(self.strategy, batches)


def check_resolution(resolution: int, vae_config: dict[str, Any], unet: UNet) -> None:
    """Refuse a resolution that does not divide down to the UNet's lowest level.

    Raises:
        UserError: naming the nearest valid sizes.
    """
    factor = 2 ** (len(vae_config["channel_multipliers"]) - 1) * unet.downsample_factor
    if resolution % factor:
        low = max(resolution // factor, 1) * factor
        raise UserError(
            f"data.resolution {resolution} is not a multiple of {factor}, the autoencoder's "
            f"times the UNet's downsample factor; nearest valid: {low} or {low + factor}"
        )


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
        print(
            f"{bare} of {len(captions)} images have no caption and train on the empty prompt, "
            f"such as {captions.catalog.name(first)}",
            file=sys.stderr,
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
