"""Settings that are not given, from what is given: resolution, levels of the networks, text.

    data.resolution            that of `init`, of the autoencoder's training, else of the data
    data.channels, bit_depth   the same (`plan.pixels`)
    data.captions              where it is auto: see `data.captioning.rules`
    …channel_multipliers       as many levels as leave the lowest one a few positions wide
    unet.attention_levels      all but the first, of at most 32 positions a side
    text.source                scratch where the data has captions, else none
    text.dropout               `TEXT_DROPOUT` where there are conditions, else 0

A run that is resumed takes first what it was started with. The result is written into the run's
`config.yaml`, so it is decided once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np

from latentddpm.config import AutoencoderRun, DiffusionRun
from latentddpm.data.catalog.catalog import Catalog
from latentddpm.data.pictures.stored import FLOAT_BITS
from latentddpm.utils.images.pixel_format import FLOAT

Config = TypeVar("Config", AutoencoderRun, DiffusionRun)

DEPTHS = {8: 8, 16: 16, FLOAT_BITS: FLOAT}
"""Bits in the catalog, from the lowest → bit depth of settings."""
LARGEST = 256
"""Resolution at most, where nothing but the data says one."""
AUTOENCODER_LEVELS = (1, 2, 4, 4)
UNET_LEVELS = {"unet": ((1, 2, 3, 4), 4), "classic": ((1, 2, 4, 8, 16), 1)}
"""Kind of a UNet → width multipliers of its levels, and the side of the lowest one, at least,
where there are several."""
SMALLEST_LATENTS = {4: 24, 3: 12}
"""Number of an autoencoder's levels → side of its latents, at least; two levels have no limit."""
LARGEST_ATTENTION = 32
"""Side of a level with attention, at most: its cost grows with the square of the positions. A
signal has as many positions as the square."""

OPEN = (
    ("data", "resolution"),
    ("data", "channels"),
    ("data", "bit_depth"),
    ("data", "window"),
    ("data", "rate"),
    ("data", "captions"),
    ("autoencoder", "channel_multipliers"),
    ("unet", "channel_multipliers"),
    ("unet", "attention_levels"),
    ("text", "source"),
    ("text", "dropout"),
    ("training", "precision"),
    ("training", "jit_compile"),
)
"""Settings, (section, key), that a run may leave open. The last two are settled once TensorFlow is
there; a run that is resumed keeps its own."""

OWN_LINES = (
    "precision",
    "jit_compile",
    "channels",
    "bit_depth",
    "window",
    "rate",
    "captions",
    "dropout",
)
"""Settings that the start lines name in lines of their own, or not at all."""


TEXT_DROPOUT = 0.05
"""Share of examples whose text alone is dropped, where there are conditions."""


def is_open(value: Any) -> bool:
    """True for the value of a setting that is left to this module."""
    return value is None or value == "auto"


def fill(config: Config, known: Mapping[str, Mapping[str, Any]]) -> Config:
    """Configuration with the values of `known` for settings that are still open.

    Args:
        config: of a run.
        known: section → setting → value.
    """
    changes = {}
    for section, key in OPEN:
        own = changes.get(section, getattr(config, section, None))
        value = (known.get(section) or {}).get(key)
        if own is not None and is_open(getattr(own, key)) and not is_open(value):
            changes[section] = own.model_copy(update={key: value})
    return config.model_copy(update=changes)


def chosen(before: Config, after: Config, why: Mapping[str, str]) -> str:
    """Settings that were open before, with their values, for the start lines; "" for none.

    Args:
        before, after: configuration of a run as it was given, and complete.
        why: section.key → what its value follows from, where that is worth saying.
    """
    found = []
    for section, key in OPEN:
        if not hasattr(before, section) or key in OWN_LINES:
            continue
        was, now = (getattr(getattr(one, section), key) for one in (before, after))
        if is_open(was) and not is_open(now):
            name = f"{section}.{key}"
            reason = f" ({why[name]})" if name in why else ""
            found.append(f"{name} {now}{reason}")
    return ", ".join(found)


def autoencoder_levels(resolution: int) -> list[int]:
    """Width multipliers of an autoencoder's levels for images of a resolution.

    Args:
        resolution: side of the images, in pixels.
    """
    for count, smallest in SMALLEST_LATENTS.items():
        factor = 2 ** (count - 1)
        if resolution % factor == 0 and resolution // factor >= smallest:
            return list(AUTOENCODER_LEVELS[:count])
    return list(AUTOENCODER_LEVELS[:2])


def unet_levels(latents: int, kind: str = "unet") -> list[int]:
    """Width multipliers of a UNet's levels for latents of a size.

    Args:
        latents: their side.
        kind: of the UNet.
    """
    levels, smallest = UNET_LEVELS[kind]
    count = len(levels)
    while count > 1 and latents < smallest * 2 ** (count - 1):
        count -= 1
    return list(levels[:count])


def attention_levels(count: int, side: int, spatial_dims: int = 2) -> list[int]:
    """Levels with attention of a UNet: those below the first that are not too large for it.

    Args:
        count: of its levels.
        side: of its first level, in positions.
        spatial_dims: 2 for squares of that side, 1 for signals of that length.
    """
    most = LARGEST_ATTENTION**2
    below = [level for level in (1, 2, 3) if level < count]
    return [level for level in below if (side >> level) ** spatial_dims <= most] or [count - 1]


def resolution_of(catalog: Catalog, multiple: int = 1) -> int:
    """Resolution for images: half of them are not enlarged to it, and it is at most `LARGEST`.

    Args:
        catalog: of the images.
        multiple: what it has to be a multiple of.
    """
    sides = np.minimum(catalog.images["width"], catalog.images["height"])
    side = min(int(np.median(sides)), LARGEST)
    step = 16 if side >= 64 else 8 if side >= 32 else 4
    step = max(step // multiple, 1) * multiple
    return max(side // step, 1) * step
