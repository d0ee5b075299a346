"""Drawing of a plan: its models loaded, one call of the model, and files with metadata.

plan ─► load_plan ─► draw ─► PNG files that say how they were made

A command loads and draws once. A server keeps what it has loaded, and draws many plans with it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from latentddpm.generation.controls import add_controls
from latentddpm.generation.frames import Frames, ToWrite, decoded
from latentddpm.generation.loras import load_model
from latentddpm.generation.output import note_of_names, write_picture
from latentddpm.generation.plan import Plan
from latentddpm.generation.provenance import grid_metadata, image_metadata
from latentddpm.pipeline.progress import Callback
from latentddpm.pipeline.start.init_image import first_step
from latentddpm.utils.console import say
from latentddpm.utils.pixels import grid as make_grid
from latentddpm.utils.timing import timed

if TYPE_CHECKING:
    from latentddpm.pipeline.control.control import Control
    from latentddpm.pipeline.latent_diffusion import LatentDiffusion


@dataclass(frozen=True)
class LoadedPlan:
    """Models of a plan in memory.

    Attributes:
        model: with the LoRA files of the plan in its weights.
        weaker: of autoguidance; None without it.
        controls: ControlNets, joined to the UNet of `model`.
    """

    model: LatentDiffusion
    weaker: LatentDiffusion | None
    controls: list[Control]


@dataclass(frozen=True)
class How:
    """Manner of drawing, which the images do not depend on.

    Attributes:
        tile: see `LatentDiffusion.generate`.
        batch_size: images denoised together.
        progress: show a bar.
        quiet: say nothing about files.
        watch: called after each step; see the `callback` of `LatentDiffusion.generate`.
    """

    tile: str = "auto"
    batch_size: int = 16
    progress: bool = False
    quiet: bool = True
    watch: Callback | None = None


def load_plan(plan: Plan, cache: bool = True, jit: bool | None = None) -> LoadedPlan:
    """Load the models of a plan.

    Args:
        plan: which names them.
        cache: see `LatentDiffusion.load`.
        jit: see `devices.jit_of`.

    Raises:
        UserError: see `loras.load_model` and `controls.add_controls`.
    """
    how = {"cache": cache, "jit": jit}
    words = [(one.path, one.word) for one in plan.embeddings]
    model = load_model(
        *(plan.folder.path, plan.loras, plan.engine, plan.precision), **how, embeddings=words
    )
    weaker = None
    if plan.weaker:
        weaker = load_model(plan.weaker.folder.path, [], plan.engine, plan.precision, **how)
    return LoadedPlan(model, weaker, add_controls(model, plan.controls, jit))


def step_count(plan: Plan, loaded: LoadedPlan) -> range:
    """Steps of the sampler that a plan runs.

    Args:
        plan: to draw.
        loaded: its models.

    Raises:
        UserError: none would be left.
    """
    last = loaded.model.make_sampler(plan.settings).num_steps
    return range(first_step(plan.start, last, plan.settings.start_step), last)


def draw(
    plan: Plan, loaded: LoadedPlan, share: slice = slice(None), how: How | None = None
) -> dict[Path, np.ndarray]:
    """Draw the images of a plan, and write them as PNG files with metadata to make them again.

    Args:
        plan: to draw.
        loaded: its models.
        share: of the images, such as those of one of several processes.
        how: manner of drawing; None for the default.

    Returns:
        Pixels of each file that was written, by file; empty for an empty share.

    Raises:
        UserError: see `LatentDiffusion.generate`.
        OSError: a file cannot be written.
    """
    how, model = how or How(), loaded.model
    frames = Frames(plan.frames, plan.animate, step_count(plan, loaded))
    if not plan.prompts[share]:
        return {}
    guided = {}
    if loaded.weaker is not None:
        guided = {"autoguidance": loaded.weaker, "autoguidance_scale": plan.weaker.scale}
    images = model.generate(
        plan.prompts[share],
        negative_prompt=plan.negative_prompts and plan.negative_prompts[share],
        conditions=plan.told[share],
        seed=plan.seeds[share],
        settings=plan.settings,
        regions=plan.regions,
        tile=how.tile,
        batch_size=how.batch_size,
        callback=_both(frames, how.watch),
        progress=how.progress,
        **guided,
        controls=loaded.controls,
        **(vars(plan.start) if plan.start else {}),
    )
    if model.precision != "float32":
        plan.metadata["precision"] = model.precision
    records = _records(plan, share, model.loras, bool(plan.rows))
    with timed("write"):
        files = plan.targets if plan.rows else plan.targets[share]
        pictures = [_grid(plan, images)] if plan.rows else images
        written = _write(plan, zip(files, pictures, records, strict=True), how.quiet)
    if plan.frames or plan.animate:
        together = _records(plan, share, model.loras, len(plan.prompts) > 1)[0]
        with timed("frames"):
            way = frames.pictures(partial(decoded, model, how.tile), how.quiet)
            images = plan.pixels.to_rgb(images)
            shown = frames.shown(way, images, list(written), records, together)
            written |= _write(plan, shown, how.quiet)
    return written


def _both(first: Callback, second: Callback | None) -> Callback:
    """Callback that calls two, one after the other."""
    if second is None:
        return first

    def call(*step: Any) -> None:
        first(*step)
        second(*step)

    return call


def _grid(plan: Plan, images: np.ndarray) -> np.ndarray:
    """Picture of all images, 8-bit RGB."""
    return make_grid(np.split(plan.pixels.to_rgb(images), plan.rows))


def _records(
    plan: Plan, share: slice, loras: list[dict[str, Any]], together: bool
) -> list[dict[str, Any]]:
    """Metadata of each image of a process's share; or one, of all images `together`."""
    common, negatives = plan.metadata, plan.negative_prompts
    labels = plan.labels
    if together:
        first = slice(None, None, common["num_images"])
        rows = plan.prompts[first], negatives and negatives[first]
        return [grid_metadata(common, loras, *rows, plan.seeds[0], labels[first])]
    return [
        image_metadata(common, loras, plan.prompts[k], negatives and negatives[k], seed, labels[k])
        for k, seed in enumerate(plan.seeds)
    ][share]


def _write(plan: Plan, pictures: Iterable[ToWrite], quiet: bool) -> dict[Path, np.ndarray]:
    """Write pictures, and say which of them got another name; return the pixels by file."""
    wanted, written = [], {}
    for file, pixels, metadata in pictures:
        wanted.append(file)
        written[write_picture(file, pixels, metadata, plan.replace, plan.pixels)] = pixels
    if note := note_of_names(wanted, list(written)):
        say(note, quiet)
    return written
