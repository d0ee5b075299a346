"""Pixel format of a run: settled from the model it starts from, else from the data; and judged.

    data.channels    that of the model, else: all gray 1; RGB, or gray and RGB, 3; arrays their own
    data.bit_depth   that of the model, else the lowest that an image has: 8, 16, "float"
    data.window      that of the model, else none: the whole range

Transparent pictures have 3 channels, over `data.background`, unless 4 are asked for. Where an
image has more than the format keeps, a line of the plan says so; what would be lost unasked is
refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import numpy as np

from latentddpm.config import AutoencoderRun, DiffusionRun
from latentddpm.data.catalog.catalog import Catalog
from latentddpm.data.images import UnreadableImage
from latentddpm.data.pictures.convert import outside
from latentddpm.data.pictures.stored import FLOAT_BITS, read_stored
from latentddpm.errors import UserError
from latentddpm.training.plan import resolve
from latentddpm.training.plan.resolve import DEPTHS
from latentddpm.training.plan.signals import check_kind, check_signals, complete_signals
from latentddpm.utils.images.pixel_format import FLOAT, NAMES, PixelFormat

Config = TypeVar("Config", AutoencoderRun, DiffusionRun)

PICTURES = (1, 3)
"""Channels of pictures, without alpha."""
VGG_SEES = {1: "gray repeated", 2: "the first channel"}
"""Channels → what of them a VGG16 sees; see `models.perceptual.three_channels`."""
SAMPLE = 32
"""Images that are read to measure what a window clips."""
MOST_CLIPPED = 0.01
"""Share of the values that a window may clip without a word."""


def complete_pixels(config: Config, catalog: Catalog) -> Config:
    """Settings with the pixel format of the data where it is open.

    Args:
        config: of a run, with the format of the model that it starts from.
        catalog: of the images.

    Raises:
        UserError: images whose channels differ, signals among images or the reverse, or a window
            that the format does not have.
    """
    data = config.data
    check_kind(data.spatial_dims, catalog)
    if data.spatial_dims == 1:
        config = complete_signals(config, catalog)
    else:
        own = {
            "channels": data.channels or _channels(catalog),
            "bit_depth": data.bit_depth or DEPTHS[int(catalog.images["bits"].min())],
        }
        config = resolve.fill(config, {"data": own})
    PixelFormat.of(config.data)
    return config


def judge_pixels(given: Config, config: Config, catalog: Catalog) -> list[str]:
    """Lines for people about images of another format than the run's.

    Args:
        given: settings as given: a number of channels there is what the user asked for.
        config: complete settings.
        catalog: of the images.

    Raises:
        UserError: images that do not fit, or of which something would be lost that nobody asked
            to lose; the message names one.
    """
    pixels = PixelFormat.of(config.data)
    signals = pixels.spatial_dims == 1
    cut = []
    if signals:
        cut = check_signals(config, catalog)
    else:
        _check_channels(pixels.channels, given.data.channels, catalog)
    _check_range(pixels, catalog)
    if config.data.background == "random" and (pixels.channels, pixels.bit_depth) != (3, 8):
        raise UserError(
            f"data.background=random: images are {pixels}; random colours lie behind RGB of 8 "
            "bits; set data.background=white"
        )
    lines = [] if pixels.is_default else [str(pixels)]
    lines += [*cut, *_notes(pixels, catalog)]
    perceptual = getattr(config, "perceptual", None)
    if perceptual is not None and perceptual.source != "none" and pixels.channels != 3:
        seen = VGG_SEES.get(pixels.channels, "the first three channels")
        lines.append(f"the perceptual distance knows RGB only and sees {seen}")
    return [f"{'signals' if signals else 'pixels':<10} {line}" for line in lines]


def _channels(catalog: Catalog) -> int:
    """Channels of the data."""
    found, counts = np.unique(catalog.images["channels"], return_counts=True)
    if len(found) > 1 and not set(found.tolist()) <= set(PICTURES):
        rarest, most = found[counts.argmin()], found[counts.argmax()]
        one, other = (_first(catalog, "channels", count) for count in (most, rarest))
        raise UserError(
            f"{other}: {rarest} channels, but {one} has {most}; expected the same in all"
        )
    return int(found.max())


def _check_channels(channels: int, asked: int | None, catalog: Catalog) -> None:
    for count in np.unique(catalog.images["channels"]).tolist():
        name = _first(catalog, "channels", count)
        if count != channels and not (count in PICTURES and channels in NAMES):
            raise UserError(
                f"{name}: {count} channels, expected {channels} (data.channels); leave out or "
                f"convert it, or set data.channels={count}"
            )
        if channels == 1 and count == 3 and asked != 1:
            raise UserError(
                f"{name}: RGB, but the model is gray: its colour would be lost; say that it may "
                "be: data.channels=1"
            )


def _check_range(pixels: PixelFormat, catalog: Catalog) -> None:
    """Refuse numbers without a window outside [0, 1], and a window that holds no value at all."""
    images = catalog.images
    low, high = images["low"], images["high"]
    numbers = np.flatnonzero(images["bits"] == FLOAT_BITS)
    whole = not pixels.window or pixels.bit_depth != FLOAT
    if whole and len(numbers) and (low[numbers].min() < 0 or high[numbers].max() > 1):
        worst = numbers[np.argmax(np.maximum(-low[numbers], high[numbers]))]
        ends = f"[{low[numbers].min():g}, {high[numbers].max():g}]"
        raise UserError(
            f"{catalog.where(int(worst))}: numbers from {low[worst]:g} to {high[worst]:g}, "
            f"expected 0 … 1; say their range: data.bit_depth=float and data.window={ends}"
        )
    measured = pixels.bit_depth == DEPTHS[int(images["bits"].min())] != 8
    if (
        pixels.window
        and measured
        and not ((high > pixels.window[0]) & (low < pixels.window[1])).any()
    ):
        raise UserError(
            f"data.window: [{pixels.window[0]:g}, {pixels.window[1]:g}], but all values are in "
            f"{low.min():g} … {high.max():g}"
        )


def _notes(pixels: PixelFormat, catalog: Catalog) -> Iterator[str]:
    images, total = catalog.images, len(catalog)
    if pixels.spatial_dims == 2:
        yield from _notes_on_channels(pixels.channels, catalog)
    for bits, depth in DEPTHS.items():
        count = int((images["bits"] == bits).sum())
        if count and depth != pixels.bit_depth != FLOAT:
            lost = bits > pixels.bit_depth
            what = "are reduced to" if lost else "gain nothing by"
            words = "floating point" if depth == FLOAT else f"{bits} bits"
            yield f"{count:,} images of {words} {what} {pixels.bit_depth} bits"
    if pixels.window:
        share = _clipped(pixels, catalog)
        if share > MOST_CLIPPED:
            yield (
                f"data.window [{pixels.window[0]:g}, {pixels.window[1]:g}] clips {share:.2%} of "
                f"the values (of {min(SAMPLE, total)} images)"
            )


def _notes_on_channels(channels: int, catalog: Catalog) -> Iterator[str]:
    total, gray = len(catalog), int((catalog.images["channels"] == 1).sum())
    if channels in (3, 4) and gray == total:
        yield f"all images are gray, repeated in {NAMES[channels]} (data.channels=1: gray)"
    if channels == 1 and gray < total:
        yield f"colour is lost: {total - gray:,} of {total:,} images are RGB, made gray"
    if channels == 4 and not catalog.images["transparent"].any():
        yield "no image has a transparent pixel"


def _clipped(pixels: PixelFormat, catalog: Catalog) -> float:
    """Share of the values of some images that a window clips.

    Raises:
        UserError: all of them.
    """
    rows = np.linspace(0, len(catalog) - 1, min(SAMPLE, len(catalog))).astype(int)
    shares = []
    for row in np.unique(rows).tolist():
        try:
            shares.append(outside(read_stored(catalog.read(row)), pixels))
        except (UnreadableImage, OSError, ValueError):
            continue  # the examples name it, and take another one
    share = float(np.mean(shares)) if shares else 0.0
    if share == 1:
        raise UserError(
            f"data.window: [{pixels.window[0]:g}, {pixels.window[1]:g}] clips every value of "
            f"{len(shares)} images; latentddpm doctor suggests one"
        )
    return share


def _first(catalog: Catalog, column: str, value: int) -> str:
    """Name of the first image with a value in a column, for messages."""
    return catalog.where(int(np.argmax(catalog.images[column] == value)))
