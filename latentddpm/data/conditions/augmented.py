"""Augmented images of a catalog, and what the network is told of them.

    row i            image i as it is
    row i + v · N    its variant v = 1 … V, changed at random

The changes of a variant are a function of the digest of its row, which says all that they depend
on: the image, the strengths and the number of the variant. So a latents cache knows the rows that
it has, and keeps those that stay; runs with other seeds share it. Which variant an example sees is
drawn from the seed in the input pipeline, as its flip is.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np

from latentddpm.conditions.number import ChangesCondition
from latentddpm.config import AugmentConfig, DiffusionRun
from latentddpm.config.augment import STRENGTHS
from latentddpm.data.catalog.catalog import Catalog
from latentddpm.data.conditions.catalogs import PictureCatalog, Size
from latentddpm.data.images import WHITE
from latentddpm.data.pictures.augment import VERSION, Changes, augmented, draw_changes, scales
from latentddpm.utils.images.pixel_format import RGB, PixelFormat


def in_colour(pixels: PixelFormat) -> bool:
    """True for a format whose colours can be changed.

    Args:
        pixels: the format.
    """
    return pixels.channels in (3, 4)


def change_image(
    catalog: Catalog,
    row: int,
    size: Size,
    pixels: PixelFormat,
    background: tuple[int, int, int] | None,
    changes: Changes,
) -> np.ndarray:
    """Values of an image of a catalog, changed.

    Args:
        catalog: of the images.
        row: of the image.
        size: (height, width) that it is scaled and cropped to.
        pixels, background: see `data.images.read_image`.
        changes: what to do.

    Raises:
        UnreadableImage, OSError: see `Catalog.image`.
    """
    return augmented(
        lambda larger: catalog.image(row, larger, pixels, None), size, changes, pixels, background
    )


def changes_condition(config: DiffusionRun) -> ChangesCondition:
    """Condition that tells the changes of a run's images.

    Args:
        config: of the run, complete.
    """
    used = scales(config.data.augment, in_colour(PixelFormat.of(config.data))).by_name()
    return ChangesCondition.of_scales({name: scale for name, scale in used.items() if scale})


class AugmentedCatalog(PictureCatalog):
    """Catalog of the images as they are, and of V changed variants of each.

    Args:
        catalog: of the N images.
        settings: of the augmentation.
        pixels: format of the run.
    """

    def __init__(
        self, catalog: Catalog, settings: AugmentConfig, pixels: PixelFormat = RGB
    ) -> None:
        strengths = {name: getattr(settings, name) for name in STRENGTHS}
        common = json.dumps([VERSION, strengths]).encode()
        own = np.ascontiguousarray(catalog.images["sha256"])
        digests = np.empty((1 + settings.variants, *own.shape), np.uint8)
        digests[0] = own
        for variant in range(1, len(digests)):
            after = common + variant.to_bytes(4, "little")
            for row, digest in enumerate(own):
                made = hashlib.sha256(digest.tobytes() + after).digest()
                digests[variant, row] = np.frombuffer(made, np.uint8)
        super().__init__(catalog, digests.reshape(-1, own.shape[-1]))
        self.settings, self.in_colour = settings, in_colour(pixels)

    def changes(self, index: int) -> Changes:
        """Changes of a row; none of an image as it is.

        Args:
            index: of the row.
        """
        if index < len(self.catalog):
            return Changes()
        key = int.from_bytes(self.images["sha256"][index].tobytes()[:16], "little")
        rng = np.random.Generator(np.random.Philox(key=key))
        return draw_changes(self.settings, rng, self.in_colour)

    def image(
        self, index: int, size: Size, pixels: PixelFormat = RGB, background: Any = WHITE
    ) -> np.ndarray:
        row = index % len(self.catalog)
        if index < len(self.catalog):
            return self.catalog.image(row, size, pixels, background)
        size = (size, size) if isinstance(size, int) else tuple(size)
        return change_image(self.catalog, row, size, pixels, background, self.changes(index))


class ChangesTold:
    """Changes of the variants of images, as a source of a condition.

    Args:
        condition: that tells them.
        catalog: of the variants.
    """

    def __init__(self, condition: ChangesCondition, catalog: AugmentedCatalog) -> None:
        self.condition, self.catalog = condition, catalog
        self.count = len(catalog.catalog)

    @property
    def variants(self) -> int:
        """Number of variants of each image, without the image itself."""
        return self.catalog.settings.variants

    def batch(
        self, images: np.ndarray, mirrored: np.ndarray, dropped: np.ndarray, bits: np.ndarray
    ) -> list[np.ndarray]:
        """Input of the network for a batch.

        Args:
            images: rows of the catalog of images, int64 (B,).
            mirrored: True for those that are mirrored, bool (B,).
            dropped: not used: changes are always told.
            bits: number of the variant of each example, 0 for the image itself, int64 (B,).

        Returns:
            float32 (B, size).
        """
        values = []
        for row, turned in zip(images + self.count * bits, mirrored, strict=True):
            found = self.catalog.changes(int(row))
            found = found.mirrored() if turned else found
            values.append(tuple(getattr(found, name) for name in self.condition.numbers))
        return [self.condition.arrays(values)[self.condition.name]]

    def value(self, image: int) -> None:
        """Value for `generate`: nothing was changed."""
        return None


def augmented_images(catalog: Catalog, config: DiffusionRun) -> AugmentedCatalog | Catalog:
    """Catalog with the variants of all images of a run; that of the images where none is changed.

    Args:
        catalog: of the images.
        config: of the run.
    """
    if not config.data.augment.changes:
        return catalog
    return AugmentedCatalog(catalog, config.data.augment, PixelFormat.of(config.data))
