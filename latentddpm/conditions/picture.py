"""Picture condition: a second picture of each image, such as a depth map or the image before.

    picture (H, W, C) ─► autoencoder ─► latents (h, w, c)             Brooks 2023 (InstructPix2Pix)
                      └► space to depth ─► (h, w, f² · C)             Saharia 2022 (Palette)

Through the autoencoder the map is the posterior's mean, scaled as the noisy latents are: few
channels, for pictures that look like images. Through pixels nothing of it is lost, which fine
lines need. "Not told" is all zeros.

`MapCondition` is what all kinds of pictures have in common.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np

from latentddpm.conditions.base import Arrays, Encode, Input, PictureCondition
from latentddpm.errors import UserError
from latentddpm.utils.images.maps import at_latents
from latentddpm.utils.images.pixel_format import PixelFormat

AUTOENCODER, PIXELS = THROUGH = ("autoencoder", "pixels")
"""Ways of a picture to the size of the latents."""


class Stage(NamedTuple):
    """Sizes of the first stage of a model.

    Attributes:
        downsample_factor: f, pixels for each position of the latents along a side; 1 for pixels.
        image_channels: of the images.
        latent_channels: of the latents.
        encodes: True for an autoencoder, False for a model of pixels.
    """

    downsample_factor: int
    image_channels: int
    latent_channels: int
    encodes: bool


@dataclass(frozen=True)
class MapCondition(PictureCondition):
    """Map condition: base class of the kinds of pictures.

    Attributes:
        channels: of the map.
        encoded: True where the picture goes through the autoencoder.
        random: True where `picture` draws something, so that each use has another picture.
    """

    channels: int = 4

    encoded: ClassVar[bool] = False
    random: ClassVar[bool] = False

    @classmethod
    def of_stage(cls, name: str, settings: Any, stage: Stage, null: bool = True) -> Self:
        """Condition for training on the latents of a first stage.

        Args:
            name: of the condition.
            settings: `config.ConditionConfig`.
            stage: sizes of the first stage.
            null: see `Condition`.

        Raises:
            UserError: a setting that does not fit the first stage, or another setting.
        """
        raise NotImplementedError

    def inputs(self) -> tuple[Input, ...]:
        return (Input(self.name, "concat", self.channels),)

    def check(self, value: Any) -> Any:
        """Picture as it was given: a file, PIL image or array; it is read when its size is known.

        Args:
            value: see `utils.images.pictures`.
        """
        return value

    def picture_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Size (height, width) of the picture of an image of `size`, in pixels."""
        return size

    def format_of(self, pixels: PixelFormat) -> PixelFormat:
        """Format of a picture that is made of an image in the format `pixels`."""
        return pixels

    def arrays(
        self,
        pictures: np.ndarray,
        size: tuple[int, int],
        encode: Encode | None = None,
        rngs: Sequence[np.random.Generator] | None = None,
    ) -> Arrays:
        """Inputs of the network.

        Args:
            pictures: float32 (N, H, W, C) in [-1, 1], of `picture_size` and of the channels that
                the kind has.
            size: (h, w) of the latents.
            encode: of the autoencoder; None for a model of pixels.
            rngs: one for each picture, for what training draws at each use; None otherwise.

        Raises:
            UserError: pictures of another size or of other channels.
        """
        return {self.name: self.checked(at_latents(pictures, size))}

    def checked(self, maps: np.ndarray) -> np.ndarray:
        """Maps, float32 (N, h, w, c), if they have the channels of the condition.

        Raises:
            UserError: they have others.
        """
        if maps.shape[-1] != self.channels:
            raise UserError(
                f"{self.name}: a map of {maps.shape[-1]} channels, expected {self.channels}"
            )
        return np.ascontiguousarray(maps, np.float32)


@dataclass(frozen=True)
class PairCondition(MapCondition):
    """Pair condition: a second picture of each image.

    Attributes:
        through: "autoencoder" or "pixels".
        scale: factor of the latents of the picture, beside that of the autoencoder; networks of
            InstructPix2Pix are told latents without a scaling factor.

    Example:
        >>> lines = PairCondition("lines", through="pixels", channels=4)
        >>> lines.arrays(np.zeros((1, 4, 4, 1), "float32"), (2, 2))["lines"].shape
        (1, 2, 2, 4)
    """

    through: str = AUTOENCODER
    scale: float = 1.0

    kind: ClassVar[str] = "picture"
    made: ClassVar[bool] = False

    @classmethod
    def of_stage(cls, name: str, settings: Any, stage: Stage, null: bool = True) -> Self:
        through = settings.through or (AUTOENCODER if stage.encodes else PIXELS)
        if through == AUTOENCODER and not stage.encodes:
            raise UserError(
                f"conditions.{name}.through: autoencoder, but this model has none; expected pixels"
            )
        pixels = stage.downsample_factor**2 * stage.image_channels
        channels = stage.latent_channels if through == AUTOENCODER else pixels
        return cls(name, null, channels, through)

    @property
    def encoded(self) -> bool:
        """True where the picture goes through the autoencoder."""
        return self.through == AUTOENCODER

    def describe(self) -> str:
        return "a picture"

    def arrays(
        self,
        pictures: np.ndarray,
        size: tuple[int, int],
        encode: Encode | None = None,
        rngs: Sequence[np.random.Generator] | None = None,
    ) -> Arrays:
        if self.encoded:
            return {self.name: self.checked(self.scale * encode(pictures))}
        return super().arrays(pictures, size)
