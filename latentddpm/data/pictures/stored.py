"""Stored values of an image: its own channels and bit depth, and facts about them.

8 bits            gray, RGB; an alpha channel where a pixel is not opaque
16 bits           gray (Pillow reads colours of 16 bits as 8)
floating point    gray of 32 bits, whole numbers with a sign or of 32 bits
TIFF              of several gray pages of one size: a channel for each
.npy, .npz, .wav  see `data.pictures.arrays`, `data.pictures.wav`

A signal is stored as WAV, as an array (L,), or as an array (L, C), which looks like a gray image
of L rows. So facts about every signal are those of that image: height L, width C, 1 channel.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from latentddpm.data.pictures import arrays, decode, wav
from latentddpm.data.pictures.decode import File

GRAY_MODES = ("1", "L", "LA", "La", "I", "F", "I;16", "I;16L", "I;16B", "I;16N")
"""Modes of Pillow that are gray."""
PAGE_MODES = tuple(mode for mode in GRAY_MODES if mode not in ("LA", "La"))
"""Modes of pages that become channels."""
FLOAT_BITS = 32
"""Bits of values that are neither of 8 nor of 16."""
SAMPLE_FORMAT, UNSIGNED = 339, 1
"""Tag of TIFF that tells the sign of whole numbers, and its value for none."""


@dataclass(frozen=True)
class Facts:
    """Facts about a readable image.

    Attributes:
        width, height: in pixels, when upright.
        transparent: True if a pixel is not opaque.
        channels: without alpha: 1 gray, 3 RGB, or that of an array.
        bits: 8, 16, or 32 for floating point.
        low, high: smallest and largest value; of 8 bits 0 and 255, not measured.
        signal: True for what can be no image: a WAV file, or an array (L,).
        rate: of a WAV file, in samples a second; 0 for any other.
    """

    width: int
    height: int
    transparent: bool
    channels: int
    bits: int
    low: float = 0.0
    high: float = 255.0
    signal: bool = False
    rate: int = 0


class Stored(NamedTuple):
    """Stored image.

    Attributes:
        values: uint8, uint16 or float32, (H, W, C); of what can only be a signal (L, C).
        alpha: its last channel is alpha.
        rate: see `Facts`.
    """

    values: np.ndarray
    alpha: bool = False
    rate: int = 0


def look(data: bytes) -> tuple[Facts, Image.Image | np.ndarray]:
    """Facts about the image in a file, and the decoded image itself.

    Args:
        data: bytes of the file.

    Returns:
        Facts, and a PIL image in mode RGB or RGBA where it has 8 bits and is gray or RGB; else
        its values (H, W, C), of a signal (L, C, 1).

    Raises:
        ValueError: it cannot be read; many others.
    """
    if is_array(data):
        stored = _stored_array(data)
        signal = stored.values.ndim == 2
        if signal:
            stored = stored._replace(values=stored.values[..., None])
        return replace(_measured(stored), signal=signal, rate=stored.rate), stored.values
    return decode.decode(data, _look)


def read_stored(file: File, pages: bool = True) -> Stored:
    """Stored image in a file, upright and at full size.

    Args:
        file: its path, its bytes, or a PIL image.
        pages: read the pages of a TIFF as channels; otherwise the first one.

    Raises:
        ValueError: it cannot be read; many others.
    """
    if is_array(file):
        return _stored_array(file if isinstance(file, bytes) else _bytes(file))
    return decode.decode(file, lambda image: _stored(image, pages))


def is_array(file: File) -> bool:
    """True for the file of an array, or a WAV file, by its first bytes."""
    if isinstance(file, bytes):
        return _is_array(file[: wav.MAGIC_BYTES])
    if isinstance(file, Image.Image) or not Path(file).is_file():
        return False
    with open(file, "rb") as stream:
        return _is_array(stream.read(wav.MAGIC_BYTES))


def _is_array(head: bytes) -> bool:
    return arrays.is_array_file(head) or wav.is_wav(head)


def _stored_array(data: bytes) -> Stored:
    if wav.is_wav(data):
        values, rate = wav.read_wav(data)
        return Stored(values, rate=rate)
    return Stored(arrays.read_array(data))


def _bytes(file: str | Path) -> bytes:
    path = Path(file)
    if path.stat().st_size > decode.MAX_BYTES:
        raise ValueError(f"over the limit of {decode.MAX_BYTES:,} bytes")
    return path.read_bytes()


def _look(image: Image.Image) -> tuple[Facts, Image.Image | np.ndarray]:
    pages = read_pages(image)
    if pages is not None or _is_deep(image):
        stored = _stored(image, pages=False) if pages is None else Stored(pages)
        return _measured(stored), stored.values
    gray = image.mode in GRAY_MODES
    pixels = decode.eight_bit(image)
    return Facts(*pixels.size, pixels.mode == "RGBA", 1 if gray else 3, 8), pixels


def _measured(stored: Stored) -> Facts:
    height, width, channels = stored.values.shape
    values = stored.values[..., : channels - stored.alpha]
    bits = {np.dtype("uint8"): 8, np.dtype("uint16"): 16}.get(values.dtype, FLOAT_BITS)
    ends = float(values.min()), float(values.max())
    return Facts(width, height, stored.alpha, values.shape[2], bits, *ends)


def _is_deep(image: Image.Image) -> bool:
    return image.mode[0] in "IF"


def _stored(image: Image.Image, pages: bool = True) -> Stored:
    """Stored image of one that is opened."""
    if pages and (values := read_pages(image)) is not None:
        return Stored(values)
    if not _is_deep(image):
        return _of_eight_bits(image)
    values = arrays.as_values(_page(image))
    hidden = image.info.get("transparency")  # the value of transparent pixels
    if isinstance(hidden, int) and values.dtype == np.uint16 and (values == hidden).any():
        alpha = np.where(values == hidden, 0, 65535).astype(np.uint16)
        return Stored(np.concatenate([values, alpha], axis=-1), alpha=True)
    return Stored(values)


def read_pages(image: Image.Image) -> np.ndarray | None:
    """Values of all pages of a TIFF as channels, (H, W, C); None for any other picture.

    Where a page is not gray, or has another size (a thumbnail, a pyramid), the first one counts
    alone.

    Args:
        image: opened.
    """
    count = getattr(image, "n_frames", 1) if image.format == "TIFF" else 1
    if count == 1 or image.mode not in PAGE_MODES:
        return None
    size, mode = image.size, image.mode
    decode.check_pixels(size[0] * count, size[1])
    try:
        found = []
        for page in range(count):
            image.seek(page)
            if (image.size, image.mode) != (size, mode):
                return None
            found.append(_page(image))
        return arrays.as_values(np.stack(found, axis=-1))
    finally:
        image.seek(0)


def _of_eight_bits(image: Image.Image) -> Stored:
    gray = image.mode in GRAY_MODES
    pixels = decode.eight_bit(image)
    alpha = pixels.mode == "RGBA"
    if gray:
        pixels = pixels.convert("LA" if alpha else "L")
    values = np.asarray(pixels)
    return Stored(values if values.ndim == 3 else values[..., None], alpha)


def _page(image: Image.Image) -> np.ndarray:
    """Values of a gray page without alpha, (H, W)."""
    image.load()
    unsigned = image.mode == "I" and _is_unsigned(image)
    pixels = image.convert("L") if image.mode == "1" else image
    values = np.asarray(decode.upright(image, pixels))
    if image.mode.startswith("I;16") or image.format == "PNG":  # "I" in older versions of Pillow
        values = values.astype(np.uint16)
    return values.view(np.uint32) if unsigned else values


def _is_unsigned(image: Image.Image) -> bool:
    """True for a TIFF of whole numbers without a sign, which Pillow reads as int32."""
    found = getattr(image, "tag_v2", {}).get(SAMPLE_FORMAT, 0)
    return (found[0] if isinstance(found, tuple) else found) == UNSIGNED
