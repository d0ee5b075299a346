"""Pictures for conditions that a person gives to `generate`, read as each kind wants them.

    picture          scaled and cropped to the size of the output
    edges            the same, in gray: white lines on black
    low_resolution   reduced to the size of the output divided by the factor; smaller ones enlarged
    inpainting       the picture to start from and its mask; without one all is painted

Importing this module loads neither Keras nor TensorFlow.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from latentddpm.conditions.base import Arrays, Condition, Encode
from latentddpm.conditions.inpainting import InpaintingCondition, with_hole
from latentddpm.conditions.picture import MapCondition
from latentddpm.data.pictures.given import in_pixels, open_given, own_size, read_given
from latentddpm.errors import UserError
from latentddpm.utils.images.pixel_format import RGB, PixelFormat


class Canvas(NamedTuple):
    """Canvas that images are drawn on, as far as pictures have to fit it.

    Attributes:
        size: (height, width) of the output, in pixels.
        latent_size: (h, w) of its latents.
        pixels: format of the model.
        encode: images (N, H, W, C) in [-1, 1] → scaled latents (N, h, w, c).
        init_image: picture that is painted in, values (H, W, C); None for none.
        repaint: its mask, float (H, W) from 0 (keep) to 1 (paint); None to paint everything.
    """

    size: tuple[int, int]
    latent_size: tuple[int, int]
    pixels: PixelFormat
    encode: Encode
    init_image: np.ndarray | None = None
    repaint: np.ndarray | None = None


def picture_arrays(
    conditions: Iterable[Condition], rows: Sequence[Mapping[str, Any]], canvas: Canvas
) -> Arrays:
    """Inputs of the network that pictures are told by, for N images.

    Args:
        conditions: of the model; those of words and numbers are passed over.
        rows: of each image its pictures by name; None, or a name left out, for "not told".
        canvas: of the images.

    Returns:
        float32 (N, h, w, c), and (N, size) of vectors, by the names of inputs. A picture that
        several images share is read and encoded once.

    Raises:
        UserError: a picture that cannot be read or does not fit, or one is missing that the
            network always has to be told.
    """
    found: Arrays = {}
    for one in conditions:
        if isinstance(one, MapCondition):
            given = [row.get(one.name) for row in rows]
            distinct = {id(picture): picture for picture in given}
            told = {key: _arrays(one, picture, canvas) for key, picture in distinct.items()}
            for entry in one.inputs():
                each = [told[id(picture)][entry.name] for picture in given]
                found[entry.name] = np.concatenate(each)
    return found


def _arrays(condition: MapCondition, given: Any, canvas: Canvas) -> Arrays:
    """Inputs of one image."""
    if isinstance(condition, InpaintingCondition):
        if given is not None:
            raise UserError(
                f"{condition.name}: is told by the picture to start from and its mask; give "
                "init_image and mask (--init-image, --mask)"
            )
        picture = _inpainting_picture(canvas)
    elif given is not None:
        picture = read_picture(condition, given, canvas.size, canvas.pixels)
    elif not condition.null:
        raise condition.refuse_null()
    else:
        return {
            one.name: np.zeros(
                (1, *(canvas.latent_size if one.enters == "concat" else ()), one.size), np.float32
            )
            for one in condition.inputs()
        }
    return condition.arrays(picture[None], canvas.latent_size, canvas.encode)


def _inpainting_picture(canvas: Canvas) -> np.ndarray:
    """Picture to paint in with its mask, float32 (H, W, C + 1); for none all is to be painted."""
    image = np.zeros((*canvas.size, canvas.pixels.channels), np.float32)
    mask = np.ones(canvas.size, np.float32)
    if canvas.init_image is not None and canvas.repaint is not None:
        image, mask = canvas.pixels.to_images(canvas.init_image), canvas.repaint
    return with_hole(image, mask)


def read_picture(
    condition: MapCondition, given: Any, size: tuple[int, int], pixels: PixelFormat = RGB
) -> np.ndarray:
    """Picture of a condition, ready for `condition.arrays`.

    Another shape than that of the output is cropped, with a warning; an array has to have it.

    Args:
        condition: to be told.
        given: see `utils.images.pictures`.
        size: (height, width) of the output, in pixels.
        pixels: format of the model.

    Returns:
        float32 (H, W, C) in [-1, 1], of `condition.picture_size`.

    Raises:
        UserError: no picture, one that cannot be read, or an array of another shape.
    """
    name, wanted = condition.name, condition.picture_size(size)
    pixels = condition.format_of(pixels)
    picture = open_given(name, given, pixels)
    height, width = found = own_size(name, picture)
    if abs(width - size[1] * height / size[0]) > 1:
        if hasattr(given, "__array__") and not isinstance(given, Image.Image):
            raise UserError(
                f"{name}: an array of {in_pixels(found)} for a picture of {in_pixels(wanted)}; "
                "give the height and width of the output, or crop it"
            )
        warnings.warn(
            f"{name}: {in_pixels(found)}, scaled and cropped to {in_pixels(wanted)}", stacklevel=2
        )
    return pixels.to_images(read_given(name, picture, wanted, pixels))
