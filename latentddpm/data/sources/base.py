"""Captioned images, wherever they come from: what a source gives.

    .units()        what is stamped as one: an image file with its sidecar, or a shard
    .entries(unit)  its images: where their bytes lie, and what is known of them
    .read(...)      those bytes again, at any time, in any order

All of it is streamed, in an order that follows from the names alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from latentddpm.data.sources.metadata import MAX_ROWS, MetadataTable, Row

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
"""Suffixes looked for, in any case. What a file holds is told by its bytes, not its suffix."""

MetadataStamp = list[list[str | int]]
"""Tells whether captions outside of the units are still the same."""


class Unit(NamedTuple):
    """Part of a source with one stamp. If only `caption_stamp` changes, the pixels are the same.

    Attributes:
        name: relative to the place; units come sorted by it.
        size, mtime_ns: of the file; see `storage.Stamp`.
        caption_stamp: what tells whether the sidecar is still the same; 0 for none, -1: too young.
    """

    name: str
    size: int
    mtime_ns: int
    caption_stamp: int = 0


@dataclass(frozen=True)
class Entry:
    """One image of a unit.

    Attributes:
        name: of the image, by which it falls into training or validation; POSIX, relative.
        where: what messages call it.
        offset, size: of its bytes in the unit, for `Source.read`.
        row: its captions and other columns.
        load: gives its bytes.
    """

    name: str
    where: str
    offset: int
    size: int
    row: Row = field(default_factory=Row)
    load: Callable[[], bytes] = bytes


class Source(Protocol):
    """Captioned images at one place."""

    place: str
    kind: str

    def metadata_stamp(self) -> MetadataStamp:
        """The stamp as of now."""

    def open_metadata(self, max_rows: int | None = MAX_ROWS) -> MetadataTable:
        """Captions outside of the units; a table with more rows has a `problem`."""

    def units(self) -> Iterator[Unit]:
        """All units, sorted by name.

        Raises:
            UserError: there is nothing.
        """

    def entries(self, unit: Unit, metadata: MetadataTable) -> Iterator[Entry]:
        """The images of one unit.

        Raises:
            UserError: the unit is not what its name says.
        """

    def where(self, unit: str, name: str) -> str:
        """An image's name in messages."""

    def read(self, unit: str, offset: int, size: int) -> bytes:
        """The bytes of one image; may be called from many threads.

        Raises:
            OSError: they are not there any more.
        """


def is_image(name: str) -> bool:
    """Whether a file name has the suffix of an image."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES
