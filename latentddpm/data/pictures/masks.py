"""Masks: pictures of which white is meant, black is not, and gray in part.

A mask belongs to a picture: it has its size, and is scaled and cropped with it. Transparent counts
as white.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from latentddpm.data.images import read_image
from latentddpm.data.pictures.given import file_name, in_pixels, own_size
from latentddpm.errors import UserError
from latentddpm.utils.images.pictures import Picture, as_picture


def read_mask(
    name: str, mask: Picture, size: tuple[int, int], picture_size: tuple[int, int], of: str
) -> np.ndarray:
    """Read the mask of a picture at the output size.

    Args:
        name: of the mask, for messages.
        mask: see `utils.images.pictures`.
        size: (height, width) of the output, in pixels.
        picture_size: (height, width) of the picture, which the mask has to have.
        of: the picture, for messages.

    Returns:
        uint8 (H, W), from 0 (black) to 255 (white).

    Raises:
        UserError: it cannot be read, has another size than the picture, or counts in 0 and 1.
    """
    mask = as_picture(name, mask)
    mask_size = own_size(name, mask)
    if mask_size != picture_size:
        raise UserError(
            f"{name}: {file_name(mask)}is {in_pixels(mask_size)} and {of} is "
            f"{in_pixels(picture_size)}; both must have the same size"
        )
    return gray_of(name, read_image(mask, size), file_name(mask))


def gray_of(name: str, picture: np.ndarray, file: str = "") -> np.ndarray:
    """Gray values of a mask's pixels, uint8 (H, W), from 0 (black) to 255 (white).

    Args:
        name: of the mask, for messages.
        picture: uint8 (H, W, 3).
        file: that it was read from with a space behind, for messages.

    Raises:
        UserError: it counts in 0 and 1.
    """
    pixels = np.asarray(Image.fromarray(picture).convert("L"))
    if pixels.max() == 1:  # of labels, or of a mask that was counted in 0 and 1
        raise UserError(
            f"{name}: {file}has no pixel above 1 of 255, so nothing of it is white; "
            "expected white (255) where it is, such as mask * 255"
        )
    return pixels
