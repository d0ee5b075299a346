"""Where all parts meet: prompt → context → sampler over the UNet → decoder → images.

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
from latentddpm.diffusion.samplers.factory import make_sampler
from latentddpm.diffusion.schedule import NoiseSchedule
from latentddpm.errors import UserError, check_choice
from latentddpm.models.archive import load_archive, save_archive, weights_digest
from latentddpm.models.autoencoder.autoencoder import Autoencoder
from latentddpm.models.autoencoder.tiling import check_tile, decode, encode
from latentddpm.models.inference import compiled
from latentddpm.models.unet import UNet
from latentddpm.pipeline.init_image import Source, read_init_image
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
from latentddpm.utils import signals
from latentddpm.utils.files import atomic_folder
from latentddpm.utils.pixels import from_pixels, to_pixels
from latentddpm.utils.timing import timed

DEFAULTS = {
    "num_steps": 30,
    "sampler": "ddim",
    "timestep_spacing": "trailing",
    "guidance_scale": 4.0,
}
OUTPUTS = ("images", "latents")


class LatentDiffusion:
    """An autoencoder, a UNet and, for text, an encoder with its tokenizer.

    Made or loaded in the `scope()` of a `tf.distribute` strategy, it splits every batch over the
    replicas in its process.

    Args:
        autoencoder, unet, schedule: the parts.
        text_encoder, tokenizer: both or neither; None for an unconditional model.
        image_size: (height, width) drawn by default, the size it was trained at.
        defaults: of `generate`: the keys of `DEFAULTS`, `sampler_options`, `guidance_rescale`.

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

    def generate(
        self,
        prompt: str | Sequence[str] = "",
        *,
        negative_prompt: str = "",
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
            sampler_options: further arguments of the sampler, such as `{"eta": 0.5}`.
            height, width: pixels; None for the size the model was trained at.
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
                size the autoencoder does not divide, a prompt for an unconditional model, a
                picture or mask that cannot be read or does not fit.
        """
        # === What was asked for ===
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        if num_images < 1 or not prompts:
            raise UserError(f"num_images: {num_images}, expected at least 1 image and 1 prompt")
        if batch_size < 1:
            raise UserError(f"batch_size: {batch_size}, expected at least 1")
        check_choice("output", output, OUTPUTS)
        check_tile(tile)
        prompts = [text for text in prompts for _ in range(num_images)]
        seeds = image_seeds(seed, len(prompts))
        size = self._size(height, width)
        sampler = make_sampler(
            self.schedule, self.defaults, sampler, num_steps, timestep_spacing, sampler_options
        )
        if guidance_rescale and self.text_encoder is None:
            raise UserError("guidance_rescale: this model is unconditional, there is no guidance")
        guidance = {"guidance_scale": guidance_scale, "guidance_rescale": guidance_rescale}
        for name, value in guidance.items():
            guidance[name] = self.defaults.get(name, 0.0) if value is None else value

        # === Where it starts ===
        factor = self.autoencoder.downsample_factor
        shape = (size[0] // factor, size[1] // factor, self.autoencoder.latent_channels)
        starts = starting_noise(seeds, shape) if latents is None else _given(latents, seeds, shape)
        start = read_init_image(init_image, mask, strength, size)
        first_step = 0
        if start is not None:
            first_step = start.first_step(sampler.num_steps)
            with timed("encoder"):
                known = self._encode(start.init_image, tile)
            starts = sampler.add_noise(known, starts, first_step)
            if start.mask is not None:
                sampler = Inpainting(sampler, known, repaint_weights(start.repaint, factor))
        with timed("text encoder"):
            contexts = self._contexts(prompts, negative_prompt)

        # === From there to images ===
        batches = range(0, len(prompts), batch_size)
        results = []
        with tqdm(
            total=len(batches) * (sampler.num_steps - first_step),
            unit="step",
            disable=not progress,
        ) as bar:

            def after_step(*_: Any) -> None:
                signals.check()
                bar.update()

            for begin in batches:
                part = slice(begin, begin + batch_size)
                denoiser = self._denoiser(contexts and [rows[part] for rows in contexts], guidance)
                with timed("sampler"):
                    denoised = sampler.sample(
                        denoiser,
                        starts[part],
                        noise=partial(step_noise, seeds[part], shape),
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

    def _denoiser(
        self, contexts: Sequence[np.ndarray] | None, guidance: Mapping[str, float]
    ) -> samplers.Denoiser:
        """The UNet as samplers call it, guided by `contexts` where there are any."""
        predict = compiled(self.unet)

        def denoise(noisy_latents: Any, timesteps: Any, context: Any = None) -> Any:
            inputs = {"noisy_latents": noisy_latents, "timesteps": timesteps}
            if context is not None:
                inputs["context"] = context
            return predict(inputs)

        if contexts is None:
            return denoise
        return ClassifierFreeGuidance(denoise, *contexts, **guidance)

    def _encode(self, pixels: np.ndarray, tile: str | int) -> np.ndarray:
        """uint8 (H, W, 3) → the mode of its scaled latents, (1, h, w, c)."""
        mean, _ = encode(self.autoencoder, from_pixels(pixels)[None], tile)
        return np.asarray(self.autoencoder.to_latents(mean))

    def _contexts(
        self, prompts: Sequence[str], negative_prompt: str
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """Text states of the prompts and of what guidance leads away from, (N, L, d) each."""
        if self.text_encoder is None:
            if any(prompts) or negative_prompt:
                raise UserError("this model is unconditional: it takes no prompt")
            return None
        distinct = list(dict.fromkeys([negative_prompt, *prompts]))
        token_ids = self.tokenizer(distinct)
        states = np.asarray(compiled(self.text_encoder)({"token_ids": token_ids}))
        rows = [distinct.index(text) for text in prompts]
        return states[rows], states[[distinct.index(negative_prompt)] * len(prompts)]

    def _size(self, height: int | None, width: int | None) -> tuple[int, int]:
        default = self.image_size or (None, None)
        height = default[0] if height is None else height
        width = default[1] if width is None else width
        if height is None or width is None:
            raise UserError("height and width: this model names no size of its own; give both")
        self.check_size(height, width)
        return height, width

    def check_size(self, height: int, width: int) -> None:
        """Refuse pixels that the autoencoder or the UNet cannot divide.

        Raises:
            UserError: naming the nearest valid sizes.
        """
        self.autoencoder.check_size(height, width)
        coarsest = self.autoencoder.downsample_factor * self.unet.downsample_factor
        for name, pixels in (("height", height), ("width", width)):
            if pixels % coarsest:
                low = max(pixels // coarsest, 1) * coarsest
                raise UserError(
                    f"{name} {pixels} is not a multiple of {coarsest}, the autoencoder's times "
                    f"the UNet's downsample factor; nearest valid: {low} or {low + coarsest}"
                )


def _given(latents: np.ndarray, seeds: Sequence[int], shape: tuple[int, ...]) -> np.ndarray:
    """Starting noise from outside, once it has the shape (N, *shape)."""
    latents = np.asarray(latents, np.float32)
    if latents.shape != (len(seeds), *shape):
        raise UserError(f"latents: expected {(len(seeds), *shape)}, got {latents.shape}")
    return latents
