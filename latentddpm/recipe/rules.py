"""Rules of a recipe: facts of data and machine, and the wish → the values of its settings.

Every rule is a function of facts, without Keras; `table.RULES` lists them with their reasons for
the documentation. The numbers stand in the tables of this module, once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from latentddpm.choices import QUALITIES
from latentddpm.config import AutoencoderRun, DiffusionRun
from latentddpm.errors import UserError
from latentddpm.recipe.facts import DataFacts, MachineFacts
from latentddpm.recipe.goal import NONE, Goal
from latentddpm.training.plan.cost import cost_of
from latentddpm.utils.timing import clock

OWN = "own"
"""First stage that the recipe trains itself."""
READY, READY_SIDES, READY_LEAST, READY_TOKENS = "emoji-128", (128, 64), 19.0, 16
"""Model that ships, whose autoencoder and UNet may serve; the sides of images that it is used for,
its own one first; the reconstruction in dB that the others need; the tokens that it reads."""
PIXELS_SIDE = 32
"""Side of images, at most, that a recipe diffuses as pixels."""
SHORT_SECONDS = 1200.0
"""Time below which no autoencoder is trained on a processor."""
SMALL_SET = 500
"""Number of images, at most, that makes a set a small one."""
AUGMENTED = 0.5
"""Share of the examples of a small set that see a changed image."""
VARIANTS, MOST_VARIANTS = 1000, (2, 16)
"""Changed copies of a small set, about, in all; and those of an image, at least and at most."""
CAPTIONED = 0.5
"""Share of images with a caption from which on a model of prompts is trained on."""
QUICKEST = QUALITIES[0]
"""Quality that is no more than it has to be."""
SMALL_SET_DROPOUT, DROPOUT = 0.1, {"large": 0.05, "huge": 0.05}
"""Dropout in the UNet of a small set, and otherwise by its size."""
FEW_VALIDATION = 200
"""Number of images below which a tenth of them validates, instead of a twentieth."""


UNETS: dict[str, dict[str, Any]] = {
    "tiny": {"channels": 32, "num_res_blocks": 1, "attends": 8},
    "small": {"channels": 64, "num_res_blocks": 1, "attends": 8},
    "medium": {"channels": 96, "num_res_blocks": 1, "attends": 16},
    "large": {"channels": 96, "num_res_blocks": 2, "attends": 16},
    "huge": {"channels": 128, "num_res_blocks": 2, "attends": 32},
}
"""Name → sizes of a UNet, from the smallest; `attends` is the largest side of a level with
attention."""
AUTOENCODER_BATCH = 32
"""Images of a step of an autoencoder's training."""
BATCHES = {"draft": (32, 128), "good": (64, 128), "best": (64, 128)}
"""Quality → examples of a step: on a processor, on an accelerator."""
LEAST_AT_A_TIME = 4
"""Examples that are computed at a time, at least."""
MEMORY_SHARE, MEMORY_BASE, MEMORY_MAPS = 0.8, 1.5e9, 4
"""Share of the free memory that a run may take; bytes that it needs whatever it trains, and its
memory in that of the feature maps: small at 128 pixels, in batches of 32, took 2.1 GB."""


@dataclass(frozen=True)
class Chosen:
    """Value of a rule, and the reason for it.

    Attributes:
        value: chosen.
        reason: a few words.
    """

    value: Any
    reason: str


@dataclass(frozen=True)
class Recipe:
    """Recipe: values of all that the rules decide, but for the number of steps.

    Attributes:
        first_stage: "none", "own", or a model whose autoencoder serves.
        resolution: of the images, in pixels.
        unet: name of its size; None for that of the model it starts from.
        start: model whose UNet is trained on; None for a new one.
        batch_size: examples of a step.
        accumulation_steps: parts that a batch is computed in.
        reasons: name of a value → why it is so.
    """

    first_stage: str
    resolution: int
    unet: str | None
    batch_size: int
    accumulation_steps: int = 1
    start: str | None = None
    reasons: Mapping[str, str] = field(default_factory=dict)


# --- The first stage and the resolution ----------------------------------------------------


def may_use_ready(data: DataFacts, goal: Goal) -> bool:
    """True where the autoencoder that ships is worth measuring on the images.

    Args:
        data: facts of the images.
        goal: what is asked for.
    """
    asked = goal.vae is None and goal.named_init is None
    return asked and goal.of_quality.psnr is not None and data.usual and data.side > PIXELS_SIDE


