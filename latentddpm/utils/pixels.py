"""Pixels: uint8 ⇄ float32 in [-1, 1], image grids, files of images with their metadata.

PNG    metadata in a text chunk        gray of 8 or 16 bits, RGB, RGBA
.npy   metadata beside it, NAME.json   everything else; signals that are no WAV file
.wav   the same                        signals
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from latentddpm.errors import UserError
from latentddpm.utils.files import atomic_path, write_json

METADATA_KEY = "latentddpm"
BESIDE = (".npy", ".wav")
"""Suffixes of files whose metadata is in NAME.json."""


def to_pixels(images: Any) -> np.ndarray:
    """Pixels, uint8, of `images` in [-1, 1], of any shape: rounded and clipped."""
    images = np.asarray(images, dtype=np.float32)
    return np.clip(np.rint((images + 1.0) * 127.5), 0, 255).astype(np.uint8)


def from_pixels(pixels: Any, cast: Callable[[Any, type], Any] = np.asarray) -> Any:
    """Images in [-1, 1], float32, as networks take them, of pixels 0 .. 255, of any shape.

    Args:
        pixels: an array or a tensor, uint8 or float.
        cast: `cast(pixels, dtype)` of the library that the pixels belong to; NumPy's by default.
    """
    return cast(pixels, np.float32) / 127.5 - 1.0


def as_rgb(pixels: np.ndarray) -> np.ndarray:
    """Pixels for people to look at: gray is repeated, transparency lies over white.

    Args:
        pixels: uint8 (..., C): gray, RGB or RGBA; of any other number of channels the first three
            are taken, of two the first one.

    Returns:
        uint8 (..., 3).
    """
    channels = pixels.shape[-1]
    if channels == 4:
        alpha = pixels[..., 3:].astype(np.float32) / 255
        return np.rint(pixels[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)
    return np.repeat(pixels[..., :1], 3, axis=-1) if channels < 3 else pixels[..., :3]


def grid(rows: Sequence[np.ndarray], gap: int = 2) -> np.ndarray:
    """Grid of images on white, uint8 (height, width, 3).

    Args:
        rows: images of each row of the grid, uint8 (N, H, W, 3), with the same H and W.
        gap: pixels between images.
    """
    height, width = rows[0].shape[1:3]
    columns = max(len(row) for row in rows)
    canvas = np.full(
        (len(rows) * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8
    )
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            top, left = i * (height + gap), j * (width + gap)
            canvas[top : top + height, left : left + width] = image
    return canvas


def save_png(
    path: str | Path,
    pixels: np.ndarray,
    metadata: dict[str, Any] | None = None,
    replace: bool = True,
) -> None:
    """Write a PNG file, atomically.

    Args:
        path: of the file.
        pixels: uint8 (H, W, 3), (H, W, 4) or (H, W, 1), or uint16 (H, W, 1).
        metadata: is written as JSON into a text chunk.
        replace: replace a file that is there.

    Raises:
        FileExistsError: see `utils.files.atomic_path`.
    """
    chunks = PngImagePlugin.PngInfo()
    if metadata is not None:
        chunks.add_itxt(METADATA_KEY, json.dumps(metadata, ensure_ascii=False))
    if pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    with atomic_path(path, replace) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG", pnginfo=chunks)


def save_array(
    path: str | Path, pixels: np.ndarray, metadata: dict[str, Any], replace: bool = True
) -> None:
    """Write an .npy file, atomically, and its metadata beside it.

    Args:
        path: of the file, NAME.npy.
        pixels: (H, W, C).
        metadata: is written to NAME.json.
        replace: replace a file that is there.

    Raises:
        FileExistsError: see `utils.files.atomic_path`.
    """
    with atomic_path(path, replace) as temporary, open(temporary, "wb") as stream:
        np.save(stream, pixels, allow_pickle=False)
    write_json(Path(path).with_suffix(".json"), metadata)


def read_metadata(path: str | Path) -> dict[str, Any]:
    """Metadata in the PNG file at `path`, or in NAME.json beside an array or WAV file.

    Raises:
        UserError: no such file, not a PNG, or one that was not made by latentddpm.
    """
    if Path(path).suffix.lower() in BESIDE:
        return _read_beside(Path(path))
    try:
        with Image.open(path, formats=("PNG",)) as image:
            image.load()
            text = image.info.get(METADATA_KEY)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except Exception as error:
        raise UserError(f"{path}: not a PNG that can be read ({error})") from None
    if text is None:
        raise UserError(f"{path}: holds no latentddpm metadata (was it saved again elsewhere?)")
    try:
        return json.loads(text)
    except ValueError:
        raise UserError(f"{path}: its latentddpm metadata is not JSON") from None


def _read_beside(path: Path) -> dict[str, Any]:
    """Metadata in the JSON file beside an array."""
    beside = path.with_suffix(".json")
    for file in (path, beside):
        if not file.is_file():
            raise UserError(f"{file}: no such file")
    try:
        metadata = json.loads(beside.read_text("utf-8"))
    except ValueError as error:
        raise UserError(f"{beside}: not JSON ({error})") from None
    if not isinstance(metadata, dict) or METADATA_KEY not in metadata:
        raise UserError(f"{beside}: holds no latentddpm metadata")
    return metadata
