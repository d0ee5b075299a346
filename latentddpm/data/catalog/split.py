"""Split of a catalog into images for training and for validation.

    validation  ⇔  split_hash(name, or first caption) / 2⁶⁴ < data.validation_fraction

The name of an image alone decides. With `data.validation_by=caption` its first caption alone
decides, so that all images with one caption are in the same set. Adding or removing other images
never moves an image to the other set.

A `Selection` is a rule over the columns of the catalog, not a list of images. It counts the
selected images of each block, and applies the rule to a block when one of its images is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from latentddpm.config import DataConfig
from latentddpm.data.captioning.rules import with_caption
from latentddpm.data.catalog.catalog import Catalog, split_hash
from latentddpm.data.sources.metadata import TEXT, caption_entries
from latentddpm.errors import UserError

BLOCK = 1024  # images that a rule is applied to at a time

Rule = Callable[[int, int], np.ndarray]
"""Rule of a selection: start, stop → bool (stop − start,), true for images that belong to it."""

Label = Callable[[int, int], np.ndarray]
"""Label of images: start, stop → int (stop − start,), a class for each image."""


class Selection:
    """Selection of images of a catalog, numbered 0, 1, … in the order of the catalog.

    Args:
        count: number of images in the catalog.
        rule: which of them belong to it; None for all.
        counts: number of selected images in each block of `BLOCK`; by default they are counted.
    """

    def __init__(
        self, count: int, rule: Rule | None = None, counts: Sequence[int] | None = None
    ) -> None:
        self._rule = rule
        self._count = count
        if counts is None and rule is None:
            counts = [stop - start for start, stop in self._blocks()]
        elif counts is None:
            counts = [int(rule(*block).sum()) for block in self._blocks()]
        self._ends = np.cumsum(np.array(counts, np.int64))

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    @property
    def amount(self) -> int:
        """Share of the selection in the examples, beside that of others: its number of images."""
        return len(self)

    def rows(self, numbers: np.ndarray) -> np.ndarray:
        """Rows in the catalog of images of the selection.

        Args:
            numbers: of the images in the selection, integers of any shape.

        Returns:
            int64, the shape of `numbers`.
        """
        numbers = np.asarray(numbers, np.int64)
        if self._rule is None:
            return numbers
        blocks = np.searchsorted(self._ends, numbers, "right")
        found = np.empty_like(numbers)
        for place, (number, block) in enumerate(zip(numbers.flat, blocks.flat, strict=True)):
            start = int(block) * BLOCK
            selected = np.flatnonzero(self._rule(start, min(start + BLOCK, self._count)))
            found.flat[place] = start + selected[number - (self._ends[block - 1] if block else 0)]
        return found

    def row(self, number: int) -> int:
        """Row in the catalog of the image with a `number` in the selection."""
        return int(self.rows(np.array([number]))[0])

    def parts(self, label: Label, number: int) -> list[Selection]:
        """Selections of the images of each class, counted in one pass.

        Args:
            label: of images of the catalog, 0 … `number` − 1.
            number: of classes.
        """
        if number == 1:
            return [self]

        def labels(start: int, stop: int) -> np.ndarray:
            """Labels of images; −1 for those that are not in this selection."""
            found = label(start, stop)
            return found if self._rule is None else np.where(self._rule(start, stop), found, -1)

        def rule(wanted: int) -> Rule:
            return lambda start, stop: labels(start, stop) == wanted

        counts = np.zeros((number, len(self._ends)), np.int64)
        for place, block in enumerate(self._blocks()):
            counts[:, place] = np.bincount(labels(*block) + 1, minlength=number + 1)[1:]
        return [Selection(self._count, rule(one), counts[one]) for one in range(number)]

    def _blocks(self) -> Iterator[tuple[int, int]]:
        for start in range(0, self._count, BLOCK):
            yield start, min(start + BLOCK, self._count)


def split_catalog(catalog: Catalog, data: DataConfig) -> tuple[Selection, Selection]:
    """Split a catalog into images for training and for validation.

    Args:
        catalog: of the images.
        data: with `validation_fraction` and `validation_by`.

    Returns:
        Training images, validation images.

    Raises:
        UserError: no image is left to train on, or the split is by caption and no image has one.
    """
    count, fraction = len(catalog), data.validation_fraction
    if data.validation_by == "caption":
        flags = _caption_hashes(catalog, data.captions) / 2.0**64 < fraction

        def is_validation(start: int, stop: int) -> np.ndarray:
            return flags[start:stop]
    else:
        hashes = catalog.images["split_hash"]

        def is_validation(start: int, stop: int) -> np.ndarray:
            return hashes[start:stop] / 2.0**64 < fraction

    training = Selection(count, lambda start, stop: ~is_validation(start, stop))
    if not len(training):
        raise UserError(
            f"data.validation_fraction={fraction} leaves none of {count} images for training; "
            "lower it"
        )
    return training, Selection(count, is_validation)


def _caption_hashes(catalog: Catalog, rule: str) -> np.ndarray:
    """Split hash of each image's first caption, or of its name if it has none, uint64 (N,)."""
    hashes, captioned = np.array(catalog.images["split_hash"]), 0
    for index in range(len(catalog)):
        row = catalog.row(index)
        if row.problem:
            raise UserError(row.problem)
        place = catalog.row_place(index, row)
        columns = with_caption(rule, row.columns, catalog.name(index), place)
        if captions := caption_entries(columns, place):
            hashes[index] = split_hash(captions[0].casefold())
            captioned += 1
    if not captioned:
        raise UserError(
            f"{catalog.source.place}: data.validation_by=caption, but no image has a caption "
            f"(a {TEXT!r} in its row, or a sidecar); expected validation_by=path"
        )
    return hashes
