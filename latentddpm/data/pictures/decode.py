"""Decoding of picture files with Pillow: within limits, upright, and with reasons for failures.

`decode` opens a file and hands Pillow's image, not loaded yet, to a function that takes from it
what is wanted: 8-bit colours (`eight_bit`), its own values or facts (`data.pictures.stored`).
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from latentddpm.data.sources.kinds import ARRAYS_READ, PICTURES_READ
from latentddpm.errors import one_line

File = str | Path | bytes | Image.Image
"""Picture file: its path, its bytes, or a PIL image."""
Found = TypeVar("Found")

MAX_PIXELS = 178_956_970
"""Largest width times height: 13,000×13,000 is accepted, 20,000×20,000 is refused."""

FORMATS = tuple(dict.fromkeys(PICTURES_READ.values()))
"""Formats that Pillow decodes, whatever the suffix of a file."""
READ = ", ".join((*FORMATS, *dict.fromkeys(ARRAYS_READ.values())))
"""Names of all formats that are read, for messages."""
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


def decode(file: File, use: Callable[[Image.Image], Found], at_least: int | None = None) -> Found:
    """Result of a function of the image in a file.

    Args:
        file: to open.
        use: function of the opened image, which loads it.
        at_least: a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, which is much faster. Its
            shorter side still has `REDUCING_GAP` times this number of pixels. (Sizes are rounded
            up, which moves the centre by less than a sixth of a pixel of the result.)

    Raises:
        ValueError: no such file, an empty one, or one that cannot be decoded; many others.
    """
    if isinstance(file, Image.Image):
        return use(file)
    if not isinstance(file, bytes) and not Path(file).is_file():
        raise ValueError("no such file")
    if not (len(file) if isinstance(file, bytes) else os.path.getsize(file)):
        raise ValueError("the file is empty (0 bytes)")
    try:
        return _decode_as_is(file, use, at_least)
    except ValueError:
        # Pillow refuses large texts in a PNG; the limits are global, and guard against bombs.
        data = file if isinstance(file, bytes) else Path(file).read_bytes()
        if (bare := without_texts(data)) == data:
            raise
        return _decode_as_is(bare, use, at_least)


def _decode_as_is(
    file: str | Path | bytes, use: Callable[[Image.Image], Found], at_least: int | None
) -> Found:
    with open_image(file) as image:
        check_pixels(*image.size)
        if at_least:
            scale = at_least * REDUCING_GAP / min(image.size)
            image.draft(None, tuple(math.ceil(side * scale) for side in image.size))
        return use(image)


def check_pixels(width: int, height: int) -> None:
    """Refuse a size over the limit.

    Args:
        width, height: in pixels.

    Raises:
        ValueError: naming both.
    """
    if width * height > MAX_PIXELS:
        raise ValueError(f"{width}x{height} pixels is over the limit of {MAX_PIXELS:,} pixels")


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


def upright(image: Image.Image, pixels: Image.Image) -> Image.Image:
    """Pixels turned as the EXIF of their image says.

    Args:
        image: loaded.
        pixels: made of it.
    """
    turn = TURNS.get(_orientation(image))
    return pixels if turn is None else pixels.transpose(turn)


def eight_bit(image: Image.Image) -> Image.Image:
    """Image of any mode, upright, in mode RGB or, if a pixel is not opaque, RGBA.

    Args:
        image: opened.
    """
    image.load()
    return upright(image, _eight_bit(image))


def _eight_bit(image: Image.Image) -> Image.Image:
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


@contextmanager
def explained(file: File, name: str | None) -> Iterator[None]:
    """Replace any exception by `UnreadableImage`: decoders raise all kinds on malformed bytes.

    Args:
        file: that is decoded inside the block.
        name: of the image in errors, if `file` is not a path.
    """
    path = name or ("image" if isinstance(file, bytes | Image.Image) else file)
    try:
        yield
    except UnidentifiedImageError as error:
        reason = f"another kind of file or a broken header (read are {READ})"
        raise UnreadableImage(path, reason) from error
    except Exception as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise UnreadableImage(path, reason) from error
