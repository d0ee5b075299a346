"""Conversion of a stored image or signal to a pixel format: channels, units of the values, size.

    stored values ─► channels of the format ─► its units, clipped to its range ─► scaled, cropped

    gray → RGB          repeated
    RGB → gray          luminance, (299 R + 587 G + 114 B) / 1000
    alpha               over white, or kept where the format has four channels
    8 ⇄ 16 bits         times 257, and divided by it
    → floating point    as they are where the format has a window, else divided by their largest
    floating point →    times the largest, where they are in [0, 1]

Scaling is done in float32, for each channel by itself, with the filters of `data.images`. A signal
is cut to a length in its middle, never resampled or padded.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from latentddpm.data.pictures.stored import Stored
from latentddpm.utils.images.pixel_format import FLOAT, NAMES, PixelFormat

LUMINANCE = np.float32([0.299, 0.587, 0.114])
TOPS = {np.dtype("uint8"): 255.0, np.dtype("uint16"): 65535.0}
"""Type of whole values → the largest."""


def to_format(stored: Stored, pixels: PixelFormat, height: int, width: int) -> np.ndarray:
    """Values of a stored image in a format, at a size.

    Args:
        stored: of any format.
        pixels: the format.
        height, width: to which it is scaled to cover, and cropped.

    Returns:
        (H, W, C) of the format's dtype.

    Raises:
        ValueError: its channels or its values do not fit the format.
    """
    values = _in_units(_with_channels(stored, pixels.channels), stored.values.dtype, pixels)
    values = np.clip(values, *pixels.range)
    values = np.clip(_scaled(values, height, width), *pixels.range)
    if pixels.bit_depth != FLOAT:
        values = np.rint(values)
    return values.astype(pixels.dtype)


def to_signal(stored: Stored, pixels: PixelFormat, length: int) -> np.ndarray:
    """Values of a stored signal in a format, cut to a length.

    Args:
        stored: of any format.
        pixels: the format.
        length: L, of its middle, in samples.

    Returns:
        (L, C) of the format's dtype.

    Raises:
        ValueError: it is no signal, is shorter, or does not fit the format.
    """
    values = _channels_of_signal(stored, pixels.channels)
    if len(values) < length:
        raise ValueError(f"{len(values)} samples, expected at least {length}")
    start = (len(values) - length) // 2
    values = _in_units(values[start : start + length], stored.values.dtype, pixels)
    values = np.clip(values, *pixels.range)
    if pixels.bit_depth != FLOAT:
        values = np.rint(values)
    return values.astype(pixels.dtype)


def outside(stored: Stored, pixels: PixelFormat) -> float:
    """Share of the values of a stored image or signal that are outside the range of a format.

    Args:
        stored: of any format.
        pixels: the format.

    Raises:
        ValueError: see `to_format` and `to_signal`.
    """
    channels_of = _channels_of_signal if pixels.spatial_dims == 1 else _with_channels
    values = _in_units(channels_of(stored, pixels.channels), stored.values.dtype, pixels)
    low, high = pixels.range
    return float(np.mean((values < low) | (values > high)))


def _with_channels(stored: Stored, channels: int) -> np.ndarray:
    """Values with a number of channels, float32, in their own units."""
    check_image(stored)
    values = stored.values.astype(np.float32)
    own = values.shape[2] - stored.alpha
    if own == channels and not stored.alpha:
        return values
    if own not in (1, 3) or channels not in NAMES:
        raise ValueError(f"{values.shape[2]} channels, expected {channels}")
    top = TOPS.get(stored.values.dtype, 1.0)
    alpha = values[..., own:] if stored.alpha else np.full_like(values[..., :1], top)
    colours = values[..., :own]
    if channels == 4:
        return np.concatenate([np.repeat(colours, 3 // own, axis=2), alpha], axis=2)
    colours = top + (colours - top) * (alpha / top)
    if own < channels:
        return np.repeat(colours, channels, axis=2)
    return (colours @ LUMINANCE)[..., None] if own > channels else colours


def check_image(stored: Stored) -> None:
    """Refuse a signal where an image is expected.

    Args:
        stored: of any format.

    Raises:
        ValueError: it is a signal.
    """
    if stored.values.ndim != 3:
        raise ValueError(f"a signal of {len(stored.values)} samples, expected an image")


def _channels_of_signal(stored: Stored, channels: int) -> np.ndarray:
    """Values of a signal (L, C), float32, in their own units."""
    values = stored.values
    if values.ndim == 3:
        if values.shape[2] != 1 or stored.alpha:
            raise ValueError(f"an image of shape {values.shape}, expected a signal (L,) or (L, C)")
        values = values[..., 0]
    if values.shape[1] != channels:
        raise ValueError(f"{values.shape[1]} channels, expected {channels}")
    return values.astype(np.float32)


def _in_units(values: np.ndarray, dtype: np.dtype, pixels: PixelFormat) -> np.ndarray:
    """Values of a stored `dtype` in the units of a format."""
    if dtype == pixels.dtype:
        if pixels.bit_depth == FLOAT and pixels.window is None:
            _check_unit(values)
        return values
    top = TOPS.get(dtype)
    if pixels.bit_depth == FLOAT:
        return values if pixels.window else values / np.float32(top)
    if top is None:
        _check_unit(values)
        return values * np.float32(pixels.top)
    return values * np.float32(pixels.top / top)


def _check_unit(values: np.ndarray) -> None:
    low, high = values.min(), values.max()
    if low < 0 or high > 1:
        raise ValueError(
            f"floating point from {low:g} to {high:g}, expected [0, 1]; "
            f"say its range: data.bit_depth=float and data.window=[{low:g}, {high:g}]"
        )


def _scaled(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """Values scaled to cover a size, and cropped to it."""
    if values.shape[:2] == (height, width):
        return values
    filtered, box = placement(values.shape[1], values.shape[0], height, width)
    channels = [
        Image.fromarray(np.ascontiguousarray(values[..., k])).resize(
            (width, height), filtered, box=box
        )
        for k in range(values.shape[2])
    ]
    return np.stack([np.asarray(one) for one in channels], axis=-1)


def placement(
    own_width: int, own_height: int, height: int, width: int
) -> tuple[Image.Resampling, tuple[float, float, float, float]]:
    """Filter and box with which an image is scaled to cover a size and cropped, in one go.

    Args:
        own_width, own_height: of the image, in pixels.
        height, width: to cover.

    Returns:
        Lanczos to shrink and bicubic to enlarge, and (left, top, right, bottom) of the part that
        is kept, in its own pixels.
    """
    scale = max(width / own_width, height / own_height)
    crop = min(width / scale, own_width), min(height / scale, own_height)
    left, top = (own_width - crop[0]) / 2, (own_height - crop[1]) / 2
    if scale == 1:  # whole pixels: an offset of half a pixel would blur
        left, top = left // 1, top // 1
    resampling = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC
    return resampling, (left, top, left + crop[0], top + crop[1])
