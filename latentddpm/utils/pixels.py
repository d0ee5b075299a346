"""Pixels in and out: uint8 ⇄ arrays in [-1, 1], grids, PNG files with their making inside."""

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
    """Images in [-1, 1], any shape → uint8, rounded and clipped."""
    images = np.asarray(images, dtype=np.float32)
    return np.clip(np.rint((images + 1.0) * 127.5), 0, 255).astype(np.uint8)


def from_pixels(pixels: Any, cast: Callable[[Any, type], Any] = np.asarray) -> Any:
    """0 … 255, any shape → images in [-1, 1], float32: what networks take.

    Args:
        cast: NumPy's, or that of another library, in whose arrays the pixels are.
    """
    return cast(pixels, np.float32) / 127.5 - 1.0


def grid(rows: Sequence[np.ndarray], gap: int = 2) -> np.ndarray:
    """Rows of uint8 images, each (N, H, W, 3) → one picture on white with `gap` pixels between."""
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


def save_png(path: str | Path, pixels: np.ndarray, metadata: dict[str, Any] | None = None) -> None:
    """Write uint8 (H, W, 3) as PNG, atomically, with `metadata` as JSON in a text chunk."""
    chunks = PngImagePlugin.PngInfo()
    if metadata is not None:
        chunks.add_itxt(METADATA_KEY, json.dumps(metadata, ensure_ascii=False))
    with atomic_path(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG", pnginfo=chunks)


def read_metadata(path: str | Path) -> dict[str, Any]:
    """The metadata that `save_png` wrote beside the pixels.

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