def first_stage(data: DataFacts, machine: MachineFacts, goal: Goal) -> Chosen:
    """First stage: pixels, the autoencoder that ships, or one of its own.

    Args:
        data: facts of the images, with `ready_psnr` where `may_use_ready`.
        machine: facts of the machine.
        goal: what is asked for.
    """
    if goal.vae is not None:
        return Chosen(goal.vae, "as asked")
    if goal.named_init is not None:
        return Chosen(goal.named_init, "that of the model it starts from")
    if data.side <= PIXELS_SIDE:
        return Chosen(NONE, f"images of {data.side} pixels need no autoencoder")
    needed, reached = goal.of_quality.psnr, data.ready_psnr
    if needed is not None and reached is not None and reached >= needed:
        return Chosen(READY, f"it reaches {reached:.1f} dB on these images, {needed:g} are enough")
    short = goal.seconds is not None and goal.seconds < SHORT_SECONDS
    if short and not machine.accelerator:
        return Chosen(NONE, f"an autoencoder takes more than {clock(SHORT_SECONDS)} here")
    if needed is None:
        return Chosen(OWN, f"quality {goal.quality} trains its own")
    if reached is not None:
        return Chosen(OWN, f"{READY} reaches {reached:.1f} dB on these images, not {needed:g}")
    return Chosen(OWN, f"{READY} takes RGB of 8 bits, not {data.channels} × {data.bits} bits")


