"""Pixels as latents: the images, or signals, themselves, in place of a latents cache.

    image bytes ─► read_image ─► values of the pixel format ─► images in [-1, 1]  (H, W, C)
    signal bytes ─► read_signal ─► the same                                       (L, C)

A model of pixels has no encoder, so nothing is worth keeping on disk. `PixelLatents` has the
interface of `LatentsCache`: the mean of an image is the image, its variance is exp(−∞) = 0, and a
mirrored row is the exact mirror image.

Images are decoded by threads when they are used. Where all of them fit into half of the free
memory, the values of each are kept from its first use on, at 8 bits one byte a number. An image
that was readable when the data was listed and breaks later ends the run, as it ends an encoding:
another image in its place would have the wrong caption, and the run would not be the one that
resumes.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np

from latentddpm.data.catalog.catalog import Catalog
from latentddpm.data.images import RGB, WHITE, UnreadableImage, composite
from latentddpm.data.prefetch import WORKERS
from latentddpm.errors import UserError
from latentddpm.utils.images.pixel_format import PixelFormat

SHARE_OF_MEMORY = 0.5
"""Share of the free memory that pixels may take."""
MEMORY = 1 << 30
"""Bytes taken for free where that is not known."""


def decode(
    catalog: Catalog,
    row: int,
    shape: tuple[int, ...],
    pixels: PixelFormat = RGB,
    background: tuple[int, int, int] | None = WHITE,
) -> np.ndarray:
    """Values of an image of a catalog, as `read_image` gives them.

    Args:
        catalog: of the images.
        row: of the image.
        shape: (height, width) that it is scaled and cropped to; (L,) of a signal.
        pixels: format to read it in.
        background: colour behind transparent pixels; None to keep alpha.

    Raises:
        UserError: the image cannot be read any more.
    """
    try:
        return catalog.image(row, shape, pixels, background)
    except UnreadableImage as error:
        raise UserError(f"{error}; mend or remove it") from error
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{catalog.where(row)}: {reason}; mend or remove it") from error


@dataclass(frozen=True, eq=False)
class PixelLatents:
    """Pixels of all images of a catalog, with random access; made by `of`.

    Attributes:
        catalog: of the images; image i is row i, its mirror image row count + i.
        latent_shape: (h, w, c) of an image, (L, c) of a signal.
        format: that the images are read in.
        mirrored: True if every image has a second row, its mirror image.
        transparent: keep the alpha of images, so that each use may have a background of its own.
        pixels: values, (count, numbers of the largest image), filled as images are used; None to
            keep none.
        kept: bool (count,), True for images that `pixels` holds.
        note: line for people, on where the pixels are.
    """

    catalog: Catalog
    latent_shape: tuple[int, ...]
    format: PixelFormat
    mirrored: bool
    transparent: bool
    pixels: np.ndarray | None
    kept: np.ndarray
    note: str

    @classmethod
    def of(
        cls,
        catalog: Catalog,
        size: int | tuple[int, ...],
        format: PixelFormat = RGB,
        *,
        mirrored: bool = False,
        transparent: bool = False,
        memory: int | None = None,
    ) -> PixelLatents:
        """Pixels of a catalog, none of which is read yet.

        Args:
            catalog: of the images.
            size: that images are scaled and cropped to, in pixels: (height, width), or the side of
                the square; (L,) of signals.
            format: to read the images in.
            mirrored: have a second row for every image, its mirror image.
            transparent: keep the alpha of images; without it they stand on white.
            memory: free bytes; None to ask the system.
        """
        if memory is None:
            from latentddpm.utils.machine.memory import free_memory

            memory = free_memory() or MEMORY
        size = (size,) * 2 if isinstance(size, int) else tuple(size)
        numbers = prod(size) * (format.channels + transparent)
        taken = len(catalog) * numbers * np.dtype(format.dtype).itemsize
        held = taken <= SHARE_OF_MEMORY * memory
        where = (
            f"held in memory ({taken / 1e6:.3g} MB)"
            if held
            else f"decoded at each use ({taken / 1e9:.3g} GB, {memory / 1e9:.3g} GB are free)"
        )
        return cls(
            catalog,
            (*size, format.channels),
            format,
            mirrored,
            transparent,
            np.empty((len(catalog), numbers), format.dtype) if held else None,
            np.zeros(len(catalog), bool),
            f"{'signals' if format.spatial_dims == 1 else 'pixels':<10} no autoencoder; {where}",
        )

    @property
    def count(self) -> int:
        """Number of images."""
        return len(self.catalog)

    def shaped(self, height: int, width: int) -> PixelLatents:
        """Pixels of the same rows, for images of size `height` × `width`; signals as they are."""
        if len(self.latent_shape) == 2:
            return self
        return replace(self, latent_shape=(height, width, self.latent_shape[-1]))

    def gather(self, rows: Any, colours: np.ndarray | None = None) -> tuple[np.ndarray, ...]:
        """Moments of `rows`, int64 (B,).

        Args:
            rows: of images or mirror images.
            colours: float32 (B, 3) in [0, 1], behind transparent pixels of each image; None for
                white.

        Returns:
            mean and logvar, float32 (B, *latent_shape) each: images in [-1, 1], and −∞.

        Raises:
            UserError: an image cannot be read.
        """
        rows = np.asarray(rows)
        pixels = self._read(rows % self.count)
        mirrored = rows >= self.count
        pixels[mirrored] = pixels[mirrored, :, ::-1]
        if self.transparent and colours is not None:
            alpha = pixels[..., 3:] / np.float32(255)
            images = np.concatenate([self.format.to_images(pixels[..., :3]), alpha], axis=-1)
            images = composite(images, 2 * colours[:, None, None] - 1)
        else:
            pixels = composite(pixels, WHITE) if self.transparent else pixels
            images = self.format.to_images(pixels)
        return images, np.full_like(images, -np.inf)

    def _read(self, images: np.ndarray) -> np.ndarray:
        """Values of images, (B, *latent_shape), or with alpha (B, h, w, c + 1)."""
        *size, channels = self.latent_shape
        shape = (*size, channels + self.transparent)
        background = None if self.transparent else WHITE

        def read(image: int) -> np.ndarray:
            return decode(self.catalog, image, shape[:-1], self.format, background)

        found = np.empty((len(images), *shape), self.format.dtype)
        kept = self.kept[images]
        if kept.any():
            numbers = prod(shape)
            found[kept] = self.pixels[images[kept], :numbers].reshape(-1, *shape)
        missing = np.flatnonzero(~kept)
        if len(missing):
            with ThreadPoolExecutor(min(WORKERS, len(missing))) as pool:
                for place, one in zip(missing, pool.map(read, images[missing]), strict=True):
                    found[place] = one
                    if self.pixels is not None:
                        self.pixels[images[place], : one.size] = one.ravel()
                        self.kept[images[place]] = True
        return found
