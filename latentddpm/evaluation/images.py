"""The images that are evaluated on: which of a place, at which size."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from latentddpm.config import DataConfig
from latentddpm.data.catalog.catalog import Catalog
from latentddpm.data.catalog.scan import open_catalog
from latentddpm.data.catalog.split import Selection, split_catalog
from latentddpm.data.images import UnreadableImage, read_image
from latentddpm.data.prefetch import map_ahead
from latentddpm.errors import UserError, check_choice

SPLITS = ("all", "training", "validation")


class ImageSet:
    """Images of a catalog at one size, read when they are asked for.

    Args:
        catalog: what is at the place.
        rows: of the catalog, int64 (N,).
        size: (height, width) in pixels; see `data.images.read_image` for how others get there.
    """

    def __init__(self, catalog: Catalog, rows: np.ndarray, size: tuple[int, int]) -> None:
        self.catalog, self.rows, self.size = catalog, rows, size

    def __len__(self) -> int:
        return len(self.rows)

    def where(self, number: int) -> str:
        """What an image is called."""
        return self.catalog.where(int(self.rows[number]))

    def read(self, numbers: Sequence[int] | np.ndarray) -> np.ndarray:
        """Some of the images, by their numbers here: uint8 (n, H, W, 3).

        Raises:
            UserError: a file that is no image any more, though it was one when it was scanned.
            OSError: one that is not there any more.
        """
        size = 3 * math.prod(self.size)

        def pixels(row: int) -> np.ndarray:
            name = self.catalog.where(row)
            return read_image(self.catalog.read(row), self.size, name=name)

        try:
            read = map_ahead(pixels, self.rows[numbers].tolist(), weigh=lambda row: size)
            return np.stack([picture for _, picture in read])
        except UnreadableImage as error:
            raise UserError(str(error)) from None

    def contents(self, numbers: Sequence[int] | np.ndarray) -> list[str]:
        """The SHA-256 of the file of each, in hexadecimal."""
        return [
            digest.tobytes().hex() for digest in self.catalog.images["sha256"][self.rows[numbers]]
        ]

    def batches(self, batch_size: int, label: str, quiet: bool = False) -> Iterator[np.ndarray]:
        """All images in order, with a progress bar of that label on stderr."""
        with tqdm(desc=label, total=len(self), unit="image", disable=quiet) as bar:
            for start in range(0, len(self), batch_size):
                batch = self.read(np.arange(start, min(start + batch_size, len(self))))
                yield batch
                bar.update(len(batch))


def open_images(
    place: str | Path,
    catalog: Path,
    size: tuple[int, int],
    *,
    split: str = "all",
    data: DataConfig | None = None,
    limit: int | None = None,
    quiet: bool = False,
) -> ImageSet:
    """The images of a place.

    Args:
        place: a folder of images or shards; see `data.sources.open.open_source`.
        catalog: folder of the catalog.
        size: (height, width).
        split: "all", or those that training with the settings `data` learns from, or keeps out.
        limit: at most so many, spread evenly over all.

    Raises:
        UserError: nothing there, or nothing in that split.
    """
    check_choice("--split", split, SPLITS)
    found = open_catalog(place, catalog, quiet=quiet)
    if split == "all":
        selection = Selection(len(found))
    else:
        data = data or DataConfig()
        selection = split_catalog(found, data)[SPLITS.index(split) - 1]
        if not len(selection):
            raise UserError(
                f"--split {split}: --validation-fraction {data.validation_fraction:g} by "
                f"{data.validation_by} leaves it none of {len(found)} images; change it, or "
                "evaluate on --split all"
            )
    return spread_images(found, selection, size, limit)


def spread_images(
    catalog: Catalog, selection: Selection, size: tuple[int, int], limit: int | None = None
) -> ImageSet:
    """The images of a selection, at most `limit`, spread evenly over it."""
    count = min(limit or len(selection), len(selection))
    numbers = np.linspace(0, len(selection) - 1, count).round().astype(np.int64)
    return ImageSet(catalog, selection.rows(numbers), size)
