"""Images to evaluate on: a split of a data set, or a part of it, at one size."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from latentddpm.conditions.classes import ClassCondition
from latentddpm.data.catalog.catalog import Catalog
from latentddpm.data.catalog.split import Selection
from latentddpm.data.conditions.source import ConditionSource
from latentddpm.data.dataset import Dataset
from latentddpm.data.images import UnreadableImage
from latentddpm.data.prefetch import map_ahead
from latentddpm.errors import UserError
from latentddpm.utils.images.pixel_format import PixelFormat


class ImageSet:
    """Images of a data set at one size, read on demand.

    Args:
        dataset: that they belong to.
        rows: of its catalog, int64 (N,).
        size: (height, width) in pixels, to which `data.images.read_image` scales and crops.
        conditions: that the images of the data set tell a model.
    """

    def __init__(
        self,
        dataset: Dataset,
        rows: np.ndarray,
        size: tuple[int, int],
        conditions: Sequence[ConditionSource] = (),
    ) -> None:
        self.dataset, self.rows, self.size = dataset, rows, size
        self.conditions = conditions

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def catalog(self) -> Catalog:
        """Catalog of the data set."""
        return self.dataset.catalog

    def where(self, number: int) -> str:
        """Name of an image, for messages.

        Args:
            number: of the image in this set, 0 … N − 1.
        """
        return self.catalog.where(int(self.rows[number]))

    def captions(self) -> list[str]:
        """First caption of each image, "" for an image without one."""
        captions = self.dataset.captions
        return [next(iter(captions[int(row)]), "") for row in self.rows]

    def told(self, rows: np.ndarray | None = None) -> list[dict[str, Any]]:
        """Values of the conditions of each image, by name; one that it does not tell is missing.

        Args:
            rows: of the catalog, int64 (n,); None for those of this set.
        """
        found = []
        for row in self.rows if rows is None else rows:
            values = {one.condition.name: one.value(int(row)) for one in self.conditions}
            found.append({name: value for name, value in values.items() if value is not None})
        return found

    @property
    def class_name(self) -> str:
        """Name of the only condition of one word, by which results are told apart; "" for none."""
        kinds = [one.condition for one in self.conditions]
        names = [one.name for one in kinds if isinstance(one, ClassCondition)]
        return names[0] if len(names) == 1 else ""

    @property
    def pixels(self) -> PixelFormat:
        """Format of the values."""
        return self.dataset.pixels

    def read(self, numbers: Sequence[int] | np.ndarray) -> np.ndarray:
        """Read some of the images, as people see them.

        Args:
            numbers: of the images in this set, (n,).

        Returns:
            uint8 (n, H, W, 3); see `PixelFormat.to_rgb`.

        Raises:
            UserError, OSError: see `values`.
        """
        return self.pixels.to_rgb(self.values(numbers))

    def values(self, numbers: Sequence[int] | np.ndarray) -> np.ndarray:
        """Read the values of some of the images.

        Args:
            numbers: of the images in this set, (n,).

        Returns:
            (n, H, W, C) in the format `pixels`.

        Raises:
            UserError: a file cannot be read as an image of this format.
            OSError: a file is gone.
        """
        size = np.dtype(self.pixels.dtype).itemsize * self.pixels.channels * math.prod(self.size)

        def pixels(row: int) -> np.ndarray:
            return self.catalog.image(row, self.size, self.pixels)

        try:
            read = map_ahead(pixels, self.rows[numbers].tolist(), weigh=lambda row: size)
            return np.stack([picture for _, picture in read])
        except UnreadableImage as error:
            raise UserError(str(error)) from None

    def contents(self, numbers: Sequence[int] | np.ndarray) -> list[str]:
        """SHA-256 digests of the files of some images, in hexadecimal.

        Args:
            numbers: of the images in this set.
        """
        return [
            digest.tobytes().hex() for digest in self.catalog.images["sha256"][self.rows[numbers]]
        ]

    def batches(self, batch_size: int, label: str, quiet: bool = False) -> Iterator[np.ndarray]:
        """All images in order, with a progress bar on stderr.

        Args:
            batch_size: images of a batch; the last one may be smaller.
            label: of the bar.
            quiet: show no progress.

        Yields:
            Values (B, H, W, C) in the format `pixels`.
        """
        with tqdm(desc=label, total=len(self), unit="image", disable=quiet) as bar:
            for start in range(0, len(self), batch_size):
                batch = self.values(np.arange(start, min(start + batch_size, len(self))))
                yield batch
                bar.update(len(batch))


def spread_images(
    dataset: Dataset,
    selection: Selection,
    size: tuple[int, int],
    limit: int | None = None,
    conditions: Sequence[ConditionSource] = (),
) -> ImageSet:
    """Images of a selection, or some of them, spread evenly over it.

    Args:
        dataset: that the selection belongs to.
        selection: rows of its catalog, such as `dataset.validation`.
        size: (height, width) in pixels.
        limit: number of images at most; None for all.
        conditions: see `ImageSet`.
    """
    count = min(limit or len(selection), len(selection))
    numbers = np.linspace(0, len(selection) - 1, count).round().astype(np.int64)
    return ImageSet(dataset, selection.rows(numbers), size, conditions)
