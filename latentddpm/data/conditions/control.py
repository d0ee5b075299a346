"""Control pictures in the data: what a ControlNet sees of each image of a catalog.

    image ─► its own picture in the data, or line art of it ─► RGB in [0, 1], (H, W, 3)

A picture is scaled and cropped as its image is, and has its shape (see `pairs`). Pictures are read
when they are used, and kept where half of the free memory holds all of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

import numpy as np

from latentddpm.conditions.control import CHANNELS, ControlCondition, line_art
from latentddpm.config import DiffusionRun
from latentddpm.data.catalog.catalog import Catalog
from latentddpm.data.conditions.pairs import Place, examine_pairs
from latentddpm.data.dataset import Dataset
from latentddpm.data.images import UnreadableImage, read_image
from latentddpm.data.prefetch import WORKERS
from latentddpm.errors import UserError
from latentddpm.utils.machine.memory import free_memory

SHARE_OF_MEMORY = 0.5
MEMORY = 1 << 30
"""Bytes taken for free where that is not known."""


@dataclass(frozen=True, eq=False)
class ControlPictures:
    """Control pictures of the images of a catalog; a `ConditionSource`.

    Attributes:
        condition: where they are from.
        catalog: of the images.
        size: (height, width) in pixels.
        places: of second pictures; empty where they are made from the images.
        digest: of second pictures; "" where there are none.
        kept: pictures, uint8 (N, H, W, 3), filled as they are used; None to keep none.
        known: bool (N,), True for those that `kept` holds.
    """

    condition: ControlCondition
    catalog: Catalog
    size: tuple[int, int]
    places: Sequence[Place]
    digest: str
    kept: np.ndarray | None = field(repr=False)
    known: np.ndarray = field(repr=False)

    @classmethod
    def of(
        cls,
        condition: ControlCondition,
        catalog: Catalog,
        size: tuple[int, int],
        folder: Path | None = None,
    ) -> ControlPictures:
        """Control pictures of a catalog; second ones are looked for, and read when they are used.

        Args:
            condition: where they are from.
            catalog: of the images.
            size: (height, width) in pixels that the images are scaled and cropped to.
            folder: to keep what was found in, see `pairs.examine_pairs`.

        Raises:
            UserError: pictures are missing or of another shape than their image; the message
                counts them and names one.
        """
        places, digest = [], ""
        if condition.source == "picture":
            pairs = examine_pairs(catalog, condition.pair, folder)
            for problems, what in (
                (pairs.missing, "images have no picture"),
                (pairs.misfits, "pictures have another shape than their image"),
            ):
                if problems:
                    count = f"{len(problems)} of {len(catalog)}"
                    raise UserError(f"control: {count} {what}, such as {problems[0][1]}")
            digest = hashlib.sha256(pairs.found["sha256"].tobytes()).hexdigest()
            places = pairs.places
        count, shape = len(catalog), (*size, CHANNELS)
        held = count * prod(shape) <= SHARE_OF_MEMORY * (free_memory() or MEMORY)
        kept = np.empty((count, *shape), np.uint8) if held else None
        return cls(condition, catalog, size, places, digest, kept, np.zeros(count, bool))

    def batch(
        self,
        images: np.ndarray,
        mirrored: np.ndarray,
        dropped: np.ndarray | None = None,
        bits: np.ndarray | None = None,
    ) -> list[np.ndarray]:
        """Control pictures of a batch.

        Args:
            images: rows of the catalog, int64 (B,).
            mirrored: True for those that are mirrored, bool (B,).
            dropped, bits: see `data.conditions.source`; a ControlNet is always told its picture.

        Returns:
            One array, float32 (B, H, W, 3) in [0, 1].

        Raises:
            UserError: a picture cannot be read any more.
        """
        pixels = np.empty((len(images), *self.size, CHANNELS), np.uint8)
        known = self.known[images]
        if known.any():
            pixels[known] = self.kept[images[known]]
        missing = np.flatnonzero(~known)
        if len(missing):
            with ThreadPoolExecutor(min(WORKERS, len(missing))) as pool:
                for place, one in zip(missing, pool.map(self._read, images[missing]), strict=True):
                    pixels[place] = one
                    if self.kept is not None:
                        self.kept[images[place]] = one
                        self.known[images[place]] = True
        pixels[mirrored] = pixels[mirrored, :, ::-1]
        return [pixels.astype(np.float32) / 255]

    def of_image(self, image: int) -> np.ndarray:
        """Control picture of an image, float32 (H, W, 3) in [0, 1].

        Args:
            image: row of the catalog.

        Raises:
            UserError: see `batch`.
        """
        return self.batch(np.array([image]), np.array([False]))[0][0]

    def _read(self, image: int) -> np.ndarray:
        """Picture of an image, uint8 (H, W, 3)."""
        where = self.catalog.where(image)
        try:
            if not self.places:
                return line_art(self.catalog.image(image, self.size))
            where = self.places[image].name
            return read_image(self.places[image].read(), self.size, name=where)
        except UnreadableImage as error:
            raise UserError(f"control: {error}") from error
        except OSError as error:
            raise UserError(f"control: {where}: {error.strerror or error}") from error


def plan_control(config: DiffusionRun, dataset: Dataset, folder: Path) -> ControlPictures | None:
    """Control pictures of a run, all of which are there; None where no ControlNet is trained.

    Args:
        config: complete.
        dataset: of the run.
        folder: to keep what was found in.

    Raises:
        UserError: see `ControlPictures.of`.
    """
    condition = ControlCondition.of(config.control)
    if condition is None:
        return None
    size = (config.data.resolution,) * 2
    return ControlPictures.of(condition, dataset.catalog, size, folder)
