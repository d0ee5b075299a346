"""Inpainting condition: which part is to be painted, and the picture around it.

    map = [mask (1 channel), picture with the hole painted gray, through the first stage (c)]

behind the noisy latents: the order of the 9 channels of Stable Diffusion's inpainting networks
(Rombach et al. 2022, §4.5). The mask is 1 where is to be painted; each position of the latents
has that of its first pixel, as in diffusers. Gray is 0, the middle of [-1, 1].

Pictures of this kind have the mask as one more channel, (H, W, C + 1). Training draws masks at
random: rectangles, ellipses, strokes of a brush, now and then the whole picture. A network that
is told nothing paints the whole picture: that is a mask of ones, not a map of zeros, in which
everything is kept. So it has no "not told" unless it is asked for, and guidance keeps the mask in
both its halves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from PIL import Image, ImageDraw

from latentddpm.conditions.base import Arrays, Encode
from latentddpm.conditions.picture import MapCondition, Stage

SHAPES = ("rectangles", "ellipses", "strokes", "all")
SHARES = (0.3, 0.2, 0.4, 0.1)
"""Shapes of masks, and how often each is drawn."""


@dataclass(frozen=True)
class InpaintingCondition(MapCondition):
    """Inpainting condition: a mask, and the picture around it.

    Attributes:
        through_pixels: True for a model of pixels, without an autoencoder.
    """

    null: bool = False
    through_pixels: bool = False

    kind: ClassVar[str] = "inpainting"
    random: ClassVar[bool] = True

    @classmethod
    def of_stage(cls, name: str, settings: Any, stage: Stage, null: bool = False) -> Self:
        return cls(name, channels=1 + stage.latent_channels, through_pixels=not stage.encodes)

    @property
    def encoded(self) -> bool:
        """True where the picture goes through the autoencoder."""
        return not self.through_pixels

    def describe(self) -> str:
        return "a picture with a mask"

    def picture(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return with_hole(image, random_mask(image.shape[:2], rng))

    def arrays(
        self,
        pictures: np.ndarray,
        size: tuple[int, int],
        encode: Encode | None = None,
        rngs: Sequence[np.random.Generator] | None = None,
    ) -> Arrays:
        around, mask = pictures[..., :-1], pictures[..., -1:]
        if self.encoded:
            around = encode(around)
        return {self.name: self.checked(np.concatenate([mask_at(mask, size), around], axis=-1))}


def with_hole(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Image with its hole painted gray, and the mask as one more channel.

    Args:
        image: float32 (H, W, C) in [-1, 1].
        mask: (H, W), from 0 (keep) to 1 (paint); from ½ on a pixel is painted.

    Returns:
        float32 (H, W, C + 1); the mask in it is 0 or 1.
    """
    hole = (np.asarray(mask, np.float32) >= 0.5)[..., None]
    return np.concatenate([np.where(hole, np.float32(0), image), hole], axis=-1, dtype=np.float32)


def mask_at(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Mask at the size of the latents: of each position that of its first pixel.

    Args:
        mask: (N, H, W, 1).
        size: (h, w), divisors of H and W.
    """
    rows, columns = (
        np.arange(side) * whole // side for side, whole in zip(size, mask.shape[1:3], strict=True)
    )
    return mask[:, rows][:, :, columns]


def random_mask(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Mask of a random shape.

    Args:
        size: (height, width), in pixels.
        rng: of everything that is drawn.

    Returns:
        bool (H, W), True where is to be painted; at least one pixel.
    """
    height, width = size
    shape = SHAPES[rng.choice(len(SHAPES), p=SHARES)]
    picture = Image.new("1", (width, height), shape == "all")
    draw = ImageDraw.Draw(picture)
    sides = np.array([width, height])
    if shape in ("rectangles", "ellipses"):
        for _ in range(rng.integers(1, 4)):
            extent = sides * rng.uniform(0.15, 0.7, 2)
            corner = rng.uniform(0, 1, 2) * (sides - extent)
            box = [*corner.round(), *np.maximum(corner + extent - 1, corner).round()]
            (draw.rectangle if shape == "rectangles" else draw.ellipse)(box, fill=1)
    elif shape == "strokes":
        for _ in range(rng.integers(1, 5)):
            brush = max(round(rng.uniform(0.05, 0.2) * min(size)), 1)
            points = rng.uniform(0, 1, (rng.integers(2, 7), 2)) * sides
            draw.line([tuple(one) for one in points], fill=1, width=brush, joint="curve")
    mask = np.array(picture)
    if not mask.any():
        mask[rng.integers(height), rng.integers(width)] = True
    return mask
