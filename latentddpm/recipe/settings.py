"""Settings of both trainings that a recipe stands for, as dictionaries of a YAML file.

Only what differs from the defaults is in them, so the files stay readable.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from latentddpm.config import AutoencoderRun, DiffusionRun
from latentddpm.errors import UserError, nearest
from latentddpm.recipe import rules
from latentddpm.recipe.budget import VALIDATIONS
from latentddpm.recipe.facts import DataFacts, MachineFacts
from latentddpm.recipe.goal import Goal
from latentddpm.recipe.rules import Recipe

PARTS = {"vae": AutoencoderRun, "diffusion": DiffusionRun}
"""Name of a training in `--set` → class of its settings."""
CHECKPOINT_SECONDS = 60.0
"""Time between two checkpoints: at most so much is computed again after a crash."""
CAPTIONS = "auto"
"""Rule for images without a caption."""
LOG_LINES = 100
"""Lines of the log, at least, but for short runs."""


def autoencoder_levels(side: int) -> list[int]:
    """Width multipliers of an autoencoder: latents of 16 positions a side, 32 from 256 pixels on.

    Args:
        side: of the images, in pixels; a multiple of 16.
    """
    if side < 64:
        return [1, 2]
    return [1, 2, 4] if side < 128 else [1, 1, 2, 4]


def autoencoder_settings(
    resolution: int, data: DataFacts, machine: MachineFacts, goal: Goal, steps: int
) -> dict[str, Any]:
    """Settings of `train-vae`.

    Args:
        resolution: of the images, in pixels.
        data: facts of the images.
        machine: facts of the machine.
        goal: what is asked for.
        steps: of the training.
    """
    wide = goal.quality == "best" and machine.accelerator
    settings: dict[str, Any] = {
        "data": {
            "resolution": resolution,
            "validation_fraction": rules.validation_fraction(data),
        },
        "autoencoder": {
            "channels": 64 if wide else 32,
            "channel_multipliers": autoencoder_levels(resolution),
            "num_res_blocks": 2 if wide else 1,
            "norm_groups": 8,
        },
        "training": {
            "batch_size": rules.AUTOENCODER_BATCH,
            "learning_rate": 5e-4 if wide else 1e-3,
            "reconstruction_loss": "l1",
            **lengths(steps),
        },
    }
    if machine.perceptual and goal.quality != "draft" and resolution >= 16:
        settings["perceptual"] = {"source": "hed", "weight": 0.5}
    return settings


def diffusion_settings(recipe: Recipe, side: int, data: DataFacts, steps: int) -> dict[str, Any]:
    """Settings of `train-diffusion`.

    Args:
        recipe: values of the rules.
        side: of what the UNet denoises: latents, or pixels.
        data: facts of the images.
        steps: of the training.
    """
    training = {
        "batch_size": recipe.batch_size,
        "learning_rate": rules.learning_rate(recipe.unet, recipe.start),
        **lengths(steps),
    }
    if recipe.accumulation_steps > 1:
        training["accumulation_steps"] = recipe.accumulation_steps
    settings: dict[str, Any] = {"data": {"resolution": recipe.resolution, **images(data)}}
    if recipe.unet is None:
        settings["init"] = str(recipe.start)
        if recipe.start == rules.READY:
            settings["text"] = {"trainable": True}  # words that it does not know yet
            if rate := rules.dropout(None, data):
                settings["unet"] = {"dropout": rate}
    else:
        huge = recipe.unet == "huge"
        settings |= {
            "schedule": {"beta_schedule": "cosine", "prediction_type": "v_prediction"},
            "unet": rules.unet_settings(recipe.unet, side, data),
            "text": {
                "context_length": rules.context_length(data),
                "hidden_dim": 256 if huge else 128,
                "num_layers": 4 if huge else 2,
                "num_heads": 4,
            },
        }
    return {**settings, "training": training, "samples": {"num_steps": 10}}


def images(data: DataFacts) -> dict[str, Any]:
    """Settings of the images and captions of `train-diffusion`, but for the resolution.

    Args:
        data: facts of the images.
    """
    settings = {"validation_fraction": rules.validation_fraction(data), "captions": CAPTIONS}
    if variants := rules.variants(data):
        settings["augment"] = {"probability": rules.AUGMENTED, "variants": variants}
    return settings


def encoded(data: DataFacts) -> int:
    """Number of images that the first stage encodes: the images, and their changed copies.

    Args:
        data: facts of the images.
    """
    return data.images * (1 + images(data).get("augment", {}).get("variants", 0))


def lengths(
    steps: int, seconds: float | None = None, validations: int = VALIDATIONS
) -> dict[str, Any]:
    """Settings of the section `training:` that follow from its number of steps.

    Args:
        steps: of the training.
        seconds: of a step, which decides how often a checkpoint is written; None where they are
            not known yet.
        validations: how many.
    """
    often = max(steps // 10, 1)
    if seconds is not None:
        often = min(max(round(CHECKPOINT_SECONDS / seconds), 1), often)
    return {
        "num_steps": steps,
        "learning_rate_schedule": "cosine",
        "warmup_steps": rules.warmup_steps(steps),
        "ema_momentum": rules.ema_momentum(steps),
        "log_every": min(max(steps // LOG_LINES, 1), 50),
        "validate_every": max(-(-steps // validations), 1),
        "checkpoint_every": often,
    }


def split_overrides(overrides: Sequence[str]) -> dict[str, list[str]]:
    """Overrides of each training.

    Args:
        overrides: each `vae.section.key=value` or `diffusion.section.key=value`.

    Returns:
        Name of a training → its overrides, without that name.

    Raises:
        UserError: one that begins otherwise.
    """
    found: dict[str, list[str]] = {part: [] for part in PARTS}
    for one in overrides:
        part, dot, rest = one.partition(".")
        if not dot or part not in found:
            raise UserError(
                f"--set {one}: expected vae.section.key=value or diffusion.section.key=value"
                f"{nearest(part, PARTS)}"
            )
        found[part].append(rest)
    return found
