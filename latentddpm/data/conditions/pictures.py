"""Sources of picture conditions: the map of every image of a batch.

    PixelMaps     pictures ─► drawn from ─► space to depth             read or made when used
    LatentMaps    pictures ─► encoder, once ─► latents cache           a folder of its own

Everything is a function of the image and of the random bits of the example, so a run that resumes
sees the same. A mirrored image has the mirrored picture.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from latentddpm.conditions.base import Arrays
from latentddpm.conditions.picture import MapCondition, Stage
from latentddpm.config.conditions import ConditionConfig
from latentddpm.data.catalog.catalog import Catalog
from latentddpm.data.conditions.catalogs import (
    HoleCatalog,
    MadeCatalog,
    PairCatalog,
    PictureCatalog,
)
from latentddpm.data.conditions.pairs import find_pairs
from latentddpm.data.latents.cache import LatentsCache
from latentddpm.data.latents.pixels import PixelLatents
from latentddpm.errors import UserError
from latentddpm.models.autoencoder.latent_space import LatentSpace
from latentddpm.utils.images.pixel_format import PixelFormat

MASKS_VERSION = 1
"""Version of `random_mask`: to be increased when it draws other masks from the same bits."""


class Maps:
    """Maps of a picture condition, with random access: a `ConditionSource`.

    Args:
        condition: that the pictures are of.
        size: (h, w) of the latents.
    """

    def __init__(self, condition: MapCondition, size: tuple[int, int]) -> None:
        self.condition, self.size = condition, size

    note = ""
    """Line for people; "" for none."""

    def batch(
        self, images: np.ndarray, mirrored: np.ndarray, dropped: np.ndarray, bits: np.ndarray
    ) -> list[np.ndarray]:
        """Inputs of the network for a batch.

        Args:
            images: rows of the catalog, int64 (B,).
            mirrored: True for those that are mirrored, bool (B,).
            dropped: True for those that are not told, bool (B,).
            bits: 32 random bits of each example, int64 (B,).

        Returns:
            float32 (B, h, w, c), and (B, size) of vectors, for each input of the condition.
        """
        arrays = self.arrays(images, np.asarray(mirrored, bool), bits)
        if np.any(dropped):
            for name, nothing in self.condition.null_arrays(arrays).items():
                arrays[name] = arrays[name].copy()
                arrays[name][dropped] = nothing[dropped]
        return [arrays[one.name] for one in self.condition.inputs()]

    def arrays(self, images: np.ndarray, mirrored: np.ndarray, bits: np.ndarray) -> Arrays:
        """Inputs of the network by name, all of them told; see `batch`."""
        raise NotImplementedError


class PixelMaps(Maps):
    """Maps of pictures whose pixels are the channels.

    Args:
        condition: see `Maps`.
        size: (h, w) of the latents.
        pictures: of all images, with mirrored rows; of a random kind the images themselves.
    """

    def __init__(
        self, condition: MapCondition, size: tuple[int, int], pictures: PixelLatents
    ) -> None:
        super().__init__(condition, size)
        self.pictures = pictures

    def arrays(self, images: np.ndarray, mirrored: np.ndarray, bits: np.ndarray) -> Arrays:
        pictures, _ = self.pictures.gather(images + self.pictures.count * mirrored)
        rngs = [np.random.Generator(np.random.Philox(key=int(one))) for one in bits]
        if self.condition.random:
            pairs = zip(pictures, rngs, strict=True)
            pictures = np.stack([self.condition.picture(*pair) for pair in pairs])
        return self.condition.arrays(pictures, self.size, rngs=rngs)


class LatentMaps(Maps):
    """Maps of pictures that went through the autoencoder.

    Args:
        condition: see `Maps`.
        cache: moments of the pictures, with mirrored rows where examples are mirrored.
        latent_space: of the autoencoder.
        images: number N of images.
        holes: that the pictures have; None for none.
        side: (H, W) of the images, in pixels.
    """

    def __init__(
        self,
        condition: MapCondition,
        cache: LatentsCache,
        latent_space: LatentSpace,
        images: int,
        holes: HoleCatalog | None,
        side: tuple[int, int],
    ) -> None:
        super().__init__(condition, cache.latent_shape[:2])
        self.cache, self.latent_space, self.count = cache, latent_space, images
        self.holes, self.side = holes, side

    def arrays(self, images: np.ndarray, mirrored: np.ndarray, bits: np.ndarray) -> Arrays:
        rows = images + self.count * (bits % (self.cache.count // self.count))
        mean, _ = self.cache.gather(rows + self.cache.count * mirrored)
        latents = self.latent_space.to_latents(mean)
        pictures = np.zeros((len(rows), *self.side, int(self.holes is not None)), np.float32)
        if self.holes is not None:
            for one, row, turned in zip(pictures, rows, mirrored, strict=True):
                mask = self.holes.mask(int(row), self.side)
                one[..., 0] = mask[:, ::-1] if turned else mask
        return self.condition.arrays(pictures, self.size, lambda _: latents)


@dataclass(frozen=True)
class Frame:
    """Frame of the pictures of a run: what all of them have in common with its images.

    Attributes:
        size: (height, width) of the images, in pixels.
        pixels: format of the images.
        stage: sizes of the first stage.
        mirrored: True where half of the examples are mirrored.
        latent_space: of the first stage.
        encode: (catalog of pictures, folder, what they are) → their latents cache; None for a
            model of pixels.
    """

    size: tuple[int, int]
    pixels: PixelFormat
    stage: Stage
    mirrored: bool
    latent_space: LatentSpace
    encode: Callable[[PictureCatalog, Path, str], LatentsCache] | None = None

    @property
    def latent_size(self) -> tuple[int, int]:
        """Size (h, w) of the latents."""
        height, width = (side // self.stage.downsample_factor for side in self.size)
        return height, width


def open_maps(
    condition: MapCondition,
    settings: ConditionConfig,
    catalog: Catalog,
    frame: Frame,
    folder: Path,
) -> Maps:
    """Maps of a condition for all images of a catalog.

    Args:
        condition: see `Maps`.
        settings: of the condition.
        catalog: of the images.
        frame: of the run.
        folder: of what is kept of the pictures: of a latents cache, and of what pairs are.

    Raises:
        UserError: pairs are missing or do not fit, or a picture cannot be read or encoded.
        OSError: the folder cannot be written.
    """
    pairs = None
    if not condition.made:
        pairs = PairCatalog(catalog, find_pairs(catalog, condition.name, settings, folder))
    if condition.encoded:
        holes = None if pairs is not None else HoleCatalog(catalog, settings.masks)
        what = condition.kind + f" {MASKS_VERSION}" * (holes is not None)
        cache = frame.encode(pairs or holes, folder, what)
        sizes = (len(catalog), holes, frame.size)
        return LatentMaps(condition, cache, frame.latent_space, *sizes)
    size, pixels, pictures = condition.picture_size(frame.size), frame.pixels, pairs
    if condition.random:
        pictures = catalog
    elif pairs is None:
        pictures = MadeCatalog(catalog, condition, frame.size, frame.pixels)
        pixels = condition.format_of(pixels)
    kept = PixelLatents.of(pictures, size, pixels, mirrored=frame.mirrored)
    return PixelMaps(condition, frame.latent_size, kept)


def check_maps(conditions: list[MapCondition], aspect_buckets: bool, background: str) -> None:
    """Refuse settings of the data that picture conditions cannot have.

    Args:
        conditions: picture conditions of a run.
        aspect_buckets, background: settings of its section `data:`.

    Raises:
        UserError: aspect buckets, or backgrounds that are drawn for each use.
    """
    for one in conditions:
        if aspect_buckets:
            raise UserError(
                f"data.aspect_buckets: true beside conditions.{one.name}; pictures are told in "
                "one shape, expected false"
            )
        if background == "random":
            raise UserError(
                f"data.background: random beside conditions.{one.name}, whose picture would have "
                "another background than its image; expected white"
            )
