"""First stage of a recipe: chosen by what an autoencoder makes of the user's own images.

emoji-128 ─► PSNR of 32 images ─► `rules.first_stage` ─► Stage: latents' side, time of encoding
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from latentddpm.config import AutoencoderRun, DiffusionData
from latentddpm.config_file import override_settings, parse_config
from latentddpm.data.dataset import Dataset
from latentddpm.evaluation.autoencoder import reconstruct
from latentddpm.evaluation.metrics.similarity import psnr
from latentddpm.pipeline.model_folder import read_model_folder
from latentddpm.recipe import rules
from latentddpm.recipe.budget import Speed
from latentddpm.recipe.facts import DataFacts, MachineFacts
from latentddpm.recipe.goal import Goal
from latentddpm.recipe.rules import NONE, OWN, READY, READY_SIDES, Chosen
from latentddpm.recipe.settings import autoencoder_settings, encoded
from latentddpm.recipe.speed import measure_autoencoder
from latentddpm.training.plan.first_stage import AutoencoderStage, read_first_stage
from latentddpm.training.plan.settle import complete_vae, settle_vae
from latentddpm.training.plan.sources import Sources
from latentddpm.utils.console import activity
from latentddpm.utils.images.pixel_format import RGB

MEASURED = 32
"""Images that are reconstructed, spread evenly over the data."""
AT_A_TIME = 8
OF_UNET = ("unet.", "text.", "schedule.")
NOT_SIZES = ("unet.dropout", "unet.recompute", "text.trainable", "text.dropout", "text.new_token")
"""Beginnings of settings that a finished UNet has of its own, and those that it has not."""
ANY_STEPS = 1000
"""Number of steps in settings that only sizes are taken from."""


@dataclass(frozen=True)
class Task:
    """Task of a planner: all that a plan follows from.

    Attributes:
        dataset: opened.
        facts: of its images.
        machine: to train on.
        goal: what is asked for.
        overrides: name of a training → `section.key=value` for its settings.
        began: start of the run, as of `time.monotonic`.
        quiet: say nothing.
    """

    dataset: Dataset
    facts: DataFacts
    machine: MachineFacts
    goal: Goal
    overrides: Mapping[str, Sequence[str]] = field(default_factory=dict)
    began: float = 0.0
    quiet: bool = False


@dataclass(frozen=True)
class Reconstruction:
    """Reconstruction of some images of a data set by an autoencoder.

    Attributes:
        psnr: mean, in dB.
        images: how many.
        seconds: of an image, there and back.
    """

    psnr: float
    images: int
    seconds: float


@dataclass(frozen=True)
class Stage:
    """First stage of a recipe.

    Attributes:
        name: "none", "own", or a model.
        resolution: of the images, in pixels.
        factor: pixels per position of what the UNet denoises, along a side.
        reasons: for the two above.
        sources: finished models of the UNet's training, where the autoencoder is still to be
            trained: its sizes; else None.
        speed: of the autoencoder's training; None where none is trained.
        encoding: seconds of an image into latents.
        accumulation_steps: parts that a batch of the autoencoder's training is computed in.
        seen: reconstruction by a finished autoencoder; None where it was not measured.
        start: model whose UNet is trained on; None for a new one.
    """

    name: str
    resolution: int
    factor: int = 1
    reasons: Mapping[str, str] = field(default_factory=dict)
    sources: Sources | None = None
    speed: Speed | None = None
    encoding: float = 0.0
    accumulation_steps: int = 1
    seen: Reconstruction | None = None
    start: str | None = None


def choose_stage(task: Task) -> Stage:
    """First stage by the rules, and whether a finished UNet is trained on.

    A finished autoencoder is tried, the speed of one's own measured.

    Args:
        task: to plan.

    Raises:
        UserError: a model that cannot be read, wrong settings.
    """
    stage = _first_stage(task)
    own = task.overrides.get("diffusion", ())
    own_sizes = any(one.startswith(OF_UNET) and not one.startswith(NOT_SIZES) for one in own)
    chosen = rules.start(stage.name, task.facts, task.goal, own_sizes)
    return replace(stage, start=chosen.value, reasons={**stage.reasons, "start": chosen.reason})


def at_side(task: Task, stage: Stage, side: int, reason: str) -> Stage:
    """First stage of a finished model, for images of another side.

    Args:
        task: to plan.
        stage: returned by `choose_stage`.
        side: in pixels.
        reason: for it.
    """
    if side == stage.resolution:
        return stage
    stage = replace(stage, resolution=side, reasons={**stage.reasons, "resolution": reason})
    if stage.seen is None:
        return stage
    seen = _reconstructed(task, stage.name, side)
    return replace(stage, seen=seen, encoding=seen.seconds / 2)


def _first_stage(task: Task) -> Stage:
    """First stage by the rules."""
    facts, seen = task.facts, None
    if rules.may_use_ready(facts, task.goal):
        seen = _reconstructed(task, READY, READY_SIDES[0])
        facts = replace(facts, ready_psnr=seen.psnr)
    chosen = rules.first_stage(facts, task.machine, task.goal)
    name = chosen.value
    side = _resolution(task, name)
    reasons = {"first_stage": chosen.reason, "resolution": side.reason}
    if name == OWN:
        return _own(task, side.value, reasons)
    stage = Stage(name, side.value, reasons=reasons)
    if name == NONE or not isinstance(finished := read_first_stage(name, None), AutoencoderStage):
        return stage
    if name != READY or seen is None:
        seen = _reconstructed(task, name, side.value) if facts.usual else None
    return replace(
        stage,
        factor=finished.downsample_factor,
        encoding=seen.seconds / 2 if seen else 0.0,
        seen=seen,
    )


def own_settings(
    task: Task, resolution: int, steps: int, accumulation_steps: int = 1
) -> dict[str, Any]:
    """Settings of the training of an autoencoder of one's own.

    Args:
        task: to plan.
        resolution: of the images, in pixels.
        steps: of the training.
        accumulation_steps: parts that a batch is computed in.
    """
    settings = autoencoder_settings(resolution, task.facts, task.machine, task.goal, steps)
    if accumulation_steps > 1:
        settings["training"]["accumulation_steps"] = accumulation_steps
    return override_settings(settings, task.overrides.get("vae", ()))


def _own(task: Task, resolution: int, reasons: Mapping[str, str]) -> Stage:
    """First stage that is still to be trained; an image is encoded in a sixth of its step."""
    config = _complete(task, own_settings(task, resolution, ANY_STEPS))
    size = config.training.batch_size
    parts = rules.parts_of_batch(config, 1, size, task.machine)
    if parts is None:
        needed = rules.memory_of(config, 1, rules.LEAST_AT_A_TIME) / rules.MEMORY_SHARE
        raise rules.no_memory(needed, task.machine)
    if parts > 1:
        config = _complete(task, own_settings(task, resolution, ANY_STEPS, parts))
    with activity("measuring steps of the autoencoder", task.quiet):
        speed = measure_autoencoder(config)
    stage = AutoencoderStage(None, config.autoencoder.model_dump())
    return Stage(
        OWN,
        config.data.resolution,
        stage.downsample_factor,
        reasons,
        Sources(stage),
        speed,
        speed.of_batch(size) / 6,
        accumulation_steps=parts,
    )


def _complete(task: Task, settings: dict[str, Any]) -> AutoencoderRun:
    config, _ = settle_vae(parse_config(AutoencoderRun, settings, "vae."))
    return complete_vae(config, task.dataset)


def _resolution(task: Task, name: str) -> Chosen:
    if name not in (NONE, OWN, READY):
        size = read_model_folder(name).image_size
        if size is not None:
            return Chosen(min(size), f"that of {name}")
        name = OWN
    return rules.resolution(name, task.facts, task.machine, task.goal)


def _reconstructed(task: Task, model: str, resolution: int) -> Reconstruction:
    with activity(f"measuring the autoencoder of {model} on these images", task.quiet):
        return measure_reconstruction(task.dataset, model, resolution)


def measure_reconstruction(dataset: Dataset, model: str | Path, resolution: int) -> Reconstruction:
    """Reconstruct some images and compare them with the originals.

    Args:
        dataset: opened; its images are read as 8-bit RGB, as the autoencoder takes them.
        model: folder or name of a model with the autoencoder.
        resolution: side that the images are scaled to, in pixels.

    Raises:
        UserError: the autoencoder cannot be read, or does not take the resolution.
    """
    autoencoder = read_first_stage(model, None).load(DiffusionData())
    autoencoder.check_size(resolution, resolution)
    count = min(len(dataset), MEASURED)
    rows = np.linspace(0, len(dataset) - 1, count).astype(int)
    images = np.stack([dataset.catalog.image(int(row), resolution, RGB) for row in rows])
    values, seconds = [], []
    for first in range(0, count, AT_A_TIME):
        part = images[first : first + AT_A_TIME]
        began = time.perf_counter()
        _, rebuilt = reconstruct(autoencoder, part)
        seconds.append((time.perf_counter() - began) / len(part))
        values.append(psnr(rebuilt, part))
    mean = float(np.mean(np.concatenate(values)))
    return Reconstruction(mean, count, min(seconds))  # the first batch compiles


def seconds_to_encode(task: Task, stage: Stage) -> float:
    """Seconds until all images, and their changed copies, are latents.

    Args:
        task: to plan.
        stage: chosen.
    """
    return encoded(task.facts) * stage.encoding
