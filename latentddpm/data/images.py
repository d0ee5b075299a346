"""Images: a file, or its bytes, to pixels of a format, or to the reason why it cannot be read.

Only Pillow and NumPy are used, and nothing here writes, renames or deletes.

Every image becomes 8-bit RGB, unless another `PixelFormat` is asked for (`data.pictures.convert`).
EXIF rotation is applied; animations give their first frame; 16-bit
samples are scaled by 1/257 (gray) or keep their high byte (colour, as Pillow decodes them);
floating point samples are read as [0, 1], or as [0, 255] if one exceeds 1; CMYK is converted
without its colour profile; the transparent colour of a palette, gray or RGB image becomes alpha.
Colours are premultiplied by alpha while resizing, so that the invisible colour of transparent
pixels does not spread to visible ones.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from latentddpm.data.pictures.convert import check_image, placement, to_format, to_signal
from latentddpm.data.pictures.decode import (
    REDUCING_GAP,
    File,
    UnreadableImage,
    decode,
    eight_bit,
    explained,
)
from latentddpm.data.pictures.stored import (
    Facts,
    Stored,
    is_array,
    look,
    read_pages,
    read_stored,
)
from latentddpm.errors import UserError
from latentddpm.utils.images.pixel_format import NAMES, RGB, PixelFormat

__all__ = [
    "UnreadableImage",
    "composite",
    "examine_image",
    "read_image",
    "read_signal",
    "read_whole",
]

WHITE = (255, 255, 255)


def read_image(
    file: File,
    resolution: int | tuple[int, int],
    background: tuple[int, int, int] | None = WHITE,
    name: str | None = None,
    pixels: PixelFormat = RGB,
) -> np.ndarray:
    """Pixels of an image file, upright, scaled to cover `resolution` and centre-cropped to it.

    The scaling keeps the proportions; it shrinks with a Lanczos filter and enlarges with a bicubic
    one.

    Args:
        file: its path, its bytes, or a PIL image.
        resolution: the side of a square, or (height, width), in pixels.
        background: RGB colour, 0 .. 255, behind transparent pixels of 8 bits; None to keep alpha.
        name: of the image in errors, if `file` is not a path.
        pixels: format of the result; 8-bit RGB by default.

    Returns:
        (H, W, C) in the dtype of `pixels`: uint8 (H, W, 3) by default. If `background` is None,
        8-bit RGB becomes RGBA, not premultiplied, (H, W, 4).

    Raises:
        UnreadableImage: the file cannot be read, or its channels or values do not fit `pixels`.
        UserError: an invalid `resolution` or `background`.
    """
    height, width = _check_resolution(resolution)
    if background is not None:
        _check_colour(background)
    with explained(file, name):
        found = _decoded(file, pixels, max(height, width))
        if isinstance(found, Stored):
            return to_format(found, pixels, height, width)
        keep_alpha = background is None or pixels.channels == 4
        as_it_is = pixels.channels == 4 and found.size == (width, height)
        image = found if as_it_is else _fit(found, height, width)
        if keep_alpha or image.mode == "RGBA":
            rgba = np.array(image.convert("RGBA"))
            if keep_alpha:
                return rgba
            image = Image.fromarray(composite(rgba, background))
        return np.array(image.convert("L"))[..., None] if pixels.channels == 1 else np.array(image)


def read_signal(
    file: File, length: int, pixels: PixelFormat, name: str | None = None
) -> np.ndarray:
    """Samples of the file of a signal, the `length` in its middle.

    Args:
        file: its path, or its bytes.
        length: L.
        pixels: format of the result.
        name: of the signal in errors, if `file` is not a path.

    Returns:
        (L, C) in the dtype of `pixels`.

    Raises:
        UnreadableImage: the file cannot be read, is shorter, or does not fit `pixels`.
    """
    with explained(file, name):
        return to_signal(read_stored(file), pixels, length)


def _decoded(file: File, pixels: PixelFormat, at_least: int) -> Image.Image | Stored:
    """Image of 8 bits where that is all that a format needs, else the stored values."""
    plain = pixels.bit_depth == 8 and pixels.window is None and pixels.channels in NAMES
    if not plain or is_array(file):
        stored = read_stored(file)
        check_image(stored)
        if stored.values.shape[2] != pixels.channels and pixels.channels in NAMES:
            return read_stored(file, pages=False)  # of a TIFF with several pages the first one
        return stored

    def use(image: Image.Image) -> Image.Image | Stored:
        values = read_pages(image)
        if values is not None and values.shape[2] == pixels.channels:
            return Stored(values)
        return eight_bit(image)

    return decode(file, use, at_least)


def read_whole(file: File, name: str | None = None) -> Image.Image:
    """Image of a file, upright and at full size, in mode RGB or, if a pixel is not opaque, RGBA.

    Args:
        file: its path, its bytes, or a PIL image.
        name: of the image in errors, if `file` is not a path.

    Raises:
        UnreadableImage: the file cannot be read.
    """
    with explained(file, name):
        return decode(file, eight_bit)


def examine_image(data: bytes, name: str) -> tuple[Facts, Image.Image | np.ndarray]:
    """Facts about an image file, which is decoded in full, and the image; see `stored.look`.

    Args:
        data: its bytes.
        name: of the image in errors.

    Raises:
        UnreadableImage: the file cannot be read.
    """
    with explained(data, name):
        return look(data)


def composite(rgba: np.ndarray, background: tuple | np.ndarray) -> np.ndarray:
    """RGB pixels of RGBA pixels, not premultiplied, over a background.

    Args:
        rgba: (..., 4). For uint8 all channels are 0 .. 255. For float alpha is in [0, 1] and the
            colours have any range.
        background: broadcasts to (..., 3), in the range of the colours: one colour (3,), one
            for each image (B, 1, 1, 3), or images (B, H, W, 3).

    Returns:
        (..., 3) of the dtype of `rgba`, rounded for uint8.

    Raises:
        UserError: for uint8, the background is not RGB in 0 .. 255.
    """
    colour, alpha = rgba[..., :3], rgba[..., 3:]
    if rgba.dtype != np.uint8:
        return colour * alpha + np.asarray(background, rgba.dtype) * (1 - alpha)
    alpha = alpha.astype(np.uint16)
    blend = colour * alpha + _check_colour(background) * (255 - alpha)  # at most 255 * 255
    return ((blend + 127) // 255).astype(np.uint8)


# --- One file ------------------------------------------------------------------------------


def _fit(image: Image.Image, height: int, width: int) -> Image.Image:
    """Image, RGB or RGBA, scaled to cover `height` × `width` and cropped in one resampling."""
    resampling, box = placement(*image.size, height, width)
    premultiplied = image.convert("RGBa") if image.mode == "RGBA" else image
    resized = premultiplied.resize((width, height), resampling, box=box, reducing_gap=REDUCING_GAP)
    return resized.convert(image.mode)


def _check_resolution(resolution: int | tuple[int, int]) -> tuple[int, int]:
    """Size (height, width) of a `resolution`, checked."""
    size = tuple(resolution) if isinstance(resolution, tuple | list) else (resolution,) * 2
    if len(size) != 2 or not all(isinstance(n, int | np.integer) and n > 0 for n in size):
        raise UserError(
            f"resolution: {resolution!r} is neither a positive number nor (height, width)"
        )
    return int(size[0]), int(size[1])


def _check_colour(background: tuple | np.ndarray) -> np.ndarray:
    """Colours of a `background`, uint16 (..., 3), checked to be 0 .. 255."""
    colour = np.asarray(background)
    if colour.shape[-1:] != (3,) or not (colour.min() >= 0 and colour.max() <= 255):
        raise UserError(f"background: {colour.tolist()!r:.60} is not RGB, three numbers 0..255")
    return colour.astype(np.uint16)
