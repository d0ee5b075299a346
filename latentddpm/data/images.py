"""Images: a file, or its bytes, to `uint8` pixels, or to the reason why it cannot be read.

Only Pillow and NumPy are used, and nothing here writes, renames or deletes.

Every image becomes 8-bit RGB. EXIF rotation is applied; animations give their first frame; 16-bit
samples are scaled by 1/257 (gray) or keep their high byte (colour, as Pillow decodes them);
floating point samples are read as [0, 1], or as [0, 255] if one exceeds 1; CMYK is converted
without its colour profile; the transparent colour of a palette, gray or RGB image becomes alpha.
Colours are premultiplied by alpha while resizing, so that the invisible colour of transparent
pixels does not spread to visible ones.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from latentddpm.data.sources.kinds import PICTURES_READ
from latentddpm.errors import UserError, one_line

MAX_PIXELS = 178_956_970
"""Largest width times height: 13,000×13,000 is accepted, 20,000×20,000 is refused."""

WHITE = (255, 255, 255)
FORMATS = tuple(dict.fromkeys(PICTURES_READ.values()))
"""Formats that are decoded, whatever the suffix of a file."""
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_TEXTS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
"""Chunks of a PNG that hold no pixels and that Pillow limits in size."""
REDUCING_GAP = 3.0  # fast reductions stop at 3 times the target size; the filter does the rest
ORIENTATION = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation → the operation that makes the image upright."""


MAX_BYTES = 1 << 30
"""Largest size of an image file, which is read whole before it is decoded."""


class UnreadableImage(Exception):
    """Error for an image file that cannot be read.

    Args:
        path: of the file.
        reason: in one line.
    """

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(str(path), reason)
        self.path, self.reason = str(path), reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def read_image(
    file: str | Path | bytes | Image.Image,
    resolution: int | tuple[int, int],
    background: tuple[int, int, int] | None = WHITE,
    name: str | None = None,
) -> np.ndarray:
    """Pixels of an image file, upright, scaled to cover `resolution` and centre-cropped to it.

    The scaling keeps the proportions; it shrinks with a Lanczos filter and enlarges with a bicubic
    one.

    Args:
        file: its path, its bytes, or a PIL image.
        resolution: the side of a square, or (height, width), in pixels.
        background: RGB colour, 0 .. 255, behind transparent pixels; None to keep alpha.
        name: of the image in errors, if `file` is not a path.

    Returns:
        uint8 (H, W, 3); if `background` is None RGBA, not premultiplied, (H, W, 4).

    Raises:
        UnreadableImage: the file cannot be read.
        UserError: an invalid `resolution` or `background`.
    """
    height, width = _check_resolution(resolution)
    if background is not None:
        _check_colour(background)
    with _explained(file, name):
        image = _fit(_decode(file, at_least=max(height, width)), height, width)
        keep_alpha = background is None or image.mode == "RGBA"
        pixels = np.array(image.convert("RGBA" if keep_alpha else "RGB"))
    return composite(pixels, background) if keep_alpha and background is not None else pixels


def read_whole(file: str | Path | bytes | Image.Image, name: str | None = None) -> Image.Image:
    """Image of a file, upright and at full size, in mode RGB or, if a pixel is not opaque, RGBA.

    Args:
        file: its path, its bytes, or a PIL image.
        name: of the image in errors, if `file` is not a path.

    Raises:
        UnreadableImage: the file cannot be read.
    """
    with _explained(file, name):
        return _decode(file)


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


def _decode(file: str | Path | bytes | Image.Image, at_least: int | None = None) -> Image.Image:
    """Image of a file, upright, in mode RGB or, if a pixel is not opaque, RGBA.

    With `at_least`, a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, which is much faster.
    Its shorter side still has `REDUCING_GAP` times `at_least` pixels. (Sizes are rounded up, which
    moves the centre by less than a sixth of a pixel of the result.)
    """
    if isinstance(file, Image.Image):
        return _upright(file)
    if not isinstance(file, bytes) and not Path(file).is_file():
        raise ValueError("no such file")
    if not (len(file) if isinstance(file, bytes) else os.path.getsize(file)):
        raise ValueError("the file is empty (0 bytes)")
    try:
        return _decode_as_is(file, at_least)
    except ValueError:
        # Pillow refuses large texts in a PNG; the limits are global, and guard against bombs.
        data = file if isinstance(file, bytes) else Path(file).read_bytes()
        if (bare := without_texts(data)) == data:
            raise
        return _decode_as_is(bare, at_least)


