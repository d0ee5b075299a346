"""Generated images of an evaluation, kept on disk and drawn only once.

    model, settings    sampler, steps, spacing, guidance, size …    one folder for each choice
    image k            prompt k, seed + k                           one PNG, named by both

An image is a function of model, LoRA files merged into it, settings, prompt and seed (see
`pipeline.seeds`). All are in its metadata, so an existing file is used only if it is exactly the
image that is needed. An interrupted call goes on where it stopped, and a larger number of images
uses those that exist. `latentddpm generate --from` makes any of them again.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import latentddpm
from latentddpm.conditions.conditions import Values
from latentddpm.data.captions import Captions
from latentddpm.data.catalog.split import Selection
from latentddpm.data.images import read_image
from latentddpm.errors import UserError
from latentddpm.pipeline.latent_diffusion import LatentDiffusion
from latentddpm.pipeline.seeds import image_seeds
from latentddpm.pipeline.settings import GenerationSettings
from latentddpm.utils import signals
from latentddpm.utils.console import say
from latentddpm.utils.files import file_digest, write_json
from latentddpm.utils.pixels import read_metadata, save_png
from latentddpm.utils.timing import duration

SETTING = "setting.json"
GOLDEN = (5**0.5 - 1) / 2


class GeneratedImages:
    """Images of a model with one choice of settings; image k has prompt k and seed `seed` + k.

    Args:
        root: parent of the folders of all settings.
        model: to draw with.
        settings: made by `model.settings`.
        prompts: one for each image.
        seed: of image 0.
        told: values of the model's conditions for each image; None for none.

    Attributes:
        folder: of these images.
        size: (height, width) in pixels.
    """

    def __init__(
        self,
        root: Path,
        model: LatentDiffusion,
        settings: GenerationSettings,
        prompts: Sequence[str],
        seed: int = 0,
        told: Sequence[Values] | None = None,
    ) -> None:
        self.model, self.settings, self.size = model, settings, settings.size
        self.prompts, self.seeds = prompts, image_seeds(seed, len(prompts))
        self.told = [{}] * len(prompts) if told is None else told
        self.labels = [model.conditions.texts(values) for values in self.told]
        values = settings.to_json()
        for later in ("negative_prompt", "start_step"):  # earlier versions did not write them
            if not values[later]:
                del values[later]
        self.making = {
            "latentddpm": latentddpm.__version__,
            "model_digest": model.digest,
            **values,
            **({"loras": model.loras} if model.loras else {}),
            **({"engine": model.engine} if model.engine != "keras" else {}),
            **({"precision": model.precision} if model.precision != "float32" else {}),
        }
        digest = hashlib.sha256(json.dumps(self.making, sort_keys=True).encode()).hexdigest()
        name = f"{settings.sampler}-{settings.num_steps}-{settings.guidance_scale:g}"
        self.folder = root / f"{name}-{digest[:8]}"

    def __len__(self) -> int:
        return len(self.prompts)

    def path(self, k: int) -> Path:
        """File of image k."""
        told = self.prompts[k] + (json.dumps(self.labels[k]) if self.labels[k] else "")
        digest = hashlib.sha256(told.encode()).hexdigest()
        return self.folder / f"{self.seeds[k]:06d}-{digest[:8]}.png"

    def metadata(self, k: int) -> dict[str, Any]:
        """Metadata in the file of image k."""
        labels = {"labels": self.labels[k]} if self.labels[k] else {}
        own = {"prompts": [self.prompts[k]], "seed": self.seeds[k], "num_images": 1}
        return {**self.making, **labels, **own}

    def read(self, numbers: Sequence[int] | np.ndarray) -> np.ndarray:
        """Read some of the images, which have to be drawn.

        Args:
            numbers: of the images, (n,).

        Returns:
            uint8 (n, H, W, 3).
        """
        return np.stack([read_image(self.path(k), self.size) for k in numbers])

    def contents(self, numbers: Sequence[int] | np.ndarray) -> list[str]:
        """SHA-256 digests of the files of some images, in hexadecimal.

        Args:
            numbers: of the images.
        """
        return [file_digest(self.path(k)) for k in numbers]

    def draw(
        self,
        batch_size: int = 16,
        quiet: bool = False,
        label: str | None = None,
        times: float | None = 1.0,
    ) -> None:
        """Draw the images that do not exist yet.

        After the first batches a line says how long all of it takes.

        Args:
            batch_size: images denoised together.
            quiet: show no progress.
            label: in front of the progress bar; None for the settings.
            times: duration of what is to be drawn in all, in units of these images, for that
                line; None for no line.

        Raises:
            signals.Stopped: a signal came; the finished batches are kept.
        """
        missing = [k for k in range(len(self)) if not self._is_drawn(k)]
        if not missing:
            return
        write_json(self.folder / SETTING, self.making)
        say(f"drawing {len(missing)} images; the first batch compiles", quiet or times is None)
        kept = len(self) - len(missing)
        bar = tqdm(
            desc=label or str(self.settings),
            total=len(self),
            initial=kept,
            unit="image",
            disable=quiet,
        )
        with signals.deferred(), bar:
            for start in range(0, len(missing), batch_size):
                began = time.perf_counter()
                batch = missing[start : start + batch_size]
                try:
                    images = self.model.generate(
                        [self.prompts[k] for k in batch],
                        conditions=[self.told[k] for k in batch],
                        seed=[self.seeds[k] for k in batch],
                        batch_size=batch_size,
                        settings=self.settings,
                    )
                except signals.Stopped as signal:
                    raise signals.Stopped(
                        signal.number,
                        f"stopped by a signal with {kept} of {len(self)} images drawn; the same "
                        f"command goes on from there ({self.folder})",
                    ) from None
                for k, pixels in zip(batch, images, strict=True):
                    save_png(self.path(k), self.model.pixels.to_rgb(pixels), self.metadata(k))
                kept += len(batch)
                bar.update(len(batch))
                if start == batch_size and times is not None:
                    seconds = (time.perf_counter() - began) / len(batch)
                    left = seconds * (len(missing) - start - len(batch))
                    left += seconds * len(self) * (times - 1)
                    say(f"{seconds:.2g} s for each image: {duration(left)} to go", quiet)

    def _is_drawn(self, k: int) -> bool:
        """True where the file of image k exists and has exactly its metadata."""
        try:
            return read_metadata(self.path(k)) == self.metadata(k)
        except UserError:
            return False


def spread_rows(images: Selection, count: int) -> np.ndarray:
    """Rows of images that are spread evenly over a selection, int64 (count,).

    Number k is image ⌊n · frac(k · (√5 − 1) / 2)⌋ of n. Each beginning of this sequence is spread
    evenly, so a larger count keeps the images of a smaller one.

    Args:
        images: rows of a catalog.
        count: number of images.
    """
    return images.rows((len(images) * (np.arange(count) * GOLDEN % 1)).astype(np.int64))


def prompts_of(captions: Captions, rows: np.ndarray) -> list[str]:
    """Prompts: captions of images.

    Prompt k is caption k mod c of an image with c captions, and "" for an image without, as in
    training.

    Args:
        captions: of the data set.
        rows: of its catalog, int64 (N,).
    """
    prompts = []
    for k, row in enumerate(rows):
        alternatives = captions[int(row)] or ("",)
        prompts.append(alternatives[k % len(alternatives)])
    return prompts
