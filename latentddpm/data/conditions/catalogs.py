"""Catalogs of pictures: the pictures of a condition, with the interface of a catalog of images.

    PairCatalog    row i: the second picture of image i
    MadeCatalog    row i: the picture that a condition makes of image i
    HoleCatalog    row i + v · N: image i with the hole of mask v painted gray

So a latents cache is made of pictures as it is made of images, and `PixelLatents` keeps them. The
digest of a row says all that its picture depends on, beside the key of the cache.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from latentddpm.conditions.inpainting import random_mask
from latentddpm.conditions.picture import MapCondition
from latentddpm.data.catalog.catalog import Catalog
from latentddpm.data.catalog.columns import npy_header
from latentddpm.data.conditions.pairs import Pairs
from latentddpm.data.images import WHITE, read_image
from latentddpm.utils.images.pixel_format import RGB, PixelFormat

Size = tuple[int, int]


class PictureCatalog:
    """Catalog of pictures: base class, with the part of `Catalog` that makes caches.

    Args:
        catalog: of the images.
        digests: of the rows, uint8 (rows, 32).

    Attributes:
        images: columns `sha256`, and `width` and `height` of the images.
    """

    def __init__(self, catalog: Catalog, digests: np.ndarray) -> None:
        self.catalog = catalog
        sizes = (catalog.images[key] for key in ("width", "height"))
        width, height = (np.resize(one, len(digests)) for one in sizes)
        self.images = {"sha256": digests, "width": width, "height": height}

    def __len__(self) -> int:
        return len(self.images["sha256"])

    @property
    def digest(self) -> str:
        """SHA-256 of the digests of all rows, as of the file that a cache keeps them in."""
        digests = self.images["sha256"]
        digest = hashlib.sha256(npy_header("|u1", digests.shape))
        digest.update(np.ascontiguousarray(digests))
        return digest.hexdigest()

    def name(self, index: int) -> str:
        """Name of the image of a row."""
        return self.catalog.name(index % len(self.catalog))

    def where(self, index: int) -> str:
        """Name of the picture of a row in messages."""
        return self.catalog.where(index % len(self.catalog))

    def image(
        self,
        index: int,
        size: Size,
        pixels: PixelFormat = RGB,
        background: tuple[int, int, int] | None = WHITE,
    ) -> np.ndarray:
        """Values of the picture of a row; see `Catalog.image`.

        Args:
            index: of the row.
            size, pixels, background: see `data.images.read_image`.
        """
        raise NotImplementedError


class PairCatalog(PictureCatalog):
    """Catalog of the second pictures of images.

    Args:
        catalog: of the images.
        pairs: of all of them.
    """

    def __init__(self, catalog: Catalog, pairs: Pairs) -> None:
        super().__init__(catalog, np.ascontiguousarray(pairs.found["sha256"]))
        self.places = pairs.places

    def where(self, index: int) -> str:
        return self.places[index].name

    def image(
        self, index: int, size: Size, pixels: PixelFormat = RGB, background: Any = WHITE
    ) -> np.ndarray:
        place = self.places[index]
        return read_image(place.read(), size, background, place.name, pixels)


class MadeCatalog(PictureCatalog):
    """Catalog of pictures that a condition makes of the images themselves.

    Args:
        catalog: of the images.
        condition: that makes them.
        size: (height, width) of the images, in pixels.
        pixels: format of the images.
    """

    def __init__(
        self, catalog: Catalog, condition: MapCondition, size: Size, pixels: PixelFormat
    ) -> None:
        super().__init__(catalog, catalog.images["sha256"])
        self.condition, self.size, self.pixels = condition, size, pixels

    def image(
        self, index: int, size: Size, pixels: PixelFormat = RGB, background: Any = WHITE
    ) -> np.ndarray:
        values = self.catalog.image(index, self.size, self.pixels, background)
        return pixels.from_images(self.condition.picture(self.pixels.to_images(values)))


class HoleCatalog(PictureCatalog):
    """Catalog of images with holes.

    Args:
        catalog: of the N images.
        masks: number of masks of each.
    """

    def __init__(self, catalog: Catalog, masks: int) -> None:
        own = catalog.images["sha256"]
        digests = np.empty((masks, *own.shape), np.uint8)
        for mask in range(masks):
            for row, digest in enumerate(own):
                digests[mask, row] = np.frombuffer(_digest(digest, mask), np.uint8)
        super().__init__(catalog, digests.reshape(-1, own.shape[-1]))

    def mask(self, index: int, size: Size) -> np.ndarray:
        """Mask of a row, bool (H, W), True in the hole: a function of its digest alone.

        Args:
            index: of the row.
            size: (H, W).
        """
        digest = self.images["sha256"][index].tobytes()
        key = int.from_bytes(digest[:16], "little")
        return random_mask(size, np.random.Generator(np.random.Philox(key=key)))

    def image(
        self, index: int, size: Size, pixels: PixelFormat = RGB, background: Any = WHITE
    ) -> np.ndarray:
        row = index % len(self.catalog)
        values = self.catalog.image(row, size, pixels, background).astype(np.float32)
        values[self.mask(index, values.shape[:2])] = sum(pixels.range) / 2
        return values


def _digest(image: np.ndarray, mask: int) -> bytes:
    return hashlib.sha256(image.tobytes() + b"mask" + mask.to_bytes(4, "little")).digest()