def _decode_as_is(file: str | Path | bytes, at_least: int | None) -> Image.Image:
    with open_image(file) as image:
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise ValueError(f"{width}x{height} pixels is over the limit of {MAX_PIXELS:,} pixels")
        if at_least:
            scale = at_least * REDUCING_GAP / min(width, height)
            image.draft(None, (math.ceil(width * scale), math.ceil(height * scale)))
        return _upright(image)


def _upright(image: Image.Image) -> Image.Image:
    """Image turned as its EXIF says, in mode RGB or, if a pixel is not opaque, RGBA."""
    image.load()
    turn = TURNS.get(_orientation(image))
    pixels = _eight_bit(image)
    return pixels if turn is None else pixels.transpose(turn)


def open_image(file: str | Path | bytes) -> Image.Image:
    """Pillow's image of a file in one of `FORMATS`, not decoded yet.

    Args:
        file: its path, or its bytes.
    """
    stream = io.BytesIO(file) if isinstance(file, bytes) else file
    return Image.open(stream, formats=FORMATS)


def without_texts(data: bytes) -> bytes:
    """Bytes of a PNG without its texts and colour profile; other `data` as they are."""
    if not data.startswith(PNG_SIGNATURE):
        return data
    kept, at = [PNG_SIGNATURE], len(PNG_SIGNATURE)
    while at < len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if data[at + 4 : at + 8] not in PNG_TEXTS:
            kept.append(data[at:end])
        at = end
    return b"".join(kept)


def _orientation(image: Image.Image) -> int:
    """EXIF orientation of a loaded image, 1 .. 8; broken EXIF counts as upright."""
    try:
        return image.getexif().get(ORIENTATION, 1)
    except Exception:
        return 1


def _eight_bit(image: Image.Image) -> Image.Image:
    """Image of any mode, converted to RGB or, if a pixel is not opaque, to RGBA."""
    if image.mode[0] in "IF":
        image = _gray_alpha(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    lowest_alpha, _ = image.getchannel("A").getextrema()
    return image if lowest_alpha < 255 else image.convert("RGB")


def _gray_alpha(image: Image.Image) -> Image.Image:
    """Gray image of 16 bits, 32 bits or floating point, converted to mode LA."""
    samples = np.asarray(image)
    low, high = samples.min(), samples.max()
    top = (1.0 if high <= 1 else 255.0) if image.mode == "F" else 65535.0
    if not (low >= 0 and high <= top):  # NaN too
        raise ValueError(f"gray samples from {low} to {high} are outside 0..{top:g}")
    gray = np.rint(samples * (255.0 / top)).astype(np.uint8)
    hidden = image.info.get("transparency")  # the sample value of transparent pixels
    alpha = np.full_like(gray, 255) if hidden is None else np.uint8(255) * (samples != hidden)
    return Image.merge("LA", [Image.fromarray(gray), Image.fromarray(alpha)])


def _fit(image: Image.Image, height: int, width: int) -> Image.Image:
    """Image, RGB or RGBA, scaled to cover `height` × `width` and cropped in one resampling."""
    scale = max(width / image.width, height / image.height)
    crop = min(width / scale, image.width), min(height / scale, image.height)
    left, top = (image.width - crop[0]) / 2, (image.height - crop[1]) / 2
    if scale == 1:  # whole pixels: an offset of half a pixel would blur
        left, top = left // 1, top // 1
    premultiplied = image.convert("RGBa") if image.mode == "RGBA" else image
    resized = premultiplied.resize(
        (width, height),
        Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC,
        box=(left, top, left + crop[0], top + crop[1]),
        reducing_gap=REDUCING_GAP,
    )
    return resized.convert(image.mode)


@contextmanager
def _explained(file: str | Path | bytes | Image.Image, name: str | None) -> Iterator[None]:
    """Replace any exception by `UnreadableImage`: decoders raise all kinds on malformed bytes."""
    path = name or ("image" if isinstance(file, bytes | Image.Image) else file)
    try:
        yield
    except UnidentifiedImageError as error:
        reason = f"another kind of file or a broken header (read are {', '.join(FORMATS)})"
        raise UnreadableImage(path, reason) from error
    except Exception as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise UnreadableImage(path, reason) from error


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
