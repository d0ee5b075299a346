"""Sources of picture conditions: the map of every image of a batch.

    plan_maps ─► PlannedMaps     second pictures are there, and fit
      .open ─► PixelMaps         pictures ─► space to depth               read or made when used
             └► LatentMaps       pictures ─► encoder, once ─► latents cache in its own folder

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
from latentddpm.config import ConditionConfig, DiffusionData
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

    def value(self, image: int) -> np.ndarray | None:
        """Picture of an image as `generate` takes it, values (H, W, C) of its format; None where
        it is a mask."""
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

    def value(self, image: int) -> np.ndarray | None:
        if self.condition.random:
            return None
        pictures, _ = self.pictures.gather([image])
        return self.pictures.format.from_images(pictures[0])


class LatentMaps(Maps):
    """Maps of pictures that went through the autoencoder.

    Args:
        condition: see `Maps`.
        cache: moments of the pictures, with mirrored rows where examples are mirrored.
        images: number N of images.
        pictures: that were encoded.
        frame: of the run.
    """

    def __init__(
        self,
        condition: MapCondition,
        cache: LatentsCache,
        images: int,
        pictures: PictureCatalog,
        frame: Frame,
    ) -> None:
        super().__init__(condition, frame.latent_size)
        self.cache, self.count, self.pictures, self.frame = cache, images, pictures, frame

    def arrays(self, images: np.ndarray, mirrored: np.ndarray, bits: np.ndarray) -> Arrays:
        rows = images + self.count * (bits % (self.cache.count // self.count))
        mean, _ = self.cache.gather(rows + self.cache.count * mirrored)
        latents = self.frame.latent_space.to_latents(mean)
        has_masks = isinstance(self.pictures, HoleCatalog)
        pictures = np.zeros((len(rows), *self.frame.size, int(has_masks)), np.float32)
        for one, row, turned in zip(pictures, rows, mirrored, strict=True):
            if has_masks:
                mask = self.pictures.mask(int(row), self.frame.size)
                one[..., 0] = mask[:, ::-1] if turned else mask
        return self.condition.arrays(pictures, self.size, lambda _: latents)

    def value(self, image: int) -> np.ndarray | None:
        if isinstance(self.pictures, HoleCatalog):
            return None
        return self.pictures.image(image, self.frame.size, self.frame.pixels)


@dataclass(frozen=True, eq=False)
class PlannedMaps:
    """Maps of a condition before anything is read or encoded, made by `plan_maps`.

    Attributes:
        condition: that they tell.
        settings: of the condition.
        catalog: of the images.
        pairs: second pictures of all images; None for pictures that are made.
    """

    condition: MapCondition
    settings: ConditionConfig
    catalog: Catalog
    pairs: PairCatalog | None

    @property
    def digest(self) -> str:
        """SHA-256 of all second pictures; "" where there are none."""
        return "" if self.pairs is None else self.pairs.digest

    def open(self, frame: Frame, folder: Path) -> Maps:
        """Maps of all images of the catalog.

        Args:
            frame: of the run.
            folder: of the latents cache of the pictures, if there is one.

        Raises:
            UserError: a picture cannot be read or encoded.
            OSError: the folder cannot be written.
        """
        condition, catalog, pairs = self.condition, self.catalog, self.pairs
        if condition.encoded:
            holes = None if pairs is not None else HoleCatalog(catalog, self.settings.masks)
            what = condition.kind + f" {MASKS_VERSION}" * (holes is not None)
            cache = frame.encode(pairs or holes, folder, what)
            sizes = (len(catalog), pairs or holes, frame)
            return LatentMaps(condition, cache, *sizes)
        size, pixels = condition.picture_size(frame.size), condition.format_of(frame.pixels)
        pictures = pairs
        if condition.random:
            pictures = catalog
        elif pairs is None:
            pictures = MadeCatalog(catalog, condition, frame.size, frame.pixels)
        kept = PixelLatents.of(pictures, size, pixels, mirrored=frame.mirrored)
        return PixelMaps(condition, frame.latent_size, kept)


def plan_maps(
    condition: MapCondition, settings: ConditionConfig, catalog: Catalog, folder: Path | None
) -> PlannedMaps:
    """Maps of a condition, planned: every image has the picture that it needs.

    Args:
        condition: to be told.
        settings: of the condition.
        catalog: of the images.
        folder: to keep what was found about second pictures in; None for nowhere.

    Raises:
        UserError: pairs are missing, or of another shape than their images.
        OSError: the folder cannot be written.
    """
    pairs = None
    if not condition.made:
        pairs = PairCatalog(catalog, find_pairs(catalog, condition.name, settings, folder))
    return PlannedMaps(condition, settings, catalog, pairs)


def check_maps(condition: MapCondition, data: DiffusionData) -> None:
    """Refuse settings of the data that a picture condition cannot have.

    Args:
        condition: of the run.
        data: section of its configuration.

    Raises:
        UserError: signals, aspect buckets, or backgrounds that are drawn for each use.
    """
    name = f"conditions.{condition.name}"
    if data.spatial_dims != 2:
        raise UserError(f"{name}: {condition.kind}, but signals have no pictures")
    if data.aspect_buckets:
        raise UserError(
            f"data.aspect_buckets: true beside {name}, but pictures are told in one shape; "
            "expected false"
        )
    if data.background == "random":
        raise UserError(
            f"data.background: random beside {name}, whose picture would have another background "
            "than its image; expected white"
        )
