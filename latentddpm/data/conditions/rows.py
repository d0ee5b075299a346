"""Rows of a vector condition: the words or numbers of every image of a catalog.

    column of the metadata, or folder ─► value of each image ─► vectors of a batch

An image without a value is "not told". Distinct values are kept once, and for each image the
number of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from latentddpm.conditions.base import VectorCondition
from latentddpm.conditions.conditions import Conditions
from latentddpm.conditions.kinds import KINDS
from latentddpm.config import ConditionConfig
from latentddpm.data.catalog.catalog import Catalog
from latentddpm.data.sources.metadata import FOLDER, with_folder
from latentddpm.errors import UserError, nearest


@dataclass(frozen=True, eq=False)
class ConditionRows:
    """Rows of a vector condition, with random access; made by `of` or `rows_of`.

    Attributes:
        condition: that the values are of.
        values: distinct values; None for "not told".
        number: number of the value of each image, int32 (N,).
    """

    condition: VectorCondition
    values: Sequence[Any]
    number: np.ndarray

    @classmethod
    def of(cls, condition: VectorCondition, values: Iterable[Any]) -> ConditionRows:
        """Rows of values in memory.

        Args:
            condition: that they are of.
            values: of each image, as `condition.check` takes them; None for "not told".

        Raises:
            UserError: one is no value of the condition.
        """
        checked = (None if one is None else condition.check(one) for one in values)
        return cls(condition, *_distinct(checked))

    def value(self, image: int) -> Any:
        """Value of an image; None where it has none."""
        return self.values[self.number[image]]

    def batch(
        self, images: np.ndarray, mirrored: np.ndarray, dropped: np.ndarray, bits: np.ndarray
    ) -> list[np.ndarray]:
        """Inputs of the network for a batch.

        Args:
            images: rows of the catalog, int64 (B,).
            mirrored: True for those that are mirrored, bool (B,); of no effect on words.
            dropped: True for those that are not told, bool (B,).
            bits: random bits of each example, int64 (B,); not used.

        Returns:
            float32 (B, size) for each input of the condition.
        """
        pairs = zip(self.number[images], dropped, strict=True)
        rows = [None if gone else self.values[number] for number, gone in pairs]
        arrays = self.condition.arrays(rows)
        return [arrays[one.name] for one in self.condition.inputs()]


def read_rows(
    name: str,
    settings: ConditionConfig,
    catalog: Catalog,
    null: bool,
    known: VectorCondition | None = None,
) -> ConditionRows:
    """Rows of a condition, read from the metadata of a catalog.

    Args:
        name: of the condition.
        settings: of the condition.
        catalog: of the images.
        null: True where some examples are not told.
        known: condition of a model that the run starts from, whose words or range stay; None for
            those of the data.

    Raises:
        UserError: no image has a value; one has a value of another kind, or a word that is not
            known; or one has none, and the network always has to be told.
    """
    kind = type(known) if known is not None else KINDS[settings.kind]
    missing = []

    def read(image: int) -> Any:
        row = catalog.row(image)
        columns = with_folder(row.columns, catalog.name(image))
        try:
            value = kind.read(columns, settings.column, "")
        except UserError:  # again, with the place, which takes as long as all of the rest
            value = kind.read(columns, settings.column, catalog.row_place(image, row))
        if value is None:
            missing.append(image)
        return value

    values, number = _distinct(map(read, range(len(catalog))))
    if len(missing) == len(catalog):
        raise UserError(f"conditions.{name}: {_no_value(settings.column, catalog)}")
    if missing and not null:
        raise UserError(
            f"conditions.{name}: {len(missing)} of {len(catalog)} images have no value, such as "
            f"{catalog.where(missing[0])}, and it is never dropped; give them one, or set "
            f"conditions.{name}.dropout"
        )
    condition = known
    if condition is None:
        condition = kind.of_data(name, settings, (values[k] for k in number), null)
    rows = ConditionRows(condition, values, number)
    for k, value in enumerate(values):
        try:
            if value is not None:
                condition.arrays([value])
        except UserError as error:
            image = int(np.flatnonzero(number == k)[0])
            raise UserError(f"{catalog.where(image)}: {error}") from None
    return rows


def read_conditions(
    conditions: Conditions, settings: Mapping[str, ConditionConfig], catalog: Catalog
) -> list[ConditionRows]:
    """Rows of conditions of a model, read from the metadata of a catalog.

    Args:
        conditions: of the model, of words and numbers.
        settings: of those that are to be read, by name.
        catalog: of the images.

    Raises:
        UserError: see `read_rows`.
    """
    return [
        read_rows(one.name, settings[one.name], catalog, one.null, one)
        for one in conditions.vectors
        if one.name in settings
    ]


def _no_value(column: str | Sequence[str], catalog: Catalog) -> str:
    """Sentence on a column, or several, that no image has a value in."""
    names, known = [column] if isinstance(column, str) else list(column), catalog.columns()
    unknown = next((one for one in names if one not in (FOLDER, *known)), "")
    hint = nearest(unknown, known) if unknown else ""
    have = f"columns are {', '.join(map(repr, known)) or 'none'}"
    reason = "its images lie in no folder" if column == FOLDER else have
    return (
        f"no image of {catalog.source.place} has a value in the column "
        f"{', '.join(map(repr, names))}{hint} ({reason})"
    )


def _distinct(values: Iterable[Any]) -> tuple[list[Any], np.ndarray]:
    """Distinct values, and the number of each value among them, int32."""
    known: dict[Any, int] = {}
    number = [known.setdefault(value, len(known)) for value in values]
    return list(known), np.asarray(number, np.int32)
