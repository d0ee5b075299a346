"""Given pictures: files, PIL images or arrays that a person gives, as values of a pixel format.

They are read like training images: upright, in the pixel format of the model, scaled to cover a
size with their aspect ratio, and cropped to it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from latentddpm.data.images import UnreadableImage, read_image, read_whole
from latentddpm.data.pictures.arrays import as_values
from latentddpm.data.pictures.convert import to_format
from latentddpm.data.pictures.stored import Stored, is_array, read_stored
from latentddpm.errors import UserError
from latentddpm.utils.images.pictures import Picture, as_picture
from latentddpm.utils.images.pixel_format import RGB, PixelFormat

Opened = Path | Image.Image | Stored
"""Picture that is not read yet, or values of a format other than 8-bit RGB."""


def open_given(name: str, source: Picture, pixels: PixelFormat = RGB) -> Opened:
    """Picture that was given, not read yet.

    Args:
        name: of the argument, for messages.
        source: see `utils.images.pictures`. An array of the dtype of `pixels` has its values.
        pixels: format that it will be read in.

    Raises:
        UserError: something that is no picture.
    """
    if isinstance(source, np.ndarray) and not pixels.is_default and source.dtype == pixels.dtype:
        try:
            return Stored(as_values(source))
        except ValueError as error:
            raise UserError(f"{name}: {error}") from None
    return as_picture(name, source)


def own_size(name: str, picture: Opened) -> tuple[int, int]:
    """Size (height, width) of a picture when upright.

    Args:
        name: of the argument, for messages.
        picture: returned by `open_given`.

    Raises:
        UserError: it cannot be read.
    """
    if isinstance(picture, Stored):
        return picture.values.shape[:2]
    try:
        if is_array(picture):
            return read_stored(picture).values.shape[:2]
        width, height = read_whole(picture).size
    except (UnreadableImage, ValueError) as error:
        raise UserError(f"{name}: {error}") from None
    return height, width


def read_given(
    name: str, picture: Opened, size: tuple[int, int], pixels: PixelFormat = RGB
) -> np.ndarray:
    """Values of a picture, scaled to cover a size and cropped to it.

    Args:
        name: of the argument, for messages.
        picture: returned by `open_given`.
        size: (height, width) in pixels.
        pixels: format of the values.

    Returns:
        (H, W, C) in the dtype of `pixels`.

    Raises:
        UserError: it cannot be read, or does not fit the format.
    """
    try:
        if isinstance(picture, Stored):
            return to_format(picture, pixels, *size)
        return read_image(picture, size, pixels=pixels)
    except (UnreadableImage, ValueError) as error:
        raise UserError(f"{name}: {error}") from None


def file_name(picture: Opened) -> str:
    """File of a picture and a space, for messages; "" where it is none."""
    return f"{picture} " if isinstance(picture, Path) else ""


def in_pixels(size: tuple[int, int]) -> str:
    """Size (height, width) for messages, as people write it: width × height."""
    return f"{size[1]}×{size[0]} pixels"
