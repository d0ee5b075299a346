"""Frames of a generation: noisy x_t and the estimates x̂0 made of them, at steps on the way.

    --frames N       N steps, spread evenly: a strip for each picture, x_t above x̂0
    --animate FILE   the whole way of all images: a row for each, x_t beside x̂0

`Frames` is a callback of `LatentDiffusion.generate`. It keeps latents, which are decoded at the
end; the images are the same with it and without. The last step ends at x̂0: that is the image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from latentddpm.errors import UserError, nearest
from latentddpm.generation.output import strip_file
from latentddpm.utils.images.animation import MOST, SUFFIXES
from latentddpm.utils.pixels import grid

if TYPE_CHECKING:
    from latentddpm.pipeline.latent_diffusion import LatentDiffusion

Pair = tuple[np.ndarray, np.ndarray]
"""x_t and x̂0 of N images: latents (N, h, w, c), or pictures, uint8 (N, H, W, 3), each."""

ToWrite = tuple[Path, np.ndarray, dict[str, Any]]
"""File, pixels and metadata of a picture."""


def check_frames(count: int | None, animate: Path | None, num_steps: int) -> None:
    """Refuse a number of frames that a generation does not have, and other kinds of files.

    Args:
        count: of a strip; None for no strip.
        animate: file of the animation; None for none.
        num_steps: steps that are run.

    Raises:
        UserError: naming the option, and what it can be.
    """
    if count is not None and not 2 <= count <= num_steps:
        most = f"2 to {num_steps}" if num_steps > 1 else "2 or more, and as many --steps"
        steps = f"{num_steps} step{'s' * (num_steps != 1)}"
        raise UserError(f"--frames {count}: of {steps} that are run, expected {most}")
    if animate is not None and animate.suffix.lower() not in SUFFIXES:
        raise UserError(
            f"--animate {animate}: expected a file that ends in {' or '.join(SUFFIXES)}"
            f"{nearest(animate.suffix.lower(), SUFFIXES)}"
        )


class Frames:
    """Frames of a generation: x_t and x̂0 at some of its steps.

    Args:
        count: of a strip; None for no strip.
        animate: file of the animation; None for none.
        steps: of the sampler that are run.

    Attributes:
        strip: steps that a strip shows.
        way: steps that the animation shows.
        timesteps: by step, of those seen so far.

    Raises:
        UserError: see `check_frames`.

    Example:
        >>> frames = Frames(count=2, animate=None, steps=range(4))
        >>> for step, timestep in enumerate([999, 749, 499, 249]):
        ...     frames(step, timestep, np.zeros((1, 8, 8, 4)), np.ones((1, 8, 8, 4)))
        >>> frames.timesteps
        {0: 999, 3: 249}
    """

    def __init__(self, count: int | None, animate: Path | None, steps: range) -> None:
        check_frames(count, animate, len(steps))
        self.animate = animate
        self.strip = spread(steps, count or 0)
        self.way = spread(steps, MOST - 1 if animate else 0)
        self.timesteps: dict[int, float] = {}
        self._batches: dict[int, list[Pair]] = {step: [] for step in (*self.strip, *self.way)}

    def __call__(self, step_index: int, timestep: float, latents: Any, x0: Any) -> None:
        if step_index in self._batches:
            self._batches[step_index].append((np.asarray(latents), np.asarray(x0)))
            self.timesteps[step_index] = timestep

    def pictures(
        self, decode: Callable[[np.ndarray], np.ndarray], quiet: bool = True
    ) -> dict[int, Pair]:
        """Pictures of all images, by step.

        Args:
            decode: latents (B, h, w, c) → pictures, uint8 (B, H, W, 3).
            quiet: show no progress bar.
        """
        steps = tqdm(self._batches.items(), "decoding the frames", unit="step", disable=quiet)
        return {
            step: tuple(np.concatenate([*map(decode, part)]) for part in zip(*pairs, strict=True))
            for step, pairs in steps
        }

    def shown(
        self,
        way: dict[int, Pair],
        images: np.ndarray,
        files: Sequence[Path],
        records: Sequence[dict[str, Any]],
        together: dict[str, Any],
    ) -> Iterator[ToWrite]:
        """Strip beside each file, and the animation: what is asked for.

        Args:
            way: returned by `pictures`.
            images: finished ones, uint8 (N, H, W, 3).
            files: of the images, or the one of a grid.
            records: metadata of the files.
            together: metadata of all images.
        """
        if self.strip:
            own = {"frames": len(self.strip)}
            own["frame_timesteps"] = [self.timesteps[step] for step in self.strip]
            pairs = [way[step] for step in self.strip]
            groups = np.split(np.arange(len(images)), len(files))
            for file, group, record in zip(files, groups, records, strict=True):
                yield strip_file(file), strip_of(pairs, group), {**record, **own}
        if self.animate:
            yield self.animate, animation_of([way[step] for step in self.way], images), together


def spread(steps: range, count: int) -> list[int]:
    """Steps spread evenly from the first to the last one; all of them where `count` is larger.

    Args:
        steps: to choose from.
        count: how many.

    Example:
        >>> spread(range(30), 4)
        [0, 10, 19, 29]
    """
    places = np.linspace(0, len(steps) - 1, min(count, len(steps))).round()
    return [steps[int(place)] for place in places]


def strip_of(pairs: Sequence[Pair], images: np.ndarray) -> np.ndarray:
    """Strip of some images: for each a row of x_t above a row of x̂0, uint8 (H', W', 3).

    Args:
        pairs: pictures of x_t and x̂0 at each step.
        images: which of the N, (n,).
    """
    noisy, x0 = (np.stack(pictures, axis=1)[images] for pictures in zip(*pairs, strict=True))
    return grid([row for both in zip(noisy, x0, strict=True) for row in both])


def animation_of(pairs: Sequence[Pair], images: np.ndarray) -> np.ndarray:
    """Animation of all images: a row for each, x_t beside x̂0; uint8 (F + 1, H', W', 3).

    Args:
        pairs: pictures of x_t and x̂0 at each of F steps.
        images: the finished ones, which end it, uint8 (N, H, W, 3).
    """
    return np.stack([grid(np.stack(pair, axis=1)) for pair in (*pairs, (images, images))])


def decoded(model: LatentDiffusion, tile: str | int, latents: np.ndarray) -> np.ndarray:
    """Pictures of latents, uint8 (B, H, W, 3).

    Args:
        model: with the decoder.
        tile: see `models.autoencoder.tiling.decode`.
        latents: scaled, (B, h, w, c).
    """
    from latentddpm.models.autoencoder.tiling import decode

    images = decode(model.autoencoder, latents, tile)
    return model.pixels.to_rgb(model.pixels.from_images(images))
