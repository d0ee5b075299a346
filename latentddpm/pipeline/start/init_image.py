"""Init image of image-to-image and inpainting: a picture to start from, and its mask.

Both are files, PIL images or arrays (`utils.images.pictures`), and are read like training images
(upright, in the pixel format of the model). Then they are scaled, with their aspect ratio, to
cover the output size, and cropped to it, both in the same way. White areas of the mask are
repainted, black areas are kept, gray ones are mixed. Neither Keras nor TensorFlow is imported
here, so that a command refuses a wrong file at once.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from numbers import Real

import numpy as np
from PIL import Image

from latentddpm.data.pictures.given import (
    file_name,
    in_pixels,
    open_given,
    own_size,
    read_given,
)
from latentddpm.data.pictures.masks import read_mask
from latentddpm.diffusion.options import check_start_step
from latentddpm.errors import UserError
from latentddpm.utils.images.pictures import Picture
from latentddpm.utils.images.pixel_format import RGB, PixelFormat

DEFAULT_STRENGTH = 0.75
DEFAULT_STRENGTH_WITH_MASK = 1.0


@dataclass(frozen=True)
class InitImage:
    """Picture to start from, at the output size, with its mask.

    Attributes:
        init_image: in the pixel format of the model, (H, W, C); uint8 (H, W, 3) by default.
        mask: uint8 (H, W), from 0 (keep) to 255 (repaint); None repaints everything.
        strength: share of the sampler's steps that is run, in (0, 1]; 1 starts from (almost) pure
            noise.
    """

    init_image: np.ndarray
    mask: np.ndarray | None
    strength: float

    def first_step(self, num_steps: int) -> int:
        """First step of a sampler, which runs its last ⌊num_steps · strength⌋ steps.

        Args:
            num_steps: of the sampler.

        Returns:
            Index of the step, 0 … num_steps − 1.

        Raises:
            UserError: no step would be left.
        """
        left = min(int(num_steps * self.strength), num_steps)
        if left < 1:
            raise UserError(
                f"strength: {self.strength:g} leaves none of {num_steps} steps to run; expected "
                f"at least {1 / num_steps:.3g}, or more steps"
            )
        return num_steps - left

    @property
    def uniform(self) -> str | None:
        """Colour of a mask of one colour, "white" or "black"; else None."""
        values = set() if self.mask is None else {self.mask.min(), self.mask.max()}
        return {(0,): "black", (255,): "white"}.get(tuple(values))

    @property
    def repaint(self) -> np.ndarray:
        """Mask as weights, float32 (H, W), from 0 (keep) to 1 (repaint)."""
        return self.mask.astype(np.float32) / 255

    def composite(self, images: np.ndarray) -> np.ndarray:
        """Generated images with the picture's own pixels where the mask keeps them.

        Args:
            images: (N, H, W, C), of the dtype of `init_image`.

        Returns:
            The same.
        """
        if self.mask is None:
            return images
        repaint = self.repaint[..., None]
        mixed = repaint * images + (1 - repaint) * self.init_image
        dtype = self.init_image.dtype
        return (mixed if dtype == np.float32 else np.rint(mixed)).astype(dtype)


def read_init_image(
    init_image: Picture | None,
    mask: Picture | None,
    strength: float | None,
    size: tuple[int, int],
    pixels: PixelFormat = RGB,
) -> InitImage | None:
    """Read the picture to start from, and its mask.

    A file or PIL image of another size is scaled and cropped, with a warning; an array has to have
    the size.

    Args:
        init_image: see `utils.images.pictures`; None for no picture.
        mask: the same, of the picture's own size; None for none.
        strength: in (0, 1]; None for 1 with a mask, else 0.75.
        size: (height, width) of the output, in pixels.
        pixels: format of the model. An array of its own dtype has values of this format.

    Returns:
        The picture at the output size, or None without one.

    Raises:
        UserError: no picture or an unreadable one, a mask of another size than the picture or
            without a white pixel, a strength out of range, or a mask or strength without a
            picture.
    """
    if init_image is None:
        for name, value in (("mask", mask), ("strength", strength)):
            if value is not None:
                raise UserError(f"{name}: needs a picture to start from; give init_image too")
        return None
    if pixels.spatial_dims == 1:
        raise UserError(
            "init_image: this model draws signals, which start from noise; leave it out, or give "
            "generate(latents=…) in Python"
        )
    if strength is None:
        strength = DEFAULT_STRENGTH if mask is None else DEFAULT_STRENGTH_WITH_MASK
    number = isinstance(strength, Real) and not isinstance(strength, bool)
    if not (number and 0 < strength <= 1):
        raise UserError(f"strength: {strength!r}, expected above 0 (keep) up to 1 (redraw)")
    picture = open_given("init_image", init_image, pixels)
    picture_size = own_size("init_image", picture)
    repaint = None
    if mask is not None:
        of = f"the picture {file_name(picture)}".strip()
        repaint = read_mask("mask", mask, size, picture_size, of)
    if picture_size != size:
        if hasattr(init_image, "__array__") and not isinstance(init_image, Image.Image):
            raise UserError(
                f"init_image: an array of {in_pixels(picture_size)} for a picture of "
                f"{in_pixels(size)}; give its height and width, or scale it"
            )
        warnings.warn(
            f"{file_name(picture).strip() or 'init_image'}: {in_pixels(picture_size)}, scaled and "
            f"cropped to {in_pixels(size)}",
            stacklevel=3,
        )
    values = read_given("init_image", picture, size, pixels)
    return InitImage(values, repaint, float(strength))


def first_step(start: InitImage | None, num_steps: int, start_step: int) -> int:
    """First step of a sampler: that of a picture's strength, or else `start_step`.

    Args:
        start: picture to start from; None for noise.
        num_steps: of the sampler.
        start_step: of the settings; 0 with a picture.

    Returns:
        Index of the step, 0 … num_steps − 1.

    Raises:
        UserError: no step would be left, or a `start_step` beside a picture.
    """
    if start is None:
        check_start_step(start_step, num_steps)
        return start_step
    if start_step:
        raise UserError(
            f"start_step: {start_step} beside init_image, where strength says how many steps are "
            "run; expected start_step 0"
        )
    return start.first_step(num_steps)
