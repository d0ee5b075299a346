"""Pictures as people have them: a file, a PIL image, or an array, as one kind of thing.

    file          read later, like a training image
    PIL image     of any mode
    array         (H, W), (H, W, 1), (H, W, 3) or (H, W, 4): uint8, bool (black and white), or
                  floating point in [0, 1]

Everything else is refused by its name, as are floating point pixels in another range: whether they
are [-1, 1] or 0 … 255 is not guessed.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from latentddpm.errors import UserError

Picture = str | Path | Image.Image | np.ndarray
EXPECTED = "a file, a PIL image, or an array: uint8, bool, or floating point in [0, 1]"


def as_picture(name: str, source: Any) -> Path | Image.Image:
    """File or PIL image of a picture.

    Args:
        name: of the argument, for messages.
        source: see the module.

    Raises:
        UserError: something else, an array of another shape or type, or pixels out of range.
    """
    if isinstance(source, str | os.PathLike):
        return Path(source)
    if isinstance(source, Image.Image):
        if not all(source.size):
            raise UserError(f"{name}: a picture of {source.width}×{source.height} pixels")
        return source
    if not hasattr(source, "__array__"):
        raise UserError(f"{name}: {type(source).__name__}, expected {EXPECTED}")
    return Image.fromarray(as_pixels(name, np.asarray(source)))


def as_pixels(name: str, array: np.ndarray) -> np.ndarray:
    """Pixels of one picture.

    Args:
        name: of the argument, for messages.
        array: see the module.

    Returns:
        uint8 (H, W), (H, W, 3) or (H, W, 4).

    Raises:
        UserError: another shape or type, or pixels out of range.
    """
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    valid = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    if not valid or not array.size:
        hint = "; one picture, not a batch" if array.ndim == 4 else ""
        raise UserError(
            f"{name}: {array.dtype} {array.shape}, expected (H, W), (H, W, 3) or (H, W, 4){hint}"
        )
    return to_uint8(name, array)


def to_uint8(name: str, array: np.ndarray) -> np.ndarray:
    """Pixels 0 … 255 of an array of any shape: uint8, bool, or floating point in [0, 1].

    Args:
        name: of the argument, for messages.
        array: of pixels, at least one.

    Raises:
        UserError: another type, or pixels out of range.
    """
    if array.dtype == np.uint8:
        return array
    if array.dtype == bool:
        return array * np.uint8(255)
    if not np.issubdtype(array.dtype, np.floating):
        whole = np.issubdtype(array.dtype, np.integer) and array.min() >= 0 and array.max() <= 255
        hint = "; give x.astype('uint8')" if whole else ""
        raise UserError(f"{name}: an array of {array.dtype}, expected {EXPECTED}{hint}")
    array = array.astype(np.float64)
    low, high = array.min(), array.max()
    if not (low >= 0 and high <= 1):  # NaN too
        if -1 <= low < 0 and high <= 1:
            hint = ", which looks like [-1, 1]; give (x + 1) / 2"
        elif low >= 0 and 1 < high <= 255:
            hint = ", which looks like 0 … 255; give x / 255, or uint8"
        else:
            hint = ""
        raise UserError(
            f"{name}: expected floating point in [0, 1], got {low:.4g} to {high:.4g}{hint}"
        )
    return np.rint(array * 255).astype(np.uint8)
