"""Augmentation of an image: moved, turned, zoomed, and of other colours, by numbers that are kept.

A point o of the result, (x, y) from the middle in sides of the image, shows the point

    i = R(turn) · (o − shift) / 2^zoom

of the image, and its colours v in [0, 1] become, in this order,

    v + brightness,    ½ + 2^contrast · (v − ½),    y + 2^saturation · (v − y),    H(hue) · v

with the gray y of the pixel and the rotation H about the gray axis (Karras 2020, appendix B). All
eight numbers are 0 for an image that stays as it is. Behind the edge of an opaque image comes its
mirror image, behind that of a transparent one nothing: its background. Colours of a transparent
image are changed before it stands on its background, which stays as it is.

The image is read at twice the size, so that what is turned is as sharp as what is not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from latentddpm.config import AugmentConfig
from latentddpm.utils.images.pixel_format import PixelFormat

VERSION = 1
"""Version of what follows: to be increased when it gives other pixels for the same numbers."""
LUMA = np.array([0.299, 0.587, 0.114], np.float32)
OVER = 2
"""Samples of a pixel along each side."""


class Changes(NamedTuple):
    """Changes of an image, all 0 for none.

    Attributes:
        zoom: logarithm of the factor to base 2.
        shift_x: to the right, in sides of the image.
        shift_y: down, in sides of the image.
        turn: counterclockwise, in degrees.
        brightness: added to values in [0, 1].
        contrast: logarithm of the factor to base 2.
        saturation: logarithm of the factor to base 2.
        hue: in degrees.
    """

    zoom: float = 0.0
    shift_x: float = 0.0
    shift_y: float = 0.0
    turn: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0

    def by_name(self) -> dict[str, float]:
        """Numbers by their names."""
        return dict(zip(self._fields, self, strict=True))

    def mirrored(self) -> Changes:
        """Changes that give the mirror image, of an image that is mirrored itself."""
        return Changes(**{**self.by_name(), "shift_x": -self.shift_x, "turn": -self.turn})


def draw_changes(
    settings: AugmentConfig, rng: np.random.Generator, in_colour: bool = True
) -> Changes:
    """Changes of an image, each uniform up to its strength.

    Args:
        settings: strengths.
        rng: random numbers; of two equal ones come equal changes.
        in_colour: False for gray images and arrays, which have no saturation and hue.
    """
    u = dict(zip(Changes._fields, rng.uniform(-1, 1, len(Changes._fields)), strict=True))
    side = 1 - settings.crop * rng.uniform()  # of the part that a crop keeps
    zoom = u["zoom"] * np.log2(1 + settings.scale) - np.log2(side)
    turn = u["turn"] * settings.rotation
    middle = _rotation(turn).T @ rng.uniform(side - 1, 1 - side, 2) / 2  # of that part
    x, y = settings.translation * np.array([u["shift_x"], u["shift_y"]]) - middle * 2**zoom
    found = Changes(
        *(zoom, x, y, turn),
        u["brightness"] * settings.brightness,
        u["contrast"] * np.log2(1 + settings.contrast),
        u["saturation"] * np.log2(1 + settings.saturation) * in_colour,
        u["hue"] * settings.hue * in_colour,
    )
    return Changes(*map(float, found))


def scales(settings: AugmentConfig, in_colour: bool = True) -> Changes:
    """Size of each change that `draw_changes` gives, about its standard deviation; 0 for none.

    Args:
        settings, in_colour: see `draw_changes`.
    """
    shift = settings.translation + settings.crop / 2
    widest = Changes(
        float(np.log2(1 + settings.scale) - np.log2(1 - settings.crop)),
        *(shift, shift, settings.rotation, settings.brightness),
        float(np.log2(1 + settings.contrast)),
        float(np.log2(1 + settings.saturation)) * in_colour,
        settings.hue * in_colour,
    )
    return Changes(*(one / 3**0.5 for one in widest))


def augmented(
    read: Callable[[tuple[int, int]], np.ndarray],
    size: tuple[int, int],
    changes: Changes,
    pixels: PixelFormat,
    background: tuple[int, int, int] | None = None,
) -> np.ndarray:
    """Values of a changed image.

    Args:
        read: size (H, W) → values (H, W, C) of the image as it is, with its alpha where that can
            be kept.
        size: (height, width) of the result.
        changes: what to do.
        pixels: format of the values.
        background: colour behind transparent pixels of a format without alpha; None to keep it.

    Returns:
        (H, W, C) in the dtype of `pixels`; (H, W, 4) with alpha.
    """
    height, width = size
    low, high = pixels.range
    values = (read((OVER * height, OVER * width)).astype(np.float32) - low) / (high - low)
    rgba = values.shape[-1] == 4 and pixels.channels in (3, 4)
    clear = rgba and values[..., 3].min() < 1
    if clear:
        values[..., :3] *= values[..., 3:]
    warped = _sampled(values, *_places(values.shape[:2], changes), mirrored=not clear)
    warped = warped.reshape(height, OVER, width, OVER, -1).mean(axis=(1, 3))
    if not rgba:
        return pixels.from_images(2 * _recoloured(warped, changes) - 1)
    alpha = warped[..., 3:]
    colours = _recoloured(warped[..., :3] / np.maximum(alpha, 1e-6), changes)
    if pixels.channels == 3 and background is not None:
        found = colours * alpha + np.float32(background) / 255 * (1 - alpha)
    else:
        found = np.concatenate([colours, alpha], axis=-1)
    return pixels.from_images(2 * found - 1)


def _rotation(degrees: float) -> np.ndarray:
    """Matrix that turns (x, y), with y down: from a point of the result to one of the image."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, -s], [s, c]])


