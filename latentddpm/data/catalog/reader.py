"""Reader of a source in a scan: units that are known already, and new images, decoded in parallel.

units ─► as in a previous version? ─► the row to copy
               └─ no ─► entries ─► decoded by threads, a little ahead ─► image, image, …, end
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from latentddpm.data.catalog.catalog import (
    Manifest,
    check_files,
    open_tables,
    read_manifest,
    versions,
)
from latentddpm.data.catalog.columns import Table
from latentddpm.data.images import MAX_BYTES, UnreadableImage, read_whole
from latentddpm.data.prefetch import map_ahead
from latentddpm.data.sources.base import Entry, MetadataStamp, Source, Unit
from latentddpm.data.sources.metadata import MetadataTable, Row
from latentddpm.data.sources.storage import order
from latentddpm.distribution.processes import ProcessGroup
from latentddpm.errors import one_line

PARTS = "part-*-of-*"
"""Folders beside the versions, in which the processes of one job scan a part each."""


class PreviousVersion:
    """One version's knowledge of units, asked for in their order.

    Args:
        stamp: of the captions outside of the units, now.

    Attributes:
        same_metadata: the captions outside of the units are as they were.
        count: of its units, which are its rows 0 … count − 1.
    """

    def __init__(
        self, stamp: MetadataStamp, manifest: Manifest, images: Table, units: Table
    ) -> None:
        self.manifest, self.images, self.units = manifest, images, units
        self.same_metadata = stamp == manifest.metadata and all(one[-1] >= 0 for one in stamp)
        self.count = manifest.units
        self._next = 0

    def name(self, row: int) -> bytes:
        return self.units.text("name", row)

    def find(self, unit: Unit) -> int | None:
        """The row of a unit whose pixels are as they were; units come sorted."""
        name = order(unit.name)
        while self._next < self.count and self.name(self._next) < name:
            self._next += 1
        found = self._next < self.count and self.name(self._next) == name
        return self._next if found and self.same_pixels(self._next, unit) else None

    def same_pixels(self, row: int, unit: Unit) -> bool:
        stamp = int(self.units["size"][row]), int(self.units["mtime_ns"][row])
        return unit.mtime_ns >= 0 and stamp == (unit.size, unit.mtime_ns)

    def same_captions(self, row: int, unit: Unit) -> bool:
        return (
            unit.caption_stamp >= 0 and int(self.units["caption_stamp"][row]) == unit.caption_stamp
        )

    def unreadable(self, row: int) -> list[tuple[str, str]]:
        """The files of a unit that give no pixels, each with its reason."""
        return list(map(tuple, json.loads(self.units.text("unreadable", row) or "[]")))

    def same_units(self, units: Iterable[Unit]) -> bool:
        """Whether every unit is as it was noted, and there are no others."""
        count = 0
        for unit in units:
            if count >= self.count or self.name(count) != order(unit.name):
                return False
            if not (self.same_pixels(count, unit) and self.same_captions(count, unit)):
                return False
            count += 1
        return count == self.count

    def span(self, first: int, last: int) -> tuple[int, int]:
        """The rows of the images of units `first` … `last`, both included: from, and behind."""
        ends = self.units["end"]
        return (int(ends[first - 1]) if first else 0), int(ends[last])


def previous_versions(
    kind: str, stamp: MetadataStamp, folders: Iterable[Path]
) -> Iterator[PreviousVersion]:
    """The knowledge of all versions in catalogs' folders, complete or not, the newest first.

    Args:
        kind: of the source; versions of another kind know nothing of it.
        stamp: see `PreviousVersion`.
    """
    for folder in folders:
        parts = sorted(folder.glob(PARTS))
        for version in itertools.chain(versions(folder), *map(versions, parts)):
            with contextlib.suppress(OSError, ValueError):
                manifest = read_manifest(version)
                if manifest.complete:
                    check_files(version, manifest)  # damage is not taken over
                if manifest.kind == kind:
                    yield PreviousVersion(stamp, manifest, *open_tables(version, manifest))


Decoded = tuple[bytes, int, int, bool] | str
"""SHA-256, width, height and whether a pixel is not opaque; or why a file gives no pixels."""


class ScanEvent(NamedTuple):
    """One thing to write, in its turn: a unit as noted, an image, or the end of a unit."""

    unit: Unit
    previous: PreviousVersion | None = None
    row: int = 0
    captions: Row | None = None  # of an image whose pixels are noted
    entry: Entry | None = None
    decoded: Decoded | None = None


class SourceReader:
    """Reader of the units that fall to one process of a group.

    Args:
        stamp: of the captions outside of the units, before any was read.
        previous: what earlier versions know; the first that knows a unit is believed.
    """

    def __init__(
        self,
        source: Source,
        stamp: MetadataStamp,
        previous: Sequence[PreviousVersion],
        processes: ProcessGroup,
    ) -> None:
        self.source, self.stamp, self.previous = source, stamp, previous
        self.processes = processes
        self._metadata: MetadataTable | None = None

    def units(self) -> Iterator[Unit]:
        """The units of this process, by their names alone."""
        index, count = self.processes.index, self.processes.count
        return (
            unit
            for unit in self.source.units()
            if count == 1 or zlib.crc32(order(unit.name)) % count == index
        )

    def __iter__(self) -> Iterator[ScanEvent]:
        """All events in order, images decoded a little ahead."""
        for event, decoded in map_ahead(
            lambda event: examine(event.entry),
            self._events(),
            weigh=lambda event: None if event.entry is None else event.entry.size,
        ):
            yield event._replace(decoded=decoded)

    def captions(self) -> tuple[list[str], str, list[str] | None]:
        """Of the captions outside of the units: what is to be said, what is wrong, its columns.

        Columns are None where the images' own rows say them.
        """
        table = self._metadata
        if table is None:  # not read, so it is as one of the versions found it
            for previous in self.previous:
                if previous.manifest.complete and previous.manifest.metadata == self.stamp:
                    return previous.manifest.notes, previous.manifest.problem, None
            return [], "", None
        count, total, names = table.missing()
        notes = []
        if count:
            few = ", ".join(names[:3]) + (", ..." if count > 3 else "")
            notes = [f"{table.path}: {count} of {total} rows name files that do not exist ({few})"]
        return notes, table.problem, list(table.columns) if self.source.kind == "folder" else None

    def _events(self) -> Iterator[ScanEvent]:
        for unit in self.units():
            previous, row = next(
                ((n, row) for n in self.previous if (row := n.find(unit)) is not None), (None, 0)
            )
            if previous is not None:
                same = previous.same_captions(row, unit) and previous.same_metadata
                yield ScanEvent(unit, previous, row, None if same else self._captions_of(unit))
                continue
            for entry in self.source.entries(unit, self._open_metadata()):
                yield ScanEvent(unit, entry=entry)
            yield ScanEvent(unit)

    def _captions_of(self, unit: Unit) -> Row:
        """The columns of the one image of a unit, without its pixels."""
        return next(iter(self.source.entries(unit, self._open_metadata()))).row

    def _open_metadata(self) -> MetadataTable:
        if self._metadata is None:
            self._metadata = self.source.open_metadata()
        return self._metadata


def examine(entry: Entry) -> Decoded:
    """Decode an image in full."""
    if entry.size > MAX_BYTES:
        return f"{entry.size:,} bytes is over the limit of {MAX_BYTES:,} bytes"
    try:
        data = entry.load()
        image = read_whole(data, entry.where)
    except UnreadableImage as error:
        return error.reason
    except OSError as error:
        return one_line(error)
    return hashlib.sha256(data).digest(), image.width, image.height, image.mode == "RGBA"
