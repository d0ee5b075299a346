"""Images that are evaluated on: a split of a data set, or some of it, at one size."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from tqdm import tqdm

from latentddpm.data.catalog.catalog import Catalog
from latentddpm.data.catalog.split import Selection
from latentddpm.data.dataset import Dataset
from latentddpm.data.images import UnreadableImage, read_image
from latentddpm.data.prefetch import map_ahead
from latentddpm.errors import UserError


class ImageSet:
    """Images of a data set at one size, read when they are asked for.

    Args:
        dataset: of which they are.
        rows: of its catalog, int64 (N,).
        size: (height, width) in pixels; see `data.images.read_image` for how others get there.
    """

    def __init__(self, dataset: Dataset, rows: np.ndarray, size: tuple[int, int]) -> None:
        self.dataset, self.rows, self.size = dataset, rows, size

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def catalog(self) -> Catalog:
        """Catalog of the data set."""
        return self.dataset.catalog

    def where(self, number: int) -> str:
        """Name of an image, for messages."""
        return self.catalog.where(int(self.rows[number]))

    def captions(self) -> list[str]:
        """First caption of each image, "" for one without."""
        captions = self.dataset.captions
        return [next(iter(captions[int(row)]), "") for row in self.rows]

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


def spread_images(
    dataset: Dataset, selection: Selection, size: tuple[int, int], limit: int | None = None
) -> ImageSet:
    """Images of a selection at one size, at most `limit`, spread evenly over it."""
    count = min(limit or len(selection), len(selection))
    numbers = np.linspace(0, len(selection) - 1, count).round().astype(np.int64)
    return ImageSet(dataset, selection.rows(numbers), size)
