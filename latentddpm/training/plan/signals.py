"""Pixel format and length of a run on signals: settled from the data, and judged.

    data.channels    that of the model the run starts from, else the data's own
    data.bit_depth   the same: the lowest that a signal has
    data.window      of WAV files [-1, 1], their range; else none
    data.rate        of WAV files their own, the same in all
    data.resolution  the length: that of the shortest signal, at most `LONGEST`

A signal has one dimension where `data.spatial_dims` is 1; nothing is guessed from the files, since
an array (L, C) may be a gray image as well. Longer signals are cut to the middle. Shorter ones are
refused: zeros, or a change of the rate, would become part of what the model learns.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np

from latentddpm.config import AutoencoderRun, DiffusionRun
from latentddpm.data.catalog.catalog import Catalog
from latentddpm.data.pictures.stored import FLOAT_BITS
from latentddpm.errors import UserError
from latentddpm.training.plan import resolve

Config = TypeVar("Config", AutoencoderRun, DiffusionRun)

LONGEST = 4096
"""Length at most, where nothing but the data says one."""
OF_IMAGES = {
    "aspect_buckets": "signals have one side",
    "flip": "a signal mirrored in time is another signal",
    "background": "signals have no transparent samples",
    "mask": "signals have no pictures beside them",
}
"""Settings of images → why signals do not have them."""


def check_of_images(config: DiffusionRun) -> None:
    """Refuse settings of images for a run on signals.

    Args:
        config: of the run.

    Raises:
        UserError: naming the setting.
    """
    for key, why in OF_IMAGES.items() if config.data.spatial_dims == 1 else ():
        value = getattr(config.data, key)
        if value != type(config.data).model_fields[key].default:
            raise UserError(f"data.{key}={value}: {why}; leave it out")


def check_kind(spatial_dims: int, catalog: Catalog) -> None:
    """Refuse signals in a run on images, and images in a run on signals.

    Args:
        spatial_dims: of the run.
        catalog: of the data.

    Raises:
        UserError: naming a file.
    """
    images = catalog.images
    if spatial_dims == 2 and images["signal"].any():
        raise UserError(
            f"{_first(catalog, images['signal'])}: a signal, expected an image; for signals: "
            "train-diffusion --vae none --set data.spatial_dims=1"
        )
    wrong = (images["channels"] != 1) | images["transparent"]
    if spatial_dims == 1 and wrong.any():
        row = int(np.argmax(wrong))
        shape = tuple(int(images[key][row]) for key in ("height", "width", "channels"))
        raise UserError(
            f"{catalog.where(row)}: an image of shape {shape}, expected a signal: a WAV file, or "
            "an array (L,) or (L, C) (data.spatial_dims=1)"
        )


def complete_signals(config: Config, catalog: Catalog) -> Config:
    """Settings with the format and the length of the signals where they are open.

    Args:
        config: of a run, with the format of the model that it starts from.
        catalog: of the signals.
    """
    data, images = config.data, catalog.images
    rates, counts = np.unique(images["rate"], return_counts=True)
    rate = data.rate or int(rates[counts.argmax()]) or None
    widths, counts = np.unique(images["width"], return_counts=True)
    bit_depth = data.bit_depth or resolve.DEPTHS[int(images["bits"].min())]
    full = [-1.0, 1.0] if rates.any() and bit_depth == resolve.DEPTHS[FLOAT_BITS] else None
    own = {
        "channels": int(widths[counts.argmax()]),
        "bit_depth": bit_depth,
        "window": full,
        "rate": rate,
        "resolution": min(int(images["height"].min()), LONGEST),
    }
    return resolve.fill(config, {"data": own})


def check_signals(config: DiffusionRun, catalog: Catalog) -> list[str]:
    """Refuse signals that do not fit the run, and say what is cut.

    Args:
        config: complete settings.
        catalog: of the signals.

    Returns:
        Lines for people.

    Raises:
        UserError: another rate, another number of channels, or too short; the message names one.
    """
    data, images = config.data, catalog.images
    other = (images["rate"] != 0) & (images["rate"] != (data.rate or 0))
    if other.any():
        row = int(np.argmax(other))
        whose = "data.rate has"
        if (same := images["rate"] == data.rate).any():
            whose = f"{_first(catalog, same)} has"
        raise UserError(
            f"{catalog.where(row)}: {images['rate'][row]} samples a second, but {whose} "
            f"{data.rate}; nothing is resampled: convert it or leave it out"
        )
    if (other := images["width"] != data.channels).any():
        row = int(np.argmax(other))
        raise UserError(
            f"{catalog.where(row)}: {images['width'][row]} channels, expected {data.channels} "
            "(data.channels); convert it or leave it out"
        )
    if (short := images["height"] < data.resolution).any():
        shortest = int(images["height"].min())
        raise UserError(
            f"{_first(catalog, short)}: {images['height'][np.argmax(short)]} samples, expected at "
            f"least data.resolution={data.resolution}; nothing is padded: leave it out, or set "
            f"data.resolution={shortest}"
        )
    cut = int((images["height"] > data.resolution).sum())
    longest = int(images["height"].max())
    text = f"{cut:,} of {len(catalog):,} signals, of up to {longest:,} samples, are cut"
    return [f"{text} to the middle {data.resolution:,}"] if cut else []


def _first(catalog: Catalog, mask: np.ndarray) -> str:
    """Name of the first signal where a mask is True, for messages."""
    return catalog.where(int(np.argmax(mask)))
