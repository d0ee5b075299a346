"""Where all parts meet: prompt → context → sampler over the UNet → decoder → images.

    model = LatentDiffusion.load("weights/emoji-64")
    images = model.generate("red apple", num_images=4, seed=0)      # uint8 (4, 64, 64, 3)

Image k of seed s is the image of seed s + k: every image draws its own noise from its own
seed, one stream a step, whatever else is in its batch.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import latentddpm
from latentddpm.diffusion import samplers
from latentddpm.diffusion.guidance import ClassifierFreeGuidance
from latentddpm.diffusion.schedule import NoiseSchedule
from latentddpm.errors import UserError
from latentddpm.files import atomic_folder
from latentddpm.modelfolder import (
    FILES,
    MANIFEST,
    TOKENIZER,
    ModelFolder,
    describe_part,
    read_model_folder,
    write_manifest,
)
from latentddpm.models.archive import load_archive, save_archive
from latentddpm.models.autoencoder import Autoencoder
from latentddpm.models.digest import weights_digest
from latentddpm.models.text import TextEncoder
from latentddpm.models.tokenizer import ClipTokenizer
from latentddpm.models.unet import UNet
from latentddpm.pictures import to_pixels
from latentddpm.timing import timed

DEFAULTS = {
    "num_steps": 30,
    "sampler": "ddim",
    "timestep_spacing": "trailing",
    "guidance_scale": 4.0,
}
MAX_SEED = 2**63 - 1


class LatentDiffusion:
    """An autoencoder, a UNet and, for text, an encoder with its tokenizer.

    Args:
        autoencoder, unet, schedule: the parts.
        text_encoder, tokenizer: both or neither; None for an unconditional model.
        image_size: (height, width) drawn by default, the size it was trained at.
        defaults: of `generate`, as in `DEFAULTS`.
    """

    def __init__(
        self,
        autoencoder: Autoencoder,
        unet: UNet | None,
        schedule: NoiseSchedule | None,
        text_encoder: TextEncoder | None = None,
        tokenizer: ClipTokenizer | None = None,
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
            tokenizer = ClipTokenizer.load(found.path / TOKENIZER)
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
        guidance_scale: float | None = None,
        height: int | None = None,
        width: int | None = None,
        batch_size: int = 16,
        progress: bool = False,
    ) -> np.ndarray:
        """Make images.

        Args:
            prompt: what to show, or a list; each prompt gives `num_images` images, in order.
            negative_prompt: what guidance leads away from.
            seed: of the first image; image k has seed + k. A list names the seed of each
                image; None draws one.
            num_steps, sampler, timestep_spacing, guidance_scale: None for the model's own
                defaults; a `Sampler` made elsewhere brings its steps and spacing along.
            height, width: pixels; None for the size the model was trained at.
            batch_size: images denoised at a time; changes nothing but memory.
            progress: show a bar on stderr.

        Returns:
            uint8 (N, height, width, 3).

        Raises:
            UserError: a value out of range, an unknown sampler, a size the autoencoder does
                not divide, a prompt for an unconditional model.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        if num_images < 1 or not prompts:
            raise UserError(f"num_images: {num_images}, expected at least 1 image and 1 prompt")
        if batch_size < 1:
            raise UserError(f"batch_size: {batch_size}, expected at least 1")
        prompts = [text for text in prompts for _ in range(num_images)]
        seeds = image_seeds(seed, len(prompts))
        height, width = self._size(height, width)
        sampler = self._sampler(sampler, num_steps, timestep_spacing)
        scale = self.defaults["guidance_scale"] if guidance_scale is None else guidance_scale
        with timed("text encoder"):
            contexts = self._contexts(prompts, negative_prompt)
        batches = range(0, len(prompts), batch_size)
        images = []
        with tqdm(
            total=len(batches) * sampler.num_steps, unit="step", disable=not progress
        ) as bar:
            for start in batches:
                part = slice(start, start + batch_size)
                with timed("sampler"):
                    latents = self._sample(
                        sampler,
                        seeds[part],
                        (height, width),
                        None if contexts is None else [array[part] for array in contexts],
                        scale,
                        lambda *_: bar.update(),
                    )
                with timed("decoder"):
                    images.append(to_pixels(self.autoencoder.decode(latents)))
        return np.concatenate(images)

    def _sample(
        self,
        sampler: samplers.Sampler,
        seeds: Sequence[int],
        size: tuple[int, int],
        contexts: Sequence[np.ndarray] | None,
        guidance_scale: float,
        callback: Callable[..., None],
    ) -> Any:
        factor = self.autoencoder.downsample_factor
        shape = (size[0] // factor, size[1] // factor, self.autoencoder.latent_channels)

        def denoise(noisy_latents: Any, timesteps: Any, context: Any = None) -> Any:
            inputs = {"noisy_latents": noisy_latents, "timesteps": timesteps}
            if context is not None:
                inputs["context"] = context
            return self.unet.predict_on_batch(inputs)

        denoiser = denoise
        if contexts is not None:
            denoiser = ClassifierFreeGuidance(denoise, *contexts, guidance_scale)
        return sampler.sample(
            denoiser,
            starting_noise(seeds, shape),
            noise=lambda step: step_noise(seeds, shape, step),
            callback=callback,
        )

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
        states = np.asarray(self.text_encoder.predict_on_batch({"token_ids": token_ids}))
        rows = [distinct.index(text) for text in prompts]
        return states[rows], states[[distinct.index(negative_prompt)] * len(prompts)]

    def _size(self, height: int | None, width: int | None) -> tuple[int, int]:
        default = self.image_size or (None, None)
        height = default[0] if height is None else height
        width = default[1] if width is None else width
        if height is None or width is None:
            raise UserError("height and width: this model names no size of its own; give both")
        self.autoencoder.check_size(height, width)
        coarsest = self.autoencoder.downsample_factor * self.unet.downsample_factor
        for name, pixels in (("height", height), ("width", width)):
            if pixels % coarsest:
                low = max(pixels // coarsest, 1) * coarsest
                raise UserError(
                    f"{name} {pixels} is not a multiple of {coarsest}, the autoencoder's times "
                    f"the UNet's downsample factor; nearest valid: {low} or {low + coarsest}"
                )
        return height, width

    def _sampler(
        self,
        sampler: str | samplers.Sampler | None,
        num_steps: int | None,
        timestep_spacing: str | None,
    ) -> samplers.Sampler:
        if isinstance(sampler, samplers.Sampler):
            return sampler
        return samplers.get(sampler or self.defaults["sampler"])(
            self.schedule,
            self.defaults["num_steps"] if num_steps is None else num_steps,
            timestep_spacing or self.defaults["timestep_spacing"],
        )


def image_seeds(seed: int | Sequence[int] | None, count: int) -> list[int]:
    """The seeds seed, seed + 1, … of `count` images; None draws the first.

    Raises:
        UserError: a negative or too large seed, or a list of another length.
    """
    if isinstance(seed, Sequence):
        if len(seed) != count:
            raise UserError(f"seed: {len(seed)} seeds for {count} images")
        return [one for given in seed for one in image_seeds(given, 1)]
    if seed is None:
        seed = secrets.randbelow(2**32)
    if not 0 <= seed <= MAX_SEED - count:
        raise UserError(f"seed: {seed} is outside 0 … {MAX_SEED - count}")
    return [seed + k for k in range(count)]


def starting_noise(seeds: Sequence[int], shape: tuple[int, ...]) -> np.ndarray:
    """Pure noise of each image, float32 (N, *shape), from its seed alone."""
    return step_noise(seeds, shape, -1)


def step_noise(seeds: Sequence[int], shape: tuple[int, ...], step: int) -> np.ndarray:
    """The noise a stochastic sampler adds in `step`, float32 (N, *shape).

    A counter-based generator keyed by (seed, step): the same on every backend and machine.
    """
    return np.stack(
        [
            np.random.Generator(np.random.Philox(key=[seed, step + 1])).standard_normal(
                shape, np.float32
            )
            for seed in seeds
        ]
    )
