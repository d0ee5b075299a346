"""Latent diffusion model: prompt → context → sampler over the UNet → decoder → images.

    model = LatentDiffusion.load("weights/emoji-128")
    images = model.generate("red apple", num_images=4, seed=0)      # uint8 (4, 128, 128, 3)

Generation starts from noise, from the latents of a picture (image-to-image), or changes a part of
a picture (inpainting). Image k of seed s is the image of seed s + k, see `seeds`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from latentddpm.clip.prompts import for_each_image, for_each_prompt, read_count, read_texts
from latentddpm.clip.tokenizer import CLIPTokenizer
from latentddpm.conditions.conditions import NO_CONDITIONS, Conditions, Values
from latentddpm.diffusion import samplers
from latentddpm.diffusion.process import ForwardProcess
from latentddpm.diffusion.schedules import schedule_from_config
from latentddpm.engines.networks import choose_engine, load_networks
from latentddpm.errors import UserError, check_choice
from latentddpm.models.autoencoder.pixel_space import PixelSpace
from latentddpm.models.autoencoder.tiling import FirstStage, decode
from latentddpm.models.graph_networks import is_graph
from latentddpm.models.precision import hold_in, precision_of, settle_precision
from latentddpm.pipeline.control.control import (
    Control,
    check_alone,
    controlled_unet,
    told_controls,
)
from latentddpm.pipeline.model_folder import (
    TOKENIZER,
    ModelFolder,
    read_model_folder,
)
from latentddpm.pipeline.progress import Callback, StepBar, step_callback
from latentddpm.pipeline.regions.region import Region, read_regions
from latentddpm.pipeline.seeds import image_seeds, starting_noise, step_noise
from latentddpm.pipeline.settings import DEFAULTS, FIELDS, GenerationSettings, ModelFacts
from latentddpm.pipeline.start.init_image import read_init_image
from latentddpm.pipeline.start.latents import start_latents
from latentddpm.pipeline.summary import describe_model
from latentddpm.pipeline.told.guided import Guide, guide_scale, guided_denoiser, on_device
from latentddpm.pipeline.told.network import network_of
from latentddpm.pipeline.told.told import canvas_of, told_conditions
from latentddpm.utils.console import activity
from latentddpm.utils.images.pictures import Picture
from latentddpm.utils.images.pixel_format import PixelFormat
from latentddpm.utils.timing import timed

if TYPE_CHECKING:
    from latentddpm.clip.text_encoder import TextEncoder
    from latentddpm.models.denoisers.base import Denoiser

OUTPUTS = ("images", "latents")


class LatentDiffusion:
    """Latent diffusion model: autoencoder, UNet and, for text, a text encoder with its tokenizer.

    Made or loaded in the `scope()` of a `tf.distribute` strategy, it splits every batch over the
    replicas in its process.

    Args:
        autoencoder: turns images into latents and back; a `PixelSpace` for a model of pixels.
        unet: denoiser of latents; None for an autoencoder alone, which generates nothing.
        schedule: noise schedule that the UNet was trained with; None without a UNet.
        text_encoder, tokenizer: of the prompts; both, or None for an unconditional model.
        image_size: (height, width) in pixels that it was trained at and generates by default;
            (length,) of signals.
        defaults: default settings of `generate`, by the names of `GenerationSettings`.
        digest: identifies the model folder that it was loaded from; None for no folder.
        pixels: format of the images; None for 8 bits, with the channels of the autoencoder, and
            for signals of floating point in [-1, 1].
        conditions: that the UNet is told beside text, in the order of its inputs.

    Attributes:
        loras: LoRA files that `interop.merge_lora` has added to the weights: for each its name
            `file`, its `sha256` and its `scale`.
        embeddings: textual inversions that `interop.load_embedding` has added: for each its name
            `file`, its `sha256` and its `word`.

    Example:
        >>> autoencoder = latentddpm.Autoencoder(8, channel_multipliers=(1, 2), norm_groups=4)
        >>> unet = latentddpm.UNet(8, channel_multipliers=(1,), attention_levels=(), norm_groups=4)
        >>> model = latentddpm.LatentDiffusion(autoencoder, unet, latentddpm.NoiseSchedule())
        >>> images = model.generate(num_images=3, num_steps=2, height=16, width=16, seed=0)
        >>> images.shape, images.dtype
        ((3, 16, 16, 3), dtype('uint8'))
    """

    def __init__(
        self,
        autoencoder: FirstStage,
        unet: Denoiser | None,
        schedule: ForwardProcess | None,
        text_encoder: TextEncoder | None = None,
        tokenizer: CLIPTokenizer | None = None,
        image_size: tuple[int, ...] | None = None,
        defaults: dict[str, Any] | None = None,
        digest: str | None = None,
        pixels: PixelFormat | None = None,
        conditions: Conditions = NO_CONDITIONS,
    ) -> None:
        self.conditions = conditions
        self.autoencoder = autoencoder
        self.unet = unet
        self.schedule = schedule
        self.text_encoder = text_encoder
        self.tokenizer = tokenizer
        self.image_size = image_size
        self.defaults = {**DEFAULTS, **(defaults or {})}
        self.digest = digest
        self.pixels = pixels or _default_format(autoencoder, unet)
        self.loras: list[dict[str, Any]] = []
        self.embeddings: list[dict[str, Any]] = []

    @classmethod
    def load(
        cls,
        folder: str | Path,
        engine: str = "keras",
        precision: str = "float32",
        cache: bool = False,
    ) -> LatentDiffusion:
        """Load a model.

        Args:
            folder: a model folder, a finished run, or the name of a model that ships, such as
                "emoji-128".
            engine: that computes its networks, see `engines.networks`: "keras", whose networks
                can be trained, saved and exported; "onnx", which only generates; or "auto".
            precision: in which Keras's networks compute and hold their weights: "float32",
                "bfloat16" or "float16", which take half the memory and only generate, see
                `models.precision`; or "auto": float16 on a GPU that has units for it.
            cache: compute Keras's networks by functions that are kept in the user's cache folder,
                where that can be: a later start is several times as fast. Such a model only
                generates, as `latentddpm generate` does.

        Raises:
            UserError: see `model_folder.read_model_folder`; the folder holds no UNet; see
                `engines.networks.choose_engine`; or the device cannot compute in the precision.
        """
        found = read_model_folder(folder)
        engine = choose_engine(engine, found, precision)
        networks = load_networks(found, engine, settle_precision(precision, engine), cache)
        tokenizer = None
        if networks.text_encoder is not None:
            tokenizer = CLIPTokenizer.load(found.path / TOKENIZER)
        return cls(
            networks.autoencoder,
            networks.unet,
            schedule_from_config(found.schedule or {}),
            networks.text_encoder,
            tokenizer,
            found.image_size,
            found.defaults,
            found.digest,
            found.pixels,
            found.conditions,
        )

    def save(self, folder: str | Path, storage: str = "float32") -> ModelFolder:
        """Write a model folder, whole or not at all, with graphs of its networks.

        Args:
            folder: to write. A model folder that exists is replaced, except its `README.md`.
            storage: "float32", or "float16" for files of half the size.

        Returns:
            The model folder, as it is read back.

        Raises:
            UserError: the folder exists and holds something other than a model; or the model was
                loaded with another engine than Keras.
        """
        from latentddpm.pipeline.saving import save_model

        return save_model(self, Path(folder), storage)

    @property
    def networks(self) -> dict[str, Any]:
        """Networks by the names of their parts in a model folder; None for those it lacks."""
        of_pixels = isinstance(self.autoencoder, PixelSpace)
        return {
            "vae": None if of_pixels else self.autoencoder,
            "unet": self.unet,
            "text_encoder": self.text_encoder,
        }

    def __repr__(self) -> str:
        return describe_model(self)

    def hold_in(self, precision: str) -> None:
        """Hold the weights in a precision, and compute in it, from now on.

        Args:
            precision: see `load`.

        Raises:
            UserError: it is not known, or the device cannot compute in it.
        """
        precision = settle_precision(precision, self.engine)
        for part in ("autoencoder", "unet", "text_encoder"):
            setattr(self, part, hold_in(getattr(self, part), precision))

    @property
    def precision(self) -> str:
        """Precision in which the networks hold their weights."""
        return precision_of(self.autoencoder if self.unet is None else self.unet)

    @property
    def engine(self) -> str:
        """Engine that computes its networks: "keras" or "onnx"."""
        return self.unet.graph.engine if is_graph(self.unet) else "keras"

    @property
    def facts(self) -> ModelFacts:
        """Facts that decide which settings the model accepts, and their defaults.

        Raises:
            UserError: the model has no UNet.
        """
        if self.unet is None:
            raise UserError("this model is an autoencoder alone: without a UNet nothing is drawn")
        return ModelFacts(
            defaults=(self.defaults,),
            image_size=self.image_size,
            has_text=self.text_encoder is not None,
            num_train_timesteps=self.schedule.num_train_timesteps,
            schedule=self.schedule.kind,
            size_multiple=self.autoencoder.downsample_factor,
            downsample_factor=self.autoencoder.downsample_factor,
            learned_variance=self.unet.learned_variance,
            spatial_dims=self.unet.spatial_dims,
            conditions=self.conditions,
        )

    def settings(self, **given: Any) -> GenerationSettings:
        """Settings for `generate`, with the model's defaults for those not given.

        Args:
            given: by the names of `GenerationSettings`; None for the model's default.

        Raises:
            UserError: an unknown name, or a value that this model does not accept.
        """
        settings = self.facts.settings(**given)
        self.make_sampler(settings)
        return settings

    def make_sampler(self, settings: GenerationSettings) -> samplers.Sampler:
        """Sampler of some settings.

        Args:
            settings: returned by `LatentDiffusion.settings`.

        Raises:
            UserError: this model does not accept a setting; the message names it.
        """
        self.facts.check(settings)
        make = samplers.get(settings.sampler)
        steps, spacing = settings.num_steps, settings.timestep_spacing
        return make(self.schedule, steps, spacing, **settings.sampler_options)

    def generate(
        self,
        prompt: str | Sequence[str] | None = "",
        *,
        negative_prompt: str | Sequence[str] | None = None,
        num_images: int = 1,
        seed: int | Sequence[int] | None = None,
        num_steps: int | None = None,
        sampler: str | samplers.Sampler | None = None,
        timestep_spacing: str | None = None,
        sampler_options: Mapping[str, Any] | None = None,
        guidance_scale: float | None = None,
        guidance_rescale: float | None = None,
        guidance_interval: Sequence[float] | None = None,
        condition_scales: Mapping[str, float] | None = None,
        height: int | None = None,
        width: int | None = None,
        length: int | None = None,
        start_step: int | None = None,
        settings: GenerationSettings | None = None,
        autoguidance: LatentDiffusion | None = None,
        autoguidance_scale: float | None = None,
        conditions: Values | Sequence[Values] | None = None,
        init_image: Picture | None = None,
        strength: float | None = None,
        mask: Picture | None = None,
        regions: Sequence[Region | tuple[Picture, str]] | None = None,
        controls: Sequence[Control] = (),
        latents: np.ndarray | None = None,
        output: str = "images",
        tile: str | int = "auto",
        batch_size: int = 16,
        callback: Callback | None = None,
        progress: bool = False,
    ) -> np.ndarray:
        """Generate images from noise, from a picture, or inside a picture.

        `GenerationSettings` describes the settings `negative_prompt` and `num_steps` …
        `start_step`; one that is None has the model's default.

        Args:
            prompt: one, or a list; "" or None for none. Each prompt gives `num_images` images, in
                order.
            negative_prompt: see `GenerationSettings`; or a list with that of each prompt, which
                may also be given beside `settings`.
            num_images: for each prompt, at least 1.
            seed: of the first image, 0 … 2⁶³ − 1; image k has seed + k. A list has the seed of
                each image; None draws the first.
            num_steps, sampler, timestep_spacing, sampler_options: see `GenerationSettings`. A
                `Sampler` object comes with its own steps, spacing and options.
            guidance_scale, guidance_rescale, guidance_interval, condition_scales: see
                `GenerationSettings`.
            height, width, length, start_step: see `GenerationSettings`.
            settings: returned by `model.settings`, instead of single settings.
            autoguidance: a weaker model of the same latents, schedule and conditions, that
                guidance leads away from, such as a smaller one or an earlier checkpoint.
            autoguidance_scale: w, at least 0; 1 for none, None for 2.
            conditions: values by the names of the model's conditions, such as `{"digit": 7}`, or a
                sequence with those of each prompt; None, or a name left out, for "not told". A
                picture is a file, a PIL image or an array, as `init_image`.
            init_image: picture to start from: a file or PIL image, scaled and cropped to the
                size, or an array of that size, uint8 or floating point in [0, 1].
            strength: share of the steps that is run from `init_image`, in (0, 1]; a higher one
                changes the picture more. None for 0.75, or for 1 with a mask.
            mask: part of `init_image` to change: a file, PIL image or array (also bool) of the
                picture's size. White is changed; black keeps the pixels of the picture.
            regions: parts of all images that are told something else, each a `Region` or
                (mask, prompt). Masks are like `mask`, of the size that is drawn, or of that of
                `init_image`; where several are white they share equally. The negative prompt is
                the same everywhere.
            controls: ControlNets with their pictures, each a `Control`; what they add is summed.
                Not together with `regions`.
            latents: starting noise, standard normal (N, h, w, c), instead of that of the seeds.
            output: "images", or "latents" for the scaled latents, not decoded.
            tile: encode and decode in strips: "auto" (where the whole image does not fit into
                memory), "off", or the height of a strip in pixels. The images are the same.
            batch_size: images denoised together, at least 1. The images are the same.
            callback: `callback(step_index, timestep, latents, x0)` after each step of each batch,
                with the latents x_t that the step began with, and the x0 estimated from them:
                tensors, float32 (B, h, w, c), scaled. Batches come one after the other.
            progress: say on stderr what is being done, with a bar for the steps.

        Returns:
            uint8 (N, height, width, 3), or what `pixels` of the model says; signals are
            (N, length, C). With `output="latents"` float32 (N, h, w, c).

        Raises:
            UserError: a value of the wrong kind or out of range, an unknown sampler or option, a
                size that the networks do not divide, a prompt or guidance for an unconditional
                model, a condition, value or region that the model does not have, a weaker model
                that predicts something else, a ControlNet for another network, a picture or mask
                that cannot be read or does not fit.
        """
        arguments = locals()
        given = {name: arguments[name] for name in FIELDS if arguments[name] is not None}
        prompts, quiet = read_texts("prompt", prompt), not progress
        num_images, batch_size = (
            read_count(name, arguments[name]) for name in ("num_images", "batch_size")
        )
        negatives = None
        if negative_prompt is not None and not isinstance(negative_prompt, str):
            negatives = read_texts("negative_prompt", given.pop("negative_prompt"))
            negatives = for_each_prompt(negatives, prompts)
        check_choice("output", output, OUTPUTS)
        facts = self.facts
        facts.check_tile(tile)
        rows = facts.conditions.rows(conditions)
        if len(prompts) == 1:
            prompts = prompts * len(rows)
        rows = for_each_prompt(rows, prompts, "conditions")
        facts.check_prompts(prompts, negatives or ())
        scale = guide_scale(self, autoguidance, autoguidance_scale)
        settings, sampler = self._decide(settings, given)
        negatives = negatives or [settings.negative_prompt] * len(prompts)
        prompts, negatives, rows = (
            for_each_image(texts, num_images) for texts in (prompts, negatives, rows)
        )
        seeds = image_seeds(seed, len(prompts))

        start = read_init_image(init_image, mask, strength, settings.size, self.pixels)
        regions = read_regions(regions, facts, settings.size, init_image, self.pixels)
        noise = starting_noise(seeds, self._latent_shape(settings.size), latents)
        with activity("encoding the picture", quiet or start is None):
            starts, sampler, first_step = start_latents(
                *(self.autoencoder, start, sampler, noise, tile, self.pixels),
                *(settings.start_step, self.conditions.paints),
            )
        canvas = canvas_of(self.autoencoder, settings.size, self.pixels, start, tile)
        told, guide = told_conditions(self.conditions, rows, canvas), None
        asked = ((prompts, negatives), told, rows, regions)
        with timed("text encoder"), activity("encoding the prompts", quiet):
            if autoguidance is not None:
                guide = Guide(*network_of(autoguidance, *asked), scale)
            unet, told = network_of(self, *asked)
        if controls:
            check_alone(regions)
            unet = controlled_unet(unet, controls, self.autoencoder.downsample_factor)
            told |= told_controls(controls, settings.size, len(prompts))

        results = []
        batches = [slice(k, k + batch_size) for k in range(0, len(prompts), batch_size)]
        steps = len(batches) * (sampler.num_steps - first_step)
        total = self.schedule.num_train_timesteps
        with StepBar(steps, quiet) as bar:
            for batch in batches:
                with timed("sampler"):
                    denoised = sampler.sample(
                        guided_denoiser(
                            unet, told[batch], settings, total, guide and guide[batch]
                        ),
                        on_device(self.unet, starts[batch]),
                        noise=partial(step_noise, seeds[batch], noise.shape[1:]),
                        callback=step_callback(bar, starts[batch], callback),
                        first_step=first_step,
                    )
                if output == "latents":
                    results.append(np.asarray(denoised))
                    continue
                with timed("decoder"), activity("decoding", quiet):
                    decoded = decode(self.autoencoder, denoised, tile, progress)
                images = self.pixels.from_images(decoded)
                results.append(images if start is None else start.composite(images))
        return np.concatenate(results)

    def _decide(
        self, settings: GenerationSettings | None, given: dict[str, Any]
    ) -> tuple[GenerationSettings, samplers.Sampler]:
        """Settings and sampler of `generate`, from `settings` or from the single ones given."""
        if settings is not None:
            if not isinstance(settings, GenerationSettings):
                raise UserError(f"settings: {settings!r:.80}, expected those of model.settings()")
            for name, value in given.items():
                raise UserError(f"{name}: {value!r} beside settings that have their own")
            return settings, self.make_sampler(settings)
        sampler = given.get("sampler")
        if not isinstance(sampler, samplers.Sampler):
            settings = self.facts.settings(**given)
            return settings, self.make_sampler(settings)
        for name in ("num_steps", "timestep_spacing", "sampler_options"):
            if name in given:
                raise UserError(f"{name}: {given[name]!r} beside a sampler that has its own")
        own = {"sampler": None, "num_steps": sampler.num_steps}
        return self.facts.settings(**{**given, **own}), sampler

    def _latent_shape(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """Shape (h, w, c) of the latents of one image, (L, c) of a signal."""
        factor = self.autoencoder.downsample_factor
        return *(side // factor for side in size), self.autoencoder.latent_channels


def _default_format(autoencoder: FirstStage, unet: Denoiser | None) -> PixelFormat:
    """Pixel format of a model that names none."""
    channels = getattr(autoencoder, "image_channels", 3)
    if getattr(unet, "spatial_dims", 2) == 1:
        return PixelFormat(channels, "float", (-1.0, 1.0), spatial_dims=1)
    return PixelFormat(channels)
