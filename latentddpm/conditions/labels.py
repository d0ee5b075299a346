"""Labels condition: any subset of N words, such as "smile" and "glasses".

    k ones of N ─► mean, or sum, of k rows of a table (N + 1 rows, the last for "not told")

No word at all is something else than "not told": it adds nothing to the time embedding.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from latentddpm.conditions.base import Arrays, Columns, Input, VectorCondition
from latentddpm.conditions.words import in_order, number_of, shown, words_of
from latentddpm.errors import UserError

NO_WORDS = "none"
"""Text for no word at all."""


@dataclass(frozen=True)
class LabelsCondition(VectorCondition):
    """Labels condition: any subset of N words.

    Attributes:
        words: in the order of the table.
        combine: "mean" or "sum" of the rows of the words.

    Example:
        >>> face = LabelsCondition("face", words=("beard", "glasses", "smile"))
        >>> face.arrays([face.parse("smile,glasses"), ()])["face"]
        array([[0. , 0.5, 0.5, 0. ],
               [0. , 0. , 0. , 0. ]], dtype=float32)
    """

    words: tuple[str, ...] = ()
    combine: str = "mean"

    kind: ClassVar[str] = "labels"

    @classmethod
    def of_data(cls, name: str, settings: Any, values: Iterable[Any], null: bool) -> Self:
        found = (word for one in values if one is not None for word in one)
        return cls(name, null, tuple(settings.words or in_order(found)), settings.combine)

    def inputs(self) -> tuple[Input, ...]:
        return (Input(self.name, "rows", len(self.words) + self.null),)

    def describe(self) -> str:
        return f"some of {shown(self.words)}, or {NO_WORDS}"

    def parse(self, text: str) -> tuple[str, ...]:
        if text.strip() == NO_WORDS and NO_WORDS not in self.words:
            return ()
        return self.check(text)

    def check(self, value: Any) -> tuple[str, ...]:
        found = words_of(value, self.name, self.kind)
        if not found and not isinstance(value, list | tuple):
            raise UserError(f"{self.name}: {value!r:.80}, expected {self.describe()}")
        return tuple(self.words[number_of(word, self.words, self.name)] for word in found)

    @classmethod
    def read(cls, columns: Columns, column: str, place: str) -> tuple[str, ...] | None:
        value = columns.get(column)
        return None if value is None else words_of(value, place, column)

    def arrays(self, values: Sequence[tuple[str, ...] | None]) -> Arrays:
        found = np.zeros((len(values), len(self.words) + self.null), np.float32)
        for row, words in enumerate(values):
            if words is None:
                if not self.null:
                    raise self.refuse_null()
                found[row, -1] = 1
                continue
            share = 1 / max(len(words), 1) if self.combine == "mean" else 1
            for word in words:
                found[row, number_of(word, self.words, self.name)] = share
        return {self.name: found}

    def to_text(self, value: tuple[str, ...]) -> str:
        return ",".join(value) or NO_WORDS
