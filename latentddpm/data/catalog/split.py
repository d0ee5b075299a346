"""Selections of images of a catalog: those for training, for validation, or of one shape.

A selection is a rule on the columns of the catalog, not a list: it counts the images of every
block that satisfy it, and looks a block up when one of its images is asked for. Validation is
decided by the name of each image alone, or by its caption alone, so that pictures of the same
thing stay together; adding or removing other images never moves one between the two sets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from latentddpm.config import DataConfig
from latentddpm.data.catalog.catalog import Catalog, split_hash
from latentddpm.data.sources.metadata import TEXT, text_entries
from latentddpm.errors import UserError

BLOCK = 1024  # images

Rule = Callable[[int, int], np.ndarray]
"""Of the images `start` … `stop` − 1 of a catalog, which belong: bool (stop − start,)."""

Label = Callable[[int, int], np.ndarray]
"""Of the images `start` … `stop` − 1 of a catalog, which kind each is: int (stop − start,)."""


class Selection:
    """The images of a catalog that a rule keeps, numbered 0, 1, … in its order.

    Args:
        count: images in the catalog.
        rule: None keeps all.
        kept: how many of each block of `BLOCK` it keeps, where that is known.
    """

    def __init__(
        self, count: int, rule: Rule | None = None, kept: Sequence[int] | None = None
    ) -> None:
        self._rule = rule
        self._count = count
        if kept is None and rule is None:
            kept = [stop - start for start, stop in self._blocks()]
        elif kept is None:
            kept = [int(rule(*block).sum()) for block in self._blocks()]
        self._ends = np.cumsum(np.array(kept, np.int64))

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def rows(self, numbers: np.ndarray) -> np.ndarray:
        """The rows in the catalog of images by their numbers here, int64, same shape."""
        numbers = np.asarray(numbers, np.int64)
        if self._rule is None:
            return numbers
        blocks = np.searchsorted(self._ends, numbers, "right")
        found = np.empty_like(numbers)
        for place, (number, block) in enumerate(zip(numbers.flat, blocks.flat, strict=True)):
            start = int(block) * BLOCK
            kept = np.flatnonzero(self._rule(start, min(start + BLOCK, self._count)))
            found.flat[place] = start + kept[number - (self._ends[block - 1] if block else 0)]
        return found

    def row(self, number: int) -> int:
        """The row in the catalog of one image."""
        return int(self.rows(np.array([number]))[0])

    def parts(self, label: Label, number: int) -> list[Selection]:
        """The images of each label 0 … `number` − 1 by themselves, counted in one pass."""
        if number == 1:
            return [self]

        def labels(start: int, stop: int) -> np.ndarray:
            """−1 for what is not in this selection."""
            found = label(start, stop)
            return found if self._rule is None else np.where(self._rule(start, stop), found, -1)

        def rule(wanted: int) -> Rule:
            return lambda start, stop: labels(start, stop) == wanted

        kept = np.zeros((number, len(self._ends)), np.int64)
        for place, block in enumerate(self._blocks()):
            kept[:, place] = np.bincount(labels(*block) + 1, minlength=number + 1)[1:]
        return [Selection(self._count, rule(one), kept[one]) for one in range(number)]

    def _blocks(self) -> Iterator[tuple[int, int]]:
        for start in range(0, self._count, BLOCK):
            yield start, min(start + BLOCK, self._count)


def split_catalog(catalog: Catalog, data: DataConfig) -> tuple[Selection, Selection]:
    """The images for training and for validation.

    Raises:
        UserError: nothing is left to train on, or no image has the caption that decides.
    """
    count, fraction = len(catalog), data.validation_fraction
    if data.validation_by == "caption":
        flags = _caption_lots(catalog) / 2.0**64 < fraction

        def kept_out(start: int, stop: int) -> np.ndarray:
            return flags[start:stop]
    else:
        lots = catalog.images["split_hash"]

        def kept_out(start: int, stop: int) -> np.ndarray:
            return lots[start:stop] / 2.0**64 < fraction

    training = Selection(count, lambda start, stop: ~kept_out(start, stop))
    if not len(training):
        raise UserError(
            f"data.validation_fraction={fraction} keeps out all {count} images; lower it"
        )
    return training, Selection(count, kept_out)


def _caption_lots(catalog: Catalog) -> np.ndarray:
    """64 bits that follow from each image's first caption, or its name where it has none."""
    lots, described = np.array(catalog.images["split_hash"]), 0
    for index in range(len(catalog)):
        row = catalog.row(index)
        if row.problem:
            raise UserError(row.problem)
        captions = text_entries(row.columns.get(TEXT), TEXT, catalog.row_place(index, row))
        if captions:
            lots[index] = split_hash(captions[0].casefold())
            described += 1
    if not described:
        raise UserError(
            f"{catalog.source.place}: data.validation_by=caption, but no image has a caption "
            f"(a {TEXT!r} in its row, or a sidecar); expected validation_by=path"
        )
    return lots
