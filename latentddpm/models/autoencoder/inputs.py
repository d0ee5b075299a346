"""Inputs of an autoencoder as people have them, as the batch that its networks take.

array, uint8          pixels 0 … 255, scaled to [-1, 1]
array, float          in [-1, 1], as networks give and take it
PIL images, files     one or a list of one size; read upright, transparency over white
"""

from __future__ import annotations

import contextlib
import os
import warnings
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from latentddpm.errors import UserError
from latentddpm.utils.images.pictures import as_picture
from latentddpm.utils.pixels import from_pixels

MARGIN = 0.5
"""Margin beyond [-1, 1] that resampling and decoders reach."""


def as_images(images: Any) -> Any:
    """Batch of images, float32 (B, H, W, C) in [-1, 1].

    Args:
        images: see the module. What is none of it, such as a `tf.data.Dataset`, is returned as it
            is.

    Raises:
        UserError: pictures of different sizes, an array of another type or shape, or numbers out
            of range.
    """
    if isinstance(images, str | os.PathLike | Image.Image):
        images = [images]
    if isinstance(images, list | tuple) and images:
        if all(isinstance(one, str | os.PathLike | Image.Image) for one in images):
            images = _stacked([_pixels(one) for one in images])
        elif all(isinstance(one, np.ndarray) for one in images):
            images = _stacked(images)
    if not isinstance(images, np.ndarray):
        return images
    if images.ndim != 4:
        hint = "; images[None] makes a batch of one" if images.ndim == 3 else ""
        raise UserError(
            f"images: {images.dtype} {images.shape}, expected a batch (B, H, W, C){hint}"
        )
    if images.dtype == np.uint8:
        return from_pixels(images)
    if not np.issubdtype(images.dtype, np.floating):
        raise UserError(
            f"images: {images.dtype} {images.shape}, expected uint8, or floating point in [-1, 1]"
        )
    return _in_range(images)


def _in_range(images: np.ndarray) -> np.ndarray:
    low, high = (float(end(images)) if images.size else 0.0 for end in (np.min, np.max))
    finite = np.isfinite([low, high]).all()
    if not finite or (low >= 0 and high > 1 + MARGIN):
        hint = ", which looks like 0 … 255; give uint8" if finite and high <= 255 else ""
        raise UserError(
            f"images: expected floating point in [-1, 1], got {low:.4g} to {high:.4g}{hint}"
        )
    positive = low >= 0 and high > 0
    if positive or low < -1 - MARGIN or high > 1 + MARGIN:
        hint = ", where 0 is gray; for [0, 1] give 2 * x - 1" if positive else ""
        warnings.warn(
            f"images: floating point from {low:.4g} to {high:.4g} is taken as [-1, 1]{hint}",
            stacklevel=3,
        )
    return images.astype(np.float32, copy=False)


def _pixels(picture: Any) -> np.ndarray:
    """Pixels of a file or PIL image at its own size, uint8 (H, W, 3), over white."""
    picture = as_picture("images", picture)
    try:
        image = picture if isinstance(picture, Image.Image) else Image.open(picture)
        with contextlib.nullcontext() if image is picture else image:
            upright = ImageOps.exif_transpose(image)
            if not upright.has_transparency_data:
                return np.asarray(upright.convert("RGB"))
            white = Image.new("RGBA", upright.size, "white")
            return np.asarray(Image.alpha_composite(white, upright.convert("RGBA")).convert("RGB"))
    except OSError as error:
        reason = error.strerror or "not a picture that can be read"
        raise UserError(f"images: {picture}: {reason}") from None


def _stacked(images: list[np.ndarray]) -> np.ndarray:
    """Batch of arrays of one shape."""
    shapes = {image.shape for image in images}
    if len(shapes) > 1:
        raise UserError(f"images: of {len(shapes)} sizes, {sorted(shapes)[:3]}; expected one")
    return np.stack(images)
