"""Pixels: uint8 ⇄ float32 in [-1, 1], image grids, PNG files with metadata."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from latentddpm.errors import UserError
from latentddpm.utils.files import atomic_path

METADATA_KEY = "latentddpm"


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
        pixels: uint8 (H, W, 3).
        metadata: is written as JSON into a text chunk.
        replace: replace a file that is there.

    Raises:
        FileExistsError: see `utils.files.atomic_path`.
    """
    chunks = PngImagePlugin.PngInfo()
    if metadata is not None:
        chunks.add_itxt(METADATA_KEY, json.dumps(metadata, ensure_ascii=False))
    with atomic_path(path, replace) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG", pnginfo=chunks)


def read_metadata(path: str | Path) -> dict[str, Any]:
    """Metadata that `save_png` wrote into the PNG file at `path`.

    Raises:
        UserError: no such file, not a PNG, or one that was not made by latentddpm.
    """
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
