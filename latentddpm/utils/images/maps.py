"""Maps: pictures at the size of the latents, without losing a pixel.

    space to depth     (H, W, C) → (h, w, f² · C)            h = H / f, w = W / f

The f × f pixels that lie under one position of the latents become its channels, row by row, and
the C numbers of a pixel stay together (Shi et al. 2016, reversed). So a map has all that the
picture has, beside latents that have 1/f of its sides.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from latentddpm.errors import UserError


def space_to_depth(pictures: np.ndarray, factor: int) -> np.ndarray:
    """Pictures (N, H, W, C) as maps (N, H / f, W / f, f² · C).

    Args:
        pictures: of any dtype; H and W are multiples of the factor.
        factor: f, pixels along a side.

    Raises:
        UserError: H or W is not a multiple of f.

    Example:
        >>> space_to_depth(np.arange(4).reshape(1, 2, 2, 1), 2).tolist()
        [[[[0, 1, 2, 3]]]]
    """
    count, height, width, channels = pictures.shape
    if height % factor or width % factor:
        raise UserError(f"a picture of {width}×{height} pixels, expected multiples of {factor}")
    cells = pictures.reshape(
        count, height // factor, factor, width // factor, factor, channels
    ).transpose(0, 1, 3, 2, 4, 5)
    return cells.reshape(*cells.shape[:3], factor * factor * channels)


def depth_to_space(maps: np.ndarray, factor: int) -> np.ndarray:
    """Pictures (N, f · h, f · w, C) of maps (N, h, w, f² · C), the reverse of `space_to_depth`.

    Args:
        maps: of any dtype.
        factor: f, pixels along a side.
    """
    count, height, width, channels = maps.shape
    cells = maps.reshape(count, height, width, factor, factor, channels // factor**2)
    return cells.transpose(0, 1, 3, 2, 4, 5).reshape(count, height * factor, width * factor, -1)


def at_latents(pictures: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Maps at the size of the latents, by space to depth of as many pixels as a picture has.

    Args:
        pictures: float32 (N, H, W, C).
        size: (h, w) of the latents.

    Returns:
        (N, h, w, f² · C) with f = H / h.

    Raises:
        UserError: H and W are not the same multiple of h and w.
    """
    (height, width), (rows, columns) = pictures.shape[1:3], size
    factor = height // rows
    if not factor or (height, width) != (factor * rows, factor * columns):
        raise UserError(
            f"a picture of {width}×{height} pixels for latents of {columns}×{rows}, "
            f"expected the same multiple of both sides"
        )
    return space_to_depth(pictures, factor)


def resized(
    picture: np.ndarray, size: tuple[int, int], how: Image.Resampling = Image.Resampling.BICUBIC
) -> np.ndarray:
    """Picture at another size, each channel by itself; when it shrinks the filter grows with it.

    Args:
        picture: float32 (H, W, C).
        size: (height, width) of the result, in pixels.
        how: Pillow's filter.
    """
    height, width = size
    channels = [
        Image.fromarray(np.ascontiguousarray(one)).resize((width, height), how)
        for one in np.moveaxis(np.asarray(picture, np.float32), -1, 0)
    ]
    return np.stack([np.asarray(one) for one in channels], axis=-1)
