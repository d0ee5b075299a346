"""Low-resolution condition: the image reduced by a factor, for super-resolution.

    training     image ─► mean of r × r pixels ─► + level · noise ─► space to depth ─► map
    generation   picture ─► reduced to H / r ─► space to depth ─► map,  level 0

The level of the Gaussian noise is drawn uniformly from 0 to `noise` for each example and told to
the network by a second input, so that it learns not to trust its first one too much and still
knows it clean (conditioning augmentation, Ho et al. 2022, Cascaded Diffusion Models, §4.2).

A reduced picture of H / r pixels lies under h = H / f latents: with r ≤ f each position has
d × d of its pixels, d = ⌈f / r⌉, and with r > f it is enlarged to the size of the latents.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from PIL import Image

from latentddpm.conditions.base import Arrays, Encode, Input
from latentddpm.conditions.picture import MapCondition, Stage
from latentddpm.utils.images.maps import resized, space_to_depth

LEVEL = "_level"
"""End of the name of the second input: the level of the noise."""


@dataclass(frozen=True)
class LowResolutionCondition(MapCondition):
    """Low-resolution condition: the image reduced by a factor, and the level of its noise.

    Attributes:
        factor: r, 2 … 8.
        noise: highest level of the noise, in units of the range [-1, 1]; 0 for none, and for no
            second input.
        depth: d, pixels of the picture for each position of the latents along a side.
    """

    factor: int = 2
    noise: float = 0.0
    depth: int = 4

    kind: ClassVar[str] = "low_resolution"

    @classmethod
    def of_stage(cls, name: str, settings: Any, stage: Stage, null: bool = True) -> Self:
        depth = math.ceil(stage.downsample_factor / settings.factor)
        channels = depth**2 * stage.image_channels
        return cls(name, null, channels, settings.factor, settings.noise, depth)

    def inputs(self) -> tuple[Input, ...]:
        level = (Input(self.name + LEVEL, "projection", 1),) if self.noise else ()
        return (Input(self.name, "concat", self.channels), *level)

    def describe(self) -> str:
        return f"a picture of 1/{self.factor} of the width and height"

    def picture_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of the reduced picture of an image of `size`, in pixels."""
        height, width = size
        return max(height // self.factor, 1), max(width // self.factor, 1)

    def picture(self, image: np.ndarray, rng: np.random.Generator | None = None) -> np.ndarray:
        return resized(image, self.picture_size(image.shape[:2]), Image.Resampling.BOX)

    def arrays(
        self,
        pictures: np.ndarray,
        size: tuple[int, int],
        encode: Encode | None = None,
        rngs: Sequence[np.random.Generator] | None = None,
    ) -> Arrays:
        levels = np.zeros((len(pictures), 1), np.float32)
        if self.noise and rngs is not None:
            levels = np.stack([rng.uniform(0, self.noise, 1) for rng in rngs]).astype(np.float32)
            drawn = [rng.standard_normal(pictures.shape[1:], np.float32) for rng in rngs]
            pictures = pictures + levels[..., None, None] * np.stack(drawn)
        wanted = tuple(side * self.depth for side in size)
        if pictures.shape[1:3] != wanted:
            pictures = np.stack([resized(one, wanted) for one in pictures])
        found = {self.name: self.checked(space_to_depth(pictures, self.depth))}
        return {**found, self.name + LEVEL: levels} if self.noise else found
