"""Places of images as they are named: one, or several with a weight each.

    --data photos                       "photos"
    --data photos:3 --data drawings     ["photos:3", "drawings"]   [("photos", 3), "drawings"]

A weight says how often an image of that place is used, relative to the images of the others; 1
where none is named. Only a number behind the last colon is one: `gs://bucket/photos`,
`C:\\photos` and `a-{00..99}.tar` are places, and so is what is there under the whole name.
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from latentddpm.data.places.union import Union
from latentddpm.data.sources import storage
from latentddpm.data.sources.base import Source
from latentddpm.data.sources.open import open_source
from latentddpm.data.sources.walk import NO_SECOND, Second
from latentddpm.errors import UserError

WEIGHTED = re.compile(
    r"(.+):([+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:e[+-]?\d+)?|nan|[+-]?inf)", re.IGNORECASE
)
"""Place with a weight behind it."""
PORT = re.compile(r"(https?|hdfs)://[^/]*:\d+", re.IGNORECASE)
"""Address whose last number is a port."""


class Place(NamedTuple):
    """Place of images, with its weight.

    Attributes:
        path: as `data.sources.open.open_source` takes it.
        weight: how often an image of it is used, relative to those of other places; above 0.
    """

    path: str
    weight: Fraction = Fraction(1)

    def __str__(self) -> str:
        return self.path if self.weight == 1 else f"{self.path}:{float(self.weight):g}"


Data = str | Path | Place | tuple[str | Path, float] | Sequence[str | Path | tuple]
"""Places as a function is given them: one, or several in a sequence."""


def as_places(data: Data) -> list[Place]:
    """Places that were named.

    Args:
        data: a place; or a sequence of places, each as text with or without its weight, or as a
            pair of a place and its weight.

    Raises:
        UserError: a weight that is not above 0, a place that is named twice, or none at all.
    """
    if isinstance(data, Place):
        return [data]
    if isinstance(data, str | Path) or _is_pair(data):
        data = [data]
    places = [_as_place(one) for one in data]
    if not places:
        raise UserError("--data: no place; name a folder of images, or of shards")
    seen = Counter(_full(place.path) for place in places)
    for place in places:
        if seen[_full(place.path)] > 1:
            raise UserError(
                f"--data {place.path}: named twice; name it once, with a weight: {place.path}:2"
            )
    if len(places) == 1 and places[0].weight != 1:
        raise UserError(
            f"--data {places[0]}: a weight is relative to that of other places, and this is the "
            "only one; leave it out, or name others with --data"
        )
    return places


def shown(data: Data) -> str:
    """Places in one line, as they were named.

    Args:
        data: see `as_places`.
    """
    if isinstance(data, str | Path):
        return str(data)
    return " + ".join(map(str, as_places(data)))


def open_places(data: Data, second: Second = NO_SECOND) -> Source:
    """Open one place as the source that it is, several as one source.

    Args:
        data: see `as_places`.
        second: see `data.sources.open.open_source`.

    Raises:
        UserError: see `as_places` and `data.sources.open.open_source`.
    """
    places = as_places(data)
    if len(places) == 1:
        return open_source(places[0].path, second)
    sources = [open_source(place.path, second) for place in places]
    labels = _labels([place.path for place in places])
    return Union(
        shown(places), dict(zip(labels, sources, strict=True)), [one.weight for one in places]
    )


def _is_pair(data: Sequence) -> bool:
    """True for a place with its weight, as a pair."""
    return (
        isinstance(data, tuple)
        and len(data) == 2
        and isinstance(data[0], str | Path)
        and isinstance(data[1], int | float | Fraction)
    )


def _as_place(one: str | Path | tuple) -> Place:
    if isinstance(one, Place):
        return one
    if _is_pair(one):
        return Place(str(one[0]), _weight(str(one[1]), str(one[0])))
    if not isinstance(one, str | Path):
        raise UserError(
            f"data: {one!r:.60}, expected a place, or a pair of a place and its weight"
        )
    text = str(one)
    match = None if isinstance(one, Path) else WEIGHTED.fullmatch(text)
    if match is None or PORT.fullmatch(text) or (not storage.is_remote(text) and _is_there(text)):
        return Place(text)
    return Place(match[1], _weight(match[2], match[1]))


def _weight(text: str, place: str) -> Fraction:
    """Weight that a text says, exactly.

    Raises:
        UserError: it is no number above 0.
    """
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise UserError(
            f"--data {place}:{text}: the weight is {text}, expected a number above 0, such as "
            f"{place}:3; leave the place out to use none of it"
        )
    return Fraction(text)


def _is_there(path: str) -> bool:
    return storage.is_folder(path) or storage.is_file(path)


def _full(path: str) -> str:
    """Whole path of a place, by which two names of the same are equal."""
    return path.rstrip("/") if storage.is_remote(path) else os.path.realpath(path)


def _labels(paths: Sequence[str]) -> list[str]:
    """Label of each place: the last parts of its path, as many as tell it from the others."""
    parts = []
    for path in paths:
        whole = path if storage.is_remote(path) else os.path.abspath(path)
        parts.append([part for part in re.split(r"[/\\]+|://", whole) if part] or ["root"])
    for count in range(1, max(map(len, parts)) + 1):
        labels = ["-".join(one[-count:]) for one in parts]
        if len(set(labels)) == len(labels):
            return labels
    return [f"{label}-{number}" for number, label in enumerate(labels, 1)]
