"""The picture that image-to-image and inpainting start from, and the mask of what to repaint.

Both are read like training images (upright, 8 bits, transparency over white), scaled to cover
the size that is drawn and cropped to it, never stretched, and both in the same way: a mask
belongs to its picture. White is repainted, black is kept, gray is mixed. Neither Keras nor
TensorFlow is needed here, so that a command refuses a wrong file at once.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from latentddpm.data.images import UnreadableImage, read_image, read_whole
from latentddpm.errors import UserError

DEFAULT_STRENGTH = 0.75
DEFAULT_STRENGTH_WITH_MASK = 1.0

Source = str | Path | np.ndarray


@dataclass(frozen=True)
class InitImage:
    """A picture to start from, at the size that is drawn.

    Attributes:
        init_image: uint8 (H, W, 3).
        mask: uint8 (H, W), 0 (keep) .. 255 (repaint), or None to change everything.
        strength: how far it may go from the picture, in (0, 1]; 1 starts from (almost) pure
            noise.
    """

    init_image: np.ndarray
    mask: np.ndarray | None
    strength: float

    def first_step(self, num_steps: int) -> int:
        """Where a sampler of `num_steps` starts: it runs the last ⌊num_steps · strength⌋.

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
    def repaint(self) -> np.ndarray:
        """The mask as weights, float32 (H, W), 0 (keep) .. 1 (repaint)."""
        return self.mask.astype(np.float32) / 255

    def composite(self, images: np.ndarray) -> np.ndarray:
        """What was drawn, uint8 (N, H, W, 3), with the picture's own pixels where it is kept."""
        if self.mask is None:
            return images
        repaint = self.repaint[..., None]
        mixed = repaint * images + (1 - repaint) * self.init_image
        return np.rint(mixed).astype(np.uint8)


def read_init_image(
    init_image: Source | None,
    mask: Source | None,
    strength: float | None,
    size: tuple[int, int],
) -> InitImage | None:
    """The picture to start from, or None when there is none.

    A file of another size is scaled and cropped, with a warning that says so; an array has to
    be of the size already.

    Args:
        init_image: a file, or uint8 (H, W, 3).
        mask: a file or uint8 (H, W), as large as the picture before it is scaled.
        strength: in (0, 1]; None for 1 with a mask, else 0.75.
        size: (height, width) to draw.

    Raises:
        UserError: an unreadable file, another size of mask than of picture, a strength out of
            range, or a mask or strength without a picture.
    """
    if init_image is None:
        for name, value in (("mask", mask), ("strength", strength)):
            if value is not None:
                raise UserError(f"{name}: needs a picture to start from; give init_image too")
        return None
    if strength is None:
        strength = DEFAULT_STRENGTH if mask is None else DEFAULT_STRENGTH_WITH_MASK
    if not 0 < strength <= 1:
        raise UserError(f"strength: {strength!r}, expected above 0 (keep) up to 1 (redraw)")
    own_size = _own_size("init_image", init_image, 3)
    if mask is not None:
        mask_size = _own_size("mask", mask, 2)
        if mask_size != own_size:
            raise UserError(
                f"mask: {_name(mask)}is {_pixels(mask_size)} and the picture "
                f"{_name(init_image)}is {_pixels(own_size)}; both must have the same size"
            )
    if own_size != size:
        if isinstance(init_image, np.ndarray):
            raise UserError(
                f"init_image: an array of {_pixels(own_size)} for a picture of {_pixels(size)}; "
                "give its height and width, or scale it"
            )
        warnings.warn(
            f"{init_image}: {_pixels(own_size)}, scaled and cropped to {_pixels(size)}",
            stacklevel=3,
        )
    return InitImage(_read(init_image, size), _read_mask(mask, size), float(strength))


def _own_size(name: str, source: Source, rank: int) -> tuple[int, int]:
    """(height, width) of a file when upright, or of an array of `rank`."""
    if isinstance(source, np.ndarray):
        shape = ("H", "W", 3)[:rank]
        if source.dtype != np.uint8 or source.ndim != rank or source.shape[2:] != shape[2:]:
            raise UserError(
                f"{name}: {source.dtype} {source.shape}, expected uint8 "
                f"({', '.join(map(str, shape))})"
            )
        return source.shape[:2]
    try:
        width, height = read_whole(source).size
    except UnreadableImage as error:
        raise UserError(f"{name}: {error}") from None
    return height, width


def _read(source: Source, size: tuple[int, int]) -> np.ndarray:
    return source if isinstance(source, np.ndarray) else read_image(source, size)


def _read_mask(mask: Source | None, size: tuple[int, int]) -> np.ndarray | None:
    if mask is None:
        return None
    return np.asarray(Image.fromarray(_read(mask, size)).convert("L"))


def _name(source: Source) -> str:
    return "" if isinstance(source, np.ndarray) else f"{source} "


def _pixels(size: tuple[int, int]) -> str:
    """As people write it: width × height."""
    return f"{size[1]}×{size[0]} pixels"
