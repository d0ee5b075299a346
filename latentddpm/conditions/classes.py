"""Class condition: one of N words, such as the digit or the folder of an image.

    one-hot vector ─► row of a table (N + 1 rows, the last for "not told")

as diffusers' `class_embed_type=None` with `num_class_embeds`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from latentddpm.conditions.base import Arrays, Columns, Input, VectorCondition
from latentddpm.conditions.words import in_order, number_of, shown, words_of
from latentddpm.errors import UserError


@dataclass(frozen=True)
class ClassCondition(VectorCondition):
    """Class condition: one of N words.

    Attributes:
        words: of the classes, in the order of the table.

    Example:
        >>> digit = ClassCondition("digit", words=("0", "1", "2"))
        >>> digit.arrays([digit.parse("1"), None])["digit"]
        array([[0., 1., 0., 0.],
               [0., 0., 0., 1.]], dtype=float32)
    """

    words: tuple[str, ...] = ()

    kind: ClassVar[str] = "class"

    @classmethod
    def of_data(cls, name: str, settings: Any, values: Iterable[Any], null: bool) -> Self:
        words = tuple(settings.words or in_order(one for one in values if one is not None))
        return cls(name, null, words)

    def inputs(self) -> tuple[Input, ...]:
        return (Input(self.name, "rows", len(self.words) + self.null),)

    def describe(self) -> str:
        return f"one of {shown(self.words)}"

    def parse(self, text: str) -> str:
        return self.words[number_of(text.strip(), self.words, self.name)]

    def check(self, value: Any) -> str:
        (word, *more) = words_of(value, self.name, self.kind) or ("",)
        if more:
            raise UserError(f"{self.name}: {value!r:.80}, expected {self.describe()}")
        return self.parse(word)

    @classmethod
    def read(cls, columns: Columns, column: str, place: str) -> str | None:
        found = words_of(columns.get(column), place, column)
        if len(found) > 1:
            raise UserError(
                f"{place}: {column!r} has {len(found)} words, {', '.join(found):.60}; expected "
                "one (several are of kind labels)"
            )
        return found[0] if found else None

    def arrays(self, values: Sequence[str | None]) -> Arrays:
        found = np.zeros((len(values), len(self.words) + self.null), np.float32)
        for row, word in enumerate(values):
            if word is None and not self.null:
                raise self.refuse_null()
            known = len(self.words)
            found[row, known if word is None else number_of(word, self.words, self.name)] = 1
        return {self.name: found}

    def to_text(self, value: str) -> str:
        return value