def _places(size: tuple[int, int], changes: Changes) -> tuple[np.ndarray, np.ndarray]:
    """Places in the image, (y, x) in pixels, that each pixel of the result shows."""
    height, width = size
    side = min(size)
    y, x = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    x = (x - (width - 1) / 2) / side - changes.shift_x
    y = (y - (height - 1) / 2) / side - changes.shift_y
    (a, b), (c, d) = _rotation(changes.turn) / 2**changes.zoom
    return (
        ((c * x + d * y) * side + (height - 1) / 2).astype(np.float32),
        ((a * x + b * y) * side + (width - 1) / 2).astype(np.float32),
    )


def _sampled(values: np.ndarray, y: np.ndarray, x: np.ndarray, mirrored: bool) -> np.ndarray:
    """Values at places between pixels, bilinear; outside mirrored, or 0."""
    if not mirrored:
        values = np.pad(values, ((1, 1), (1, 1), (0, 0)))
        y, x = y + 1, x + 1
    height, width = values.shape[:2]
    top, left = np.floor(y).astype(np.int64), np.floor(x).astype(np.int64)
    down, right = (y - top)[..., None], (x - left)[..., None]

    def at(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        return values[_inside(rows, height, mirrored), _inside(columns, width, mirrored)]

    above = at(top, left) * (1 - right) + at(top, left + 1) * right
    below = at(top + 1, left) * (1 - right) + at(top + 1, left + 1) * right
    return above * (1 - down) + below * down


def _inside(numbers: np.ndarray, count: int, mirrored: bool) -> np.ndarray:
    """Rows or columns inside of an image: mirrored at its edges, or the nearest."""
    if not mirrored:
        return np.clip(numbers, 0, count - 1)
    around = numbers % (2 * count)
    return np.minimum(around, 2 * count - 1 - around)


def _recoloured(values: np.ndarray, changes: Changes) -> np.ndarray:
    """Colours changed, in [0, 1]; of gray images and arrays brightness and contrast alone."""
    values = values + np.float32(changes.brightness)
    values = np.float32(0.5) + (values - np.float32(0.5)) * np.float32(2**changes.contrast)
    if values.shape[-1] != 3 or not (changes.saturation or changes.hue):
        return np.clip(values, 0, 1)
    gray = (values @ LUMA)[..., None]
    values = gray + (values - gray) * np.float32(2**changes.saturation)
    c, s = np.cos(np.radians(changes.hue)), np.sin(np.radians(changes.hue)) / 3**0.5
    one, other = (1 - c) / 3 - s, (1 - c) / 3 + s  # Rodrigues' formula about (1, 1, 1) / √3
    first = c + (1 - c) / 3
    turn = np.array([[first, one, other], [other, first, one], [one, other, first]], np.float32)
    return np.clip(values @ turn.T, 0, 1)
