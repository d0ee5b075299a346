"""Pictures for conditions that a person gives to `generate`, read as the kind wants them.

    picture          scaled and cropped to the size of the output
    edges            the same, in gray: white lines on black
    low_resolution   reduced to the size of the output divided by the factor; smaller ones enlarged
    inpainting       the picture to start from and its mask; without one all is painted

Importing this module loads neither Keras nor TensorFlow.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from latentddpm.conditions.inpainting import InpaintingCondition, with_hole
from latentddpm.conditions.picture import MapCondition
from latentddpm.data.pictures.given import in_pixels, open_given, own_size, read_given
from latentddpm.errors import UserError
from latentddpm.utils.images.pixel_format import RGB, PixelFormat


def read_pictures(
    condition: MapCondition,
    given: Any,
    count: int,
    size: tuple[int, int],
    pixels: PixelFormat = RGB,
) -> np.ndarray:
    """Pictures of a condition for N images, ready for `condition.arrays`.

    Args:
        condition: to be told; of another kind than inpainting, see `inpainting_pictures`.
        given: one picture for all images, or a list of N; see `utils.images.pictures`.
        count: N.
        size: (height, width) of the output, in pixels.
        pixels: format of the model.

    Returns:
        float32 (N, H, W, C) in [-1, 1].

    Raises:
        UserError: no picture, one that cannot be read, or another number of them.
    """
    if isinstance(condition, InpaintingCondition):
        raise UserError(
            f"{condition.name}: is told by the picture to start from and its mask; give "
            "init_image and mask (--init-image, --mask)"
        )
    several = isinstance(given, Sequence) and not isinstance(given, str)
    if several and len(given) not in (1, count):
        raise UserError(
            f"{condition.name}: {len(given)} pictures for {count} images, expected one or {count}"
        )
    wanted, format = condition.picture_size(size), condition.format_of(pixels)
    found = [
        _read(condition, one, wanted, size, format) for one in (given if several else [given])
    ]
    return np.repeat(np.stack(found), 1 if len(found) == count else count, axis=0)


def _read(
    condition: MapCondition,
    given: Any,
    wanted: tuple[int, int],
    size: tuple[int, int],
    pixels: PixelFormat,
) -> np.ndarray:
    """One picture, float32 (H, W, C); a size that is neither that of the output nor the wanted
    one is said, unless it has the shape."""
    name = condition.name
    picture = open_given(name, given, pixels)
    found = own_size(name, picture)
    if found not in (wanted, size):
        array = hasattr(given, "__array__") and not isinstance(given, Image.Image)
        other_shape = abs(found[1] - size[1] * found[0] / size[0]) > 1
        if array and other_shape:
            raise UserError(
                f"{name}: an array of {in_pixels(found)} for a picture of {in_pixels(wanted)}; "
                "give the height and width of the output, or crop it"
            )
        if other_shape:
            warnings.warn(
                f"{name}: {in_pixels(found)}, scaled and cropped to {in_pixels(wanted)}",
                stacklevel=4,
            )
    return pixels.to_images(read_given(name, picture, wanted, pixels))


def inpainting_pictures(
    init_image: np.ndarray | None,
    repaint: np.ndarray | None,
    count: int,
    size: tuple[int, int],
    pixels: PixelFormat = RGB,
) -> np.ndarray:
    """Pictures of an inpainting condition for N images, ready for its `arrays`.

    Args:
        init_image: values of the picture, (H, W, C); None to paint everything.
        repaint: its mask, float (H, W) from 0 (keep) to 1 (paint); None to paint everything.
        count: N.
        size: (height, width) of the output, in pixels.
        pixels: format of the model.

    Returns:
        float32 (N, H, W, C + 1), the mask as the last channel.
    """
    if init_image is None:
        image = np.zeros((*size, pixels.channels), np.float32)
    else:
        image = pixels.to_images(init_image)
    mask = np.ones(size, np.float32) if repaint is None else repaint
    return np.repeat(with_hole(image, mask)[None], count, axis=0)
