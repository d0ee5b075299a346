"""Latent diffusion: prompt → context → sampler over the UNet → decoder → images; all parts meet.

    model = LatentDiffusion.load("weights/emoji-128")
    images = model.generate("red apple", num_images=4, seed=0)      # uint8 (4, 64, 64, 3)

Or from a picture's latents (image-to-image), or only in a part of one (inpainting). Image k of
seed s is the image of seed s + k, see `seeds`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import latentddpm
from latentddpm.clip.text_encoder import TextEncoder
from latentddpm.clip.tokenizer import CLIPTokenizer
from latentddpm.diffusion import samplers
from latentddpm.diffusion.guidance import ClassifierFreeGuidance
from latentddpm.diffusion.inpainting import Inpainting, repaint_weights
from latentddpm.diffusion.schedule import NoiseSchedule
from latentddpm.errors import UserError, check_choice
from latentddpm.models.archive import load_archive, save_archive, weights_digest
from latentddpm.models.autoencoder.autoencoder import Autoencoder
from latentddpm.models.autoencoder.tiling import check_tile, decode, encode
from latentddpm.models.inference import compiled
from latentddpm.models.unet import UNet
from latentddpm.pipeline.init_image import InitImage, Source, read_init_image
from latentddpm.pipeline.model_folder import (
    FILES,
    MANIFEST,
    TOKENIZER,
    ModelFolder,
    describe_part,
    read_model_folder,
    write_manifest,
)
from latentddpm.pipeline.seeds import image_seeds, starting_noise, step_noise
from latentddpm.pipeline.settings import DEFAULTS, FIELDS, GenerationSettings, ModelFacts
from latentddpm.utils import signals
from latentddpm.utils.files import atomic_folder
from latentddpm.utils.pixels import from_pixels, to_pixels
from latentddpm.utils.timing import timed

OUTPUTS = ("images", "latents")


class LatentDiffusion:
    """An autoencoder, a UNet and, for text, an encoder with its tokenizer.

    Made or loaded in the `scope()` of a `tf.distribute` strategy, it splits every batch over the
    replicas in its process.

    Args:
        autoencoder, unet, schedule: the parts.
        text_encoder, tokenizer: both or neither; None for an unconditional model.
        image_size: (height, width) drawn by default, the size it was trained at.
        defaults: of `settings`, by the names of `GenerationSettings`.

    Attributes:
        digest: of the model folder it was loaded from, None where it was put together.
        loras: what `interop.merge_lora` has added to the weights since: each file's name, SHA-256
            and scale.
    """

    def __init__(
        self,
        autoencoder: Autoencoder,
        unet: UNet | None,
        schedule: NoiseSchedule | None,
        text_encoder: TextEncoder | None = None,
        tokenizer: CLIPTokenizer | None = None,
        image_size: tuple[int, int] | None = None,
        defaults: dict[str, Any] | None = None,
        digest: str | None = None,
    ) -> None:
        self.autoencoder = autoencoder
        self.unet = unet
        self.schedule = schedule
        self.text_encoder = text_encoder
        self.tokenizer = tokenizer
        self.image_size = image_size
        self.defaults = {**DEFAULTS, **(defaults or {})}
        self.digest = digest
        self.loras: list[dict[str, Any]] = []

    @classmethod
    def load(cls, folder: str | Path) -> LatentDiffusion:
        """Read a model folder, a finished run, or a ready model by name.

        Raises:
            UserError: see `modelfolder.read_model_folder`; or the folder holds no UNet.
        """
        found = read_model_folder(folder)
        unet_file = found.file("unet")
        text_encoder = tokenizer = None
        if "text_encoder" in found.parts:
            text_encoder = load_archive(found.file("text_encoder"), TextEncoder)
            tokenizer = CLIPTokenizer.load(found.path / TOKENIZER)
        return cls(
            load_archive(found.file("vae"), Autoencoder),
            load_archive(unet_file, UNet),
            NoiseSchedule.from_config(found.schedule or {}),
            text_encoder,
            tokenizer,
            found.image_size,
            found.defaults,
            found.digest,
        )

    def save(self, folder: str | Path, storage: str = "float32") -> ModelFolder:
        """Write the model folder, atomically; `storage` "float16" halves the files.

        A model folder that stands there is replaced, but for its model card (`README.md`).

        Raises:
            UserError: the folder holds something else than a model.
        """
        folder = Path(folder)
        if folder.is_dir() and any(folder.iterdir()) and not (folder / MANIFEST).is_file():
            raise UserError(f"{folder}: holds other files and no {MANIFEST}; name a new folder")
        parts = {"vae": self.autoencoder, "unet": self.unet, "text_encoder": self.text_encoder}
        vae_digest = weights_digest(self.autoencoder)
        with atomic_folder(folder) as staged:
            entries = {}
            for name, part in parts.items():
                if part is None:
                    continue
                file = staged / FILES[name]
                save_archive(part, file, storage)
                extra = {"vae_digest": vae_digest} if name == "unet" else {}
                entries[name] = describe_part(file, weights_digest(part), **extra)
            if self.tokenizer is not None:
                self.tokenizer.save(staged / TOKENIZER)
            card = folder / "README.md"
            if card.is_file():
                (staged / card.name).write_bytes(card.read_bytes())
            write_manifest(
                staged,
                entries,
                self.schedule.get_config() if self.schedule else None,
                self.image_size,
                self.defaults if self.unet is not None else {},
                latentddpm.__version__,
            )
        return read_model_folder(folder)

    @property
    def facts(self) -> ModelFacts:
        """Facts that decide what it draws, and by which settings."""
        if self.unet is None:
            raise UserError("this model is an autoencoder alone: without a UNet nothing is drawn")
        return ModelFacts(
            defaults=(self.defaults,),
            image_size=self.image_size,
            has_text=self.text_encoder is not None,
            num_train_timesteps=self.schedule.num_train_timesteps,
            size_multiple=self.autoencoder.downsample_factor * self.unet.downsample_factor,
        )

    def settings(self, **given: Any) -> GenerationSettings:
        """Settings of `generate` as given; those left out, or None, are the model's defaults.

        Raises:
            UserError: an unknown name, or a value that this model cannot follow.
        """
        settings = self.facts.settings(**given)
        self.make_sampler(settings)
        return settings

    def make_sampler(self, settings: GenerationSettings) -> samplers.Sampler:
        """The sampler of settings, once this model can follow them.

        Raises:
            UserError: naming the setting that it cannot follow.
        """
        self.facts.check(settings)
        make = samplers.get(settings.sampler)
        steps, spacing = settings.num_steps, settings.timestep_spacing
        return make(self.schedule, steps, spacing, **settings.sampler_options)

    def generate(
        self,
        prompt: str | Sequence[str] = "",
        *,
        negative_prompt: str | None = None,
        num_images: int = 1,
        seed: int | Sequence[int] | None = None,
        num_steps: int | None = None,
        sampler: str | samplers.Sampler | None = None,
        timestep_spacing: str | None = None,
        sampler_options: Mapping[str, Any] | None = None,
        guidance_scale: float | None = None,
        guidance_rescale: float | None = None,
        height: int | None = None,
        width: int | None = None,
        settings: GenerationSettings | None = None,
        init_image: Source | None = None,
        strength: float | None = None,
        mask: Source | None = None,
        latents: np.ndarray | None = None,
        output: str = "images",
        tile: str | int = "auto",
        batch_size: int = 16,
        progress: bool = False,
    ) -> np.ndarray:
        """Make images: from noise, from a picture, or inside a picture.

        Args:
            prompt: what to show, or a list; each prompt gives `num_images` images, in order.
            negative_prompt: what guidance leads away from.
            seed: of the first image; image k has seed + k. A list names the seed of each
                image; None draws one.
            num_steps, sampler, timestep_spacing, guidance_scale, guidance_rescale: None for the
                model's own defaults; a `Sampler` made elsewhere brings its steps and spacing.
            sampler_options: further arguments of the sampler, such as `{"eta": 0.5}`; those left
                out are the model's own.
            height, width: pixels; None for the size the model was trained at.
            settings: those of `model.settings`, instead of any of their fields above.
            init_image: a picture to start from, a file (scaled and cropped to the size) or
                uint8 (height, width, 3).
            strength: how far to go from it, in (0, 1]: the share of the steps that is run. None
                for 0.75, or for 1 with a mask.
            mask: what of it to repaint, a file as large as the picture or uint8
                (height, width): white is repainted; black keeps the picture's own pixels.
            latents: the starting noise instead of the seeds', standard normal (N, h, w, c).
            output: "images", or "latents" for the scaled latents before they are decoded.
            tile: how to encode and decode: "auto" (in strips when one pass does not fit into
                memory), "off", or the height of a strip in pixels; changes nothing but memory.
            batch_size: images denoised at a time; changes nothing but memory.
            progress: show a bar on stderr.

        Returns:
            uint8 (N, height, width, 3); with `output="latents"` float32 (N, h, w, c).

        Raises:
            UserError: a value out of range, an unknown sampler, an option it does not take, a
                size the networks do not divide, a prompt or guidance for an unconditional model,
                a picture or mask that cannot be read or does not fit.
        """
        arguments = locals()
        given = {name: arguments[name] for name in FIELDS if arguments[name] is not None}
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        if num_images < 1 or not prompts:
            raise UserError(f"num_images: {num_images}, expected at least 1 image and 1 prompt")
        if batch_size < 1:
            raise UserError(f"batch_size: {batch_size}, expected at least 1")
        check_choice("output", output, OUTPUTS)
        check_tile(tile)
        self.facts.check_prompts(prompts)
        prompts = [text for text in prompts for _ in range(num_images)]
        seeds = image_seeds(seed, len(prompts))
        settings, sampler = self._decide(settings, given)

        start = read_init_image(init_image, mask, strength, settings.size)
        noise = self._starting_noise(seeds, settings.size, latents)
        starts, sampler, first_step = self._start(start, sampler, noise, tile)
        with timed("text encoder"):
            contexts = self._contexts(prompts, settings.negative_prompt)

        results = []
        batches = [slice(k, k + batch_size) for k in range(0, len(prompts), batch_size)]
        steps = len(batches) * (sampler.num_steps - first_step)
        with tqdm(total=steps, unit="step", disable=not progress) as bar:

            def after_step(*_: Any) -> None:
                signals.check()
                bar.update()

            for batch in batches:
                with timed("sampler"):
                    denoised = sampler.sample(
                        self._denoiser(contexts, batch, settings),
                        starts[batch],
                        noise=partial(step_noise, seeds[batch], noise.shape[1:]),
                        callback=after_step,
                        first_step=first_step,
                    )
                if output == "latents":
                    results.append(np.asarray(denoised))
                    continue
                with timed("decoder"):
                    images = to_pixels(decode(self.autoencoder, denoised, tile, progress))
                results.append(images if start is None else start.composite(images))
        return np.concatenate(results)

    def _decide(
        self, settings: GenerationSettings | None, given: dict[str, Any]
    ) -> tuple[GenerationSettings, samplers.Sampler]:
        """The settings and the sampler of `generate`: those handed over, else as given."""
        if settings is not None:
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
        return self.facts.settings(**{**given, "sampler": None}), sampler

    def _starting_noise(
        self, seeds: Sequence[int], size: tuple[int, int], latents: np.ndarray | None
    ) -> np.ndarray:
        """Standard normal noise, float32 (N, h, w, c): of the seeds, or `latents`."""
        factor = self.autoencoder.downsample_factor
        shape = (size[0] // factor, size[1] // factor, self.autoencoder.latent_channels)
        if latents is None:
            return starting_noise(seeds, shape)
        latents = np.asarray(latents, np.float32)
        if latents.shape != (len(seeds), *shape):
            raise UserError(f"latents: expected {(len(seeds), *shape)}, got {latents.shape}")
        return latents

    def _start(
        self,
        start: InitImage | None,
        sampler: samplers.Sampler,
        noise: np.ndarray,
        tile: str | int,
    ) -> tuple[np.ndarray, samplers.Sampler, int]:
        """Latents to start from, the sampler that goes on from there, and its first step."""
        if start is None:
            return noise, sampler, 0
        first_step = start.first_step(sampler.num_steps)
        with timed("encoder"):
            mean, _ = encode(self.autoencoder, from_pixels(start.init_image)[None], tile)
            known = np.asarray(self.autoencoder.to_latents(mean))
        starts = sampler.add_noise(known, noise, first_step)
        if start.mask is not None:
            weights = repaint_weights(start.repaint, self.autoencoder.downsample_factor)
            sampler = Inpainting(sampler, known, weights)
        return starts, sampler, first_step

    def _denoiser(
        self,
        contexts: Sequence[np.ndarray] | None,
        batch: slice,
        settings: GenerationSettings,
    ) -> samplers.Denoiser:
        """The UNet as samplers call it, guided by the contexts of a batch where there are any."""
        predict = compiled(self.unet)

        def denoise(noisy_latents: Any, timesteps: Any, context: Any = None) -> Any:
            inputs = {"noisy_latents": noisy_latents, "timesteps": timesteps}
            if context is not None:
                inputs["context"] = context
            return predict(inputs)

        if contexts is None:
            return denoise
        context, null_context = (rows[batch] for rows in contexts)
        scale, rescale = settings.guidance_scale, settings.guidance_rescale
        return ClassifierFreeGuidance(denoise, context, null_context, scale, rescale)

    def _contexts(
        self, prompts: Sequence[str], negative_prompt: str
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """Text states of the prompts and of what guidance leads away from, (N, L, d) each."""
        if self.text_encoder is None:
            return None
        distinct = list(dict.fromkeys([negative_prompt, *prompts]))
        token_ids = self.tokenizer(distinct)
        states = np.asarray(compiled(self.text_encoder)({"token_ids": token_ids}))
        rows = [distinct.index(text) for text in prompts]
        return states[rows], states[[distinct.index(negative_prompt)] * len(prompts)]
