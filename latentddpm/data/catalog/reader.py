"""Reader of a source in a scan: finds known units in previous versions, decodes new images.

unit ─► same as in a previous version? ─► its row there, to be copied
                 └─ no ─► entries ─► decoded by threads ─► image, image, …, end of the unit
"""

from __future__ import annotations

import hashlib
import itertools
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from latentddpm.data.catalog.catalog import (
    RULES,
    Manifest,
    OtherFormat,
    check_files,
    open_tables,
    read_manifest,
    versions,
)
from latentddpm.data.catalog.columns import Table
from latentddpm.data.findings import Findings
from latentddpm.data.images import examine_image
from latentddpm.data.pictures.decode import MAX_BYTES, UnreadableImage
from latentddpm.data.pictures.stored import Facts
from latentddpm.data.places.union import Union
from latentddpm.data.prefetch import map_ahead
from latentddpm.data.sources.base import Entry, MetadataStamp, Source, Unit
from latentddpm.data.sources.metadata import Row
from latentddpm.data.sources.storage import order
from latentddpm.data.sources.tables import MetadataTable
from latentddpm.distribution.processes import ProcessGroup
from latentddpm.errors import one_line
from latentddpm.utils.console import say

WITH_TABLES = ("folder", Union.kind)
"""Kinds of sources whose columns are those of tables."""
PARTS = "part-*-of-*"
"""Folders beside the versions, in which each process of a job scans its part."""


class PreviousVersion:
    """Previous version of a catalog, in which units are looked up in sorted order.

    Args:
        stamp: of the table of captions, as of now.
        manifest: of the version.
        images, units: tables of the version.

    Attributes:
        same_rules: True if it was read by the rules of today.
        same_metadata: True if the table of captions has not changed, and the rules neither.
        count: number of units.
    """

    def __init__(
        self, stamp: MetadataStamp, manifest: Manifest, images: Table, units: Table
    ) -> None:
        self.manifest, self.images, self.units = manifest, images, units
        self.same_rules = manifest.rules == RULES
        settled = all(one[-1] >= 0 for one in stamp)
        self.same_metadata = self.same_rules and settled and stamp == manifest.metadata
        self.count = manifest.units
        self._next = 0

    def name(self, row: int) -> bytes:
        """Name of the unit in a `row`, as a sort key."""
        return self.units.text("name", row)

    def find(self, unit: Unit) -> int | None:
        """Row of a unit, or None if it is new or its pixels may have changed.

        Args:
            unit: later in sorted order than that of the call before.
        """
        name = order(unit.name)
        while self._next < self.count and self.name(self._next) < name:
            self._next += 1
        found = self._next < self.count and self.name(self._next) == name
        return self._next if found and self.same_pixels(self._next, unit) else None

    def same_pixels(self, row: int, unit: Unit) -> bool:
        """True where the file of a `unit` is unchanged since that in `row`."""
        stamp = int(self.units["size"][row]), int(self.units["mtime_ns"][row])
        return unit.mtime_ns >= 0 and stamp == (unit.size, unit.mtime_ns)

    def same_captions(self, row: int, unit: Unit) -> bool:
        """True where the sidecar of a `unit` is unchanged since that in `row`."""
        return (
            unit.caption_stamp >= 0 and int(self.units["caption_stamp"][row]) == unit.caption_stamp
        )

    def unreadable(self, row: int) -> list[tuple[str, str]]:
        """Files that cannot be read of the unit in a `row`, each with the reason."""
        notes = self.notes(row)
        return [(note[0], note[1]) for note in notes if len(note) == 2]

    def passed(self, row: int) -> int:
        """Number of findings about the rest of the unit in a `row`."""
        return sum(note[3] for note in self.notes(row) if len(note) == 4)

    def notes(self, row: int) -> list[list]:
        """All that is noted of the unit in a `row`; see `catalog.UNITS`."""
        return json.loads(self.units.text("unreadable", row) or "[]")

    def same_units(self, units: Iterable[Unit]) -> bool:
        """True where `units` are exactly those of this version, all unchanged."""
        count = 0
        for unit in units:
            if count >= self.count or self.name(count) != order(unit.name):
                return False
            if not (self.same_pixels(count, unit) and self.same_captions(count, unit)):
                return False
            count += 1
        return count == self.count

    def span(self, first: int, last: int) -> tuple[int, int]:
        """Range (start, stop) of the rows of the images of units `first` … `last`, inclusive."""
        ends = self.units["end"]
        return (int(ends[first - 1]) if first else 0), int(ends[last])


