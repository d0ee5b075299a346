"""What a scan meets, in order: units that are noted already, and new images, decoded in parallel.

units ─► as noted before? ─► the row to copy
               └─ no ─► entries ─► decoded by threads, a little ahead ─► image, image, …, end
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from latentddpm.data.catalog.noted import Noted
from latentddpm.data.images import MAX_BYTES, UnreadableImage, read_whole
from latentddpm.data.prefetch import ahead
from latentddpm.data.sources.base import Entry, MetadataStamp, Source, Unit
from latentddpm.data.sources.metadata import MetadataTable, Row
from latentddpm.data.sources.storage import order
from latentddpm.distribution.processes import Crew

Seen = tuple[bytes, int, int, bool] | str
"""SHA-256, width, height and whether a pixel is not opaque; or why a file gives no pixels."""


class Event(NamedTuple):
    """One thing to write, in its turn: a unit as noted, an image, or the end of a unit."""

    unit: Unit
    noted: Noted | None = None
    row: int = 0
    words: Row | None = None  # of an image whose pixels are noted
    entry: Entry | None = None
    seen: Seen | None = None


class UnitReader:
    """What falls to one process of a crew.

    Args:
        stamp: of the captions outside of the units, before any was read.
        noted: what earlier versions know; the first that knows a unit is believed.
        scratch: folder for what a large table of captions needs while it is read.
    """

    def __init__(
        self,
        source: Source,
        stamp: MetadataStamp,
        noted: Sequence[Noted],
        crew: Crew,
        scratch: Path,
    ) -> None:
        self.source, self.stamp, self.noted = source, stamp, noted
        self.crew, self.scratch = crew, scratch
        self._metadata: MetadataTable | None = None

    def units(self) -> Iterator[Unit]:
        """The units of this process, by their names alone."""
        index, count = self.crew.index, self.crew.count
        return (
            unit
            for unit in self.source.units()
            if count == 1 or zlib.crc32(order(unit.name)) % count == index
        )

    def __iter__(self) -> Iterator[Event]:
        """All events in order, images decoded a little ahead."""
        events = ((event, event.entry) for event in self._events())
        for event, seen in ahead(examine, events):
            yield event._replace(seen=seen)

    def captions(self) -> tuple[list[str], str, list[str] | None]:
        """Of the captions outside of the units: what is to be said, what is wrong, its columns.

        Columns are None where the images' own rows say them.
        """
        table = self._metadata
        if table is None:  # not read, so it is as one of the versions found it
            for noted in self.noted:
                if noted.manifest.complete and noted.manifest.metadata == self.stamp:
                    return noted.manifest.notes, noted.manifest.problem, None
            return [], "", None
        count, total, names = table.missing()
        notes = []
        if count:
            few = ", ".join(names[:3]) + (", ..." if count > 3 else "")
            notes = [f"{table.path}: {count} of {total} rows name files that do not exist ({few})"]
        return notes, table.problem, list(table.columns) if self.source.kind == "folder" else None

    def _events(self) -> Iterator[Event]:
        for unit in self.units():
            noted, row = next(
                ((n, row) for n in self.noted if (row := n.find(unit)) is not None), (None, 0)
            )
            if noted is not None:
                same = noted.same_words(row, unit) and noted.same_metadata
                yield Event(unit, noted, row, None if same else self._words(unit))
                continue
            for entry in self.source.entries(unit, self._open_metadata()):
                yield Event(unit, entry=entry)
            yield Event(unit)

    def _words(self, unit: Unit) -> Row:
        """The columns of the one image of a unit, without its pixels."""
        return next(iter(self.source.entries(unit, self._open_metadata()))).row

    def _open_metadata(self) -> MetadataTable:
        if self._metadata is None:
            self._metadata = self.source.open_metadata(self.scratch)
        return self._metadata


def examine(entry: Entry) -> Seen:
    """Decode an image in full."""
    if entry.size > MAX_BYTES:
        return f"{entry.size:,} bytes is over the limit of {MAX_BYTES:,} bytes"
    try:
        data = entry.load()
        image = read_whole(data, entry.where)
    except UnreadableImage as error:
        return error.reason
    except OSError as error:
        return " ".join(str(error).split())
    return hashlib.sha256(data).digest(), image.width, image.height, image.mode == "RGBA"