def resolution(stage: str, data: DataFacts, machine: MachineFacts, goal: Goal) -> Chosen:
    """Resolution of a recipe that trains its first stage, or has none.

    Args:
        stage: value of `first_stage`.
        data: facts of the images.
        machine: facts of the machine.
        goal: what is asked for.
    """
    if stage == READY:
        return Chosen(READY_SIDES[0], f"that of {READY}")
    if stage == NONE:
        side = max(min(data.side, PIXELS_SIDE) // 8 * 8, 8)
        return Chosen(side, f"pixels are diffused up to {PIXELS_SIDE}")
    most = goal.of_quality.side[machine.accelerator]
    side = max(min(data.side, most) // 16 * 16, 16)
    return Chosen(side, f"quality {goal.quality}" if side == most else "the images are no larger")


# --- The UNet ------------------------------------------------------------------------------


def start(stage: str, data: DataFacts, goal: Goal, own_sizes: bool = False) -> Chosen:
    """Model whose UNet is trained on; None for a new one.

    Args:
        stage: value of `first_stage`.
        data: facts of the images.
        goal: what is asked for.
        own_sizes: the settings name sizes of a UNet, or its text or schedule.
    """
    if goal.init is not None:
        return Chosen(goal.named_init, "as asked")
    if stage != READY:
        return Chosen(None, "no model of its first stage ships")
    if own_sizes:
        return Chosen(None, f"settings name sizes of a UNet; without them {READY} is trained on")
    if data.captioned < CAPTIONED:
        return Chosen(None, "few captions")
    if data.common_tokens > READY_TOKENS:
        return Chosen(None, f"captions are longer than {READY} reads")
    return Chosen(READY, f"what {READY} has learned is kept; --init none begins anew")


def sides(model: str, machine: MachineFacts, goal: Goal) -> tuple[int, ...]:
    """Sides of images to choose from, the best first, where the UNet of `READY` is trained on.

    The first one at which it sees enough examples in the time is taken, else the last.

    Args:
        model: whose UNet is trained on.
        machine: facts of the machine.
        goal: what is asked for.

    Returns:
        Sides in pixels; none for another model, which keeps its own.
    """
    if model != READY:
        return ()
    if goal.seconds is not None:
        return READY_SIDES
    return (
        READY_SIDES[-1:]
        if goal.quality == QUICKEST and not machine.accelerator
        else READY_SIDES[:1]
    )


def unet_settings(name: str, side: int, data: DataFacts) -> dict[str, Any]:
    """Section `unet:` of a size.

    Args:
        name: one of `UNETS`.
        side: of what it denoises, latents or pixels.
        data: facts of the images.
    """
    sizes = dict(UNETS[name])
    attends = sizes.pop("attends")
    count = 4 if name == "huge" and side >= 32 else 3 if side >= 24 else 2
    while count > 1 and side % 2 ** (count - 1):
        count -= 1
    levels = [level for level in range(count) if side >> level <= attends] or [count - 1]
    return {
        **sizes,
        "channel_multipliers": [1, 2, 3, 4][:count],
        "attention_levels": levels,
        "num_heads": 4,
        "norm_groups": 8,
        "dropout": dropout(name, data),
    }


def dropout(name: str | None, data: DataFacts) -> float:
    """Dropout in the UNet.

    Args:
        name: of its size; None for a finished model that is trained on.
        data: facts of the images.
    """
    return SMALL_SET_DROPOUT if data.images <= SMALL_SET else DROPOUT.get(name, 0.0)


def learning_rate(name: str | None, start: str | None = None) -> float:
    """Learning rate of the UNet's training.

    Args:
        name: of its size; None for a finished model that is trained on.
        start: that model.
    """
    if name is None:
        return 5e-4 if start == READY else 1e-4
    return 2e-4 if name == "huge" else 1e-3


def largest_unet(
    rates: Mapping[str, float], data: DataFacts, machine: MachineFacts, goal: Goal, seconds: float
) -> Chosen:
    """Largest UNet that sees enough examples in a time; without one that of the quality.

    Args:
        rates: name of a size → seconds of an example; those that fit the memory.
        data: facts of the images.
        machine: facts of the machine.
        goal: what is asked for.
        seconds: left for the steps of the UNet, where the goal has a time.
    """
    quality = goal.of_quality
    asked = quality.sizes[machine.accelerator]
    known = list(UNETS)
    usable = [name for name in known[: known.index(asked) + 1] if name in rates]
    if not usable:
        usable = [min(rates, key=known.index)]
    if goal.seconds is None:
        return Chosen(usable[-1], f"quality {goal.quality} on {machine.name}")
    wanted = quality.examples(data.images)
    fitting = [name for name in usable if rates[name] * wanted <= seconds]
    if fitting:
        return Chosen(fitting[-1], f"the largest that sees {wanted:,} examples in the time")
    return Chosen(usable[0], "the smallest: the time is short")


# --- Batch, memory and the rest ------------------------------------------------------------


def parts_of_batch(
    config: AutoencoderRun | DiffusionRun, factor: int, size: int, machine: MachineFacts
) -> int | None:
    """Number of parts that a batch is computed in, so that each fits the memory.

    Args:
        config: with the network and the resolution.
        factor: downsample factor of the first stage of a UNet; 1 for pixels, and an autoencoder.
        size: examples of the batch.
        machine: facts of the machine.

    Returns:
        1, 2, 4, …; None where not even `LEAST_AT_A_TIME` examples fit.
    """
    parts, least = 1, min(size, LEAST_AT_A_TIME)
    while machine.memory is not None and size // parts >= least:
        if memory_of(config, factor, size // parts) <= MEMORY_SHARE * machine.memory:
            return parts
        parts *= 2
    return 1 if machine.memory is None else None


def memory_of(config: AutoencoderRun | DiffusionRun, factor: int, examples: int) -> float:
    """Bytes that a training needs, by estimate, from the feature maps of the examples.

    Args:
        config: with the network and the resolution.
        factor: see `parts_of_batch`.
        examples: computed at a time.
    """
    return MEMORY_BASE + MEMORY_MAPS * 4 * cost_of(config, factor).numbers * examples


def no_memory(needed: float, machine: MachineFacts) -> UserError:
    """Error for a machine with less memory than the smallest plan needs.

    Args:
        needed: bytes.
        machine: facts of it.
    """
    return UserError(
        f"memory: the smallest plan needs about {needed / 1e9:.2g} GB, and {machine.name} has "
        f"{(machine.memory or 0) / 1e9:.2g} GB free; close other programs, or train elsewhere"
    )


def validation_fraction(data: DataFacts) -> float:
    """Share of validation images.

    Args:
        data: facts of the images.
    """
    return 0.1 if data.images < FEW_VALIDATION else 0.05


def variants(data: DataFacts) -> int:
    """Changed copies of each image of a small set; 0 for a large one, which needs none.

    Args:
        data: facts of the images.
    """
    if data.images > SMALL_SET or not data.augmentable:
        return 0
    least, most = MOST_VARIANTS
    return min(max(VARIANTS // data.images, least), most)


def context_length(data: DataFacts) -> int:
    """Tokens of a caption: those of a long one, as a multiple of 8, 8 … 77.

    Args:
        data: facts of the images.
    """
    return min(max(-(-data.tokens // 8) * 8, 8), 77)


def ema_momentum(steps: int) -> float:
    """Momentum of the EMA: an average over the last twentieth of the steps.

    Args:
        steps: of the training.
    """
    return round(min(max(1 - 20 / steps, 0.5), 0.9999), 5)


def warmup_steps(steps: int) -> int:
    """Steps over which the learning rate rises: 3 % of all, at most 500.

    Args:
        steps: of the training.
    """
    return min(max(steps * 3 // 100, 1), 500)