def previous_versions(
    kind: str, stamp: MetadataStamp, folders: Iterable[Path]
) -> Iterator[PreviousVersion]:
    """Previous versions in the folders of catalogs, complete or not, newest first.

    Args:
        kind: of the source; versions of another kind are ignored.
        stamp: see `PreviousVersion`.
        folders: of catalogs.
    """
    for folder in folders:
        parts = sorted(folder.glob(PARTS))
        for version in itertools.chain(versions(folder), *map(versions, parts)):
            try:
                manifest = read_manifest(version)
                if manifest.complete:
                    check_files(version, manifest)  # so that damage is not copied
                tables = open_tables(version, manifest)
            except OtherFormat as error:
                say(f"{version}: {error}; the images are read again")
                continue
            except (OSError, ValueError):
                continue
            if manifest.kind == kind and (kind == "folder" or manifest.rules == RULES):
                yield PreviousVersion(stamp, manifest, *tables)


Decoded = tuple[bytes, Facts] | str
"""Result of decoding an image: SHA-256 and facts; or the reason why it cannot be read."""


class ScanEvent(NamedTuple):
    """Event of a scan, to be written in order: a known unit, a new image, or the end of a unit.

    Attributes:
        unit: of the event.
        previous: version that has this unit; None for a new unit.
        row: of the unit in `previous`.
        captions: new columns of the image of a known unit; None if they are unchanged.
        entry: a new image; None for the end of a new unit.
        decoded: of `entry`.
        findings: at the end of a new unit, about the rest of it.
    """

    unit: Unit
    previous: PreviousVersion | None = None
    row: int = 0
    captions: Row | None = None
    entry: Entry | None = None
    decoded: Decoded | None = None
    findings: Findings | None = None


class SourceReader:
    """Reader of a source in one process: an iterable of events, in the order of the units.

    Args:
        source: to read.
        stamp: of its table of captions, taken before anything is read.
        previous: versions to look units up in; the first that has a unit is used.
        processes: of the job; this one reads its share of the units.
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
        """Units of this process, a share that depends only on their names."""
        index, count = self.processes.index, self.processes.count
        return (
            unit
            for unit in self.source.units()
            if count == 1 or zlib.crc32(order(unit.name)) % count == index
        )

    def __iter__(self) -> Iterator[ScanEvent]:
        """Events in order; threads decode the next images."""
        for event, decoded in map_ahead(
            lambda event: examine(event.entry),
            self._events(),
            weigh=lambda event: None if event.entry is None else event.entry.size,
        ):
            yield event._replace(decoded=decoded)

    def captions(self) -> tuple[list[str], str, list[str] | None]:
        """Findings about the table of captions, after all events.

        Returns:
            Warnings, the error (empty if there is none), and the names of its columns: None if
            they follow from the rows of the images.
        """
        table = self._metadata
        if table is None:  # not read: unchanged since a previous version
            for previous in self.previous:
                if previous.manifest.complete and previous.manifest.metadata == self.stamp:
                    return previous.manifest.notes, previous.manifest.problem, None
            return [], "", None
        count, total, names = table.missing()
        notes = []
        if count:
            few = ", ".join(names[:3]) + (", ..." if count > 3 else "")
            notes = [
                f"{table.path}: {count} of {total} rows name files that do not exist ({few}); "
                "names are relative to the folder of the table"
            ]
        in_tables = self.source.kind in WITH_TABLES
        return notes, table.problem, list(table.columns) if in_tables else None

    def _same_tables(self, previous: PreviousVersion, unit: Unit) -> bool:
        """True where no table that may describe a unit has changed."""
        if previous.same_metadata or self.source.kind != Union.kind:
            return previous.same_metadata
        return previous.same_rules and not self.source.has_tables(unit.name)

    def _events(self) -> Iterator[ScanEvent]:
        for unit in self.units():
            previous, row = next(
                ((n, row) for n in self.previous if (row := n.find(unit)) is not None), (None, 0)
            )
            if previous is not None:
                same = previous.same_captions(row, unit) and self._same_tables(previous, unit)
                yield ScanEvent(unit, previous, row, None if same else self._captions_of(unit))
                continue
            findings = Findings()
            for entry in self.source.entries(unit, self._open_metadata(), findings):
                yield ScanEvent(unit, entry=entry)
            yield ScanEvent(unit, findings=findings)

    def _captions_of(self, unit: Unit) -> Row:
        """Row of the single image of a unit, without decoding it."""
        return next(iter(self.source.entries(unit, self._open_metadata()))).row

    def _open_metadata(self) -> MetadataTable:
        if self._metadata is None:
            self._metadata = self.source.open_metadata()
        return self._metadata


def examine(entry: Entry) -> Decoded:
    """Decode the image of an `entry` in full."""
    if entry.size > MAX_BYTES:
        return f"{entry.size:,} bytes is over the limit of {MAX_BYTES:,} bytes"
    try:
        data = entry.load()
        found, _ = examine_image(data, entry.where)
    except UnreadableImage as error:
        return error.reason
    except OSError as error:
        return one_line(error)
    return hashlib.sha256(data).digest(), found
