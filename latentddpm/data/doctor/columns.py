"""Columns of images that a model could be told as conditions, for `doctor`.

few words, one an image          class       the folder of an image, a style
few words, several an image      labels      lists, or texts with commas
numbers                          number      an age, a temperature

Columns of captions and of file names are left out, and so are those whose words are as many as the
images.
"""

from __future__ import annotations

import re
import shlex
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from latentddpm.conditions.words import in_order, shown, words_of
from latentddpm.config.conditions import is_name
from latentddpm.data.findings import Findings
from latentddpm.data.sources.kinds import CAPTION_COLUMNS, NAME_COLUMNS
from latentddpm.data.sources.metadata import FOLDER, with_folder
from latentddpm.errors import UserError

MOST = 1000
"""Different words of a column; one with more is not of words."""
FEW = 5
"""Images of a word, on average, from which a column is one of words; a word with fewer is rare."""
CLASSES = 20
"""Different whole numbers up to which they are taken for words, such as digits."""


@dataclass
class Column:
    """Column of the metadata: what its values are.

    Attributes:
        images: number of images with a value.
        words: number of images of each word; empty once there are more than `MOST`.
        several: True where an image has several words.
        numbers: number of images whose value is a number.
        whole: True while all numbers are whole ones.
        low, high: least and greatest number.
        many: True where there are more words than `MOST`, or values that are no words.
        bare: first image without a value; "" for none.
    """

    images: int = 0
    words: Counter = field(default_factory=Counter)
    several: bool = False
    numbers: int = 0
    whole: bool = True
    low: float = float("inf")
    high: float = float("-inf")
    many: bool = False
    bare: str = ""

    def add(self, value: Any) -> bool:
        """Count the value of an image; False for one that is none.

        Args:
            value: as it was found.
        """
        try:
            found = words_of(value if not isinstance(value, float) else repr(value), "", "")
        except UserError:
            self.many, found = True, ("",)
        if not found:
            return False
        self.images += 1
        self.several |= len(found) > 1
        self._add_number(found)
        if not self.many:
            self.words.update(found)
            self.many = len(self.words) > MOST
        return True

    def _add_number(self, found: tuple[str, ...]) -> None:
        try:
            (number,) = map(float, found)
        except ValueError:
            return
        if abs(number) < float("inf"):
            self.numbers += 1
            self.whole &= number.is_integer()
            self.low, self.high = min(self.low, number), max(self.high, number)

    @property
    def kind(self) -> str:
        """Kind of condition that it could be; "" for none."""
        few = len(self.words) > 1 and sum(self.words.values()) >= FEW * len(self.words)
        few &= not self.many
        if self.images and self.numbers == self.images and self.low < self.high:
            return "class" if few and self.whole and len(self.words) <= CLASSES else "number"
        if not few:
            return ""
        return "labels" if self.several else "class"


class Columns:
    """Columns of the images of a place, by name."""

    def __init__(self) -> None:
        self.images, self._first = 0, ""
        self._known: dict[str, Column] = {}

    def add(self, columns: Mapping[str, Any], name: str) -> None:
        """Count the columns of an image.

        Args:
            columns: of the image.
            name: of the image.
        """
        own = with_folder(columns, name)
        for key in own:
            if key.casefold() not in (*CAPTION_COLUMNS, *NAME_COLUMNS) and key not in self._known:
                self._known[key] = Column(bare=self._first)
        for key, column in self._known.items():
            if not column.add(own.get(key)) and not column.bare:
                column.bare = name
        self.images, self._first = self.images + 1, self._first or name

    def candidates(self) -> dict[str, Column]:
        """Columns that could be conditions, the folder first."""
        order = sorted(self._known, key=lambda key: (key != FOLDER, key))
        return {key: self._known[key] for key in order if self._known[key].kind}

    def note(self, findings: Findings) -> None:
        """Note what is odd about the columns.

        Args:
            findings: to add to.
        """
        for key, column in self.candidates().items():
            if missing := self.images - column.images:
                findings.note("no_value", column.bare, f"column {key!r}", missing)
            if column.kind == "number":
                continue
            alike = defaultdict(list)
            for word in in_order(column.words):
                alike["".join(word.casefold().split())].append(word)
            for words in alike.values():
                if len(words) > 1:
                    findings.note("alike_words", " = ".join(map(repr, words)), f"column {key!r}")
            for word, count in column.words.items():
                if count < FEW:
                    findings.note("rare_word", repr(word), f"column {key!r}, {count} images")

    def lines(self) -> Iterator[str]:
        """Lines of a report: each candidate, and how a training is told to use it."""
        for key, column in self.candidates().items():
            yield f"  {key}: {column.kind}, {self._what(column)}"
            name = re.sub(r"\W+", "_", key)
            own = f"conditions.{name if is_name(name) else f'of_{name}'}"
            given = [f"{own}.kind={column.kind}", *[f"{own}.column={key}"] * (key != FOLDER)]
            yield "    " + " ".join(f"--set {shlex.quote(one)}" for one in given)

    def as_json(self) -> dict[str, Any]:
        """Object for the JSON of a report."""
        return {
            key: {
                "kind": column.kind,
                "images": column.images,
                **(
                    {"range": [column.low, column.high]}
                    if column.kind == "number"
                    else {"words": {word: column.words[word] for word in in_order(column.words)}}
                ),
            }
            for key, column in self.candidates().items()
        }

    def _what(self, column: Column) -> str:
        if column.kind == "number":
            return f"{column.low:g} to {column.high:g}"
        counts = sorted(column.words.values())
        return (
            f"{len(counts)} words of {counts[0]:,} to {counts[-1]:,} images: "
            f"{shown(in_order(column.words))}"
        )
