"""Writer of a version of a catalog, from the events of a `SourceReader`.

Rows of neighbouring units of one previous version are copied together, in blocks.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from dataclasses import asdict, astuple
from pathlib import Path

import numpy as np

from latentddpm.data.catalog.catalog import (
    IMAGES,
    MANIFEST,
    RULES,
    UNITS,
    Manifest,
    expected_files,
    split_hash,
)
from latentddpm.data.catalog.columns import TableWriter
from latentddpm.data.catalog.reader import Decoded, PreviousVersion, ScanEvent
from latentddpm.data.findings import Findings
from latentddpm.data.sources.base import Entry, MetadataStamp, Source, Unit
from latentddpm.data.sources.metadata import TEXT, Row
from latentddpm.data.sources.storage import order
from latentddpm.data.sources.tables import MAX_COLUMNS
from latentddpm.errors import UserError
from latentddpm.utils.files import FileEntry, fsync_path, write_json


class CatalogWriter:
    """Writer of the tables and the manifest of one version, a context manager.

    Args:
        source: that is scanned.
        version: folder of the version, which must not exist.
        stamp: of the source's table of captions.

    Raises:
        OSError: the folder exists, or cannot be written.
    """

    def __init__(self, source: Source, version: Path, stamp: MetadataStamp) -> None:
        self.source, self.version, self.stamp = source, version, stamp
        self.columns: dict[str, None] = {}
        self.sidecars = False
        self.unreadable = self.passed = 0
        self._broken: list[tuple[str, str]] = []  # of the unit that is being written
        # Version, first and last row of units that are still to be copied.
        self._run: tuple[PreviousVersion, int, int] | None = None
        self._tables = contextlib.ExitStack()
        self.images = self._tables.enter_context(TableWriter(version / "images", IMAGES))
        self.units = self._tables.enter_context(TableWriter(version / "units", UNITS))

    def __enter__(self) -> CatalogWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self._tables.close()

    def write(self, event: ScanEvent) -> None:
        """Write the next `event`.

        Raises:
            UserError: the source has more than `MAX_COLUMNS` columns.
        """
        if event.previous is not None and event.captions is None:
            self._copy(event.previous, event.row)
            return
        self._flush_copies()
        if event.previous is not None:
            self._replace_captions(event.unit, event.previous, event.row, event.captions)
        elif event.entry is not None:
            self._add_image(event.unit, event.entry, event.decoded)
        else:
            self._end_unit(event.unit, event.findings)

    def save(self) -> None:
        """Make the rows so far readable, so that another scan can copy them."""
        self._save(complete=False)

    def finish(self, notes: list[str], problem: str, columns: Iterable[str] | None) -> None:
        """Complete the version.

        Args:
            notes, problem, columns: see `SourceReader.captions`.
        """
        self._flush_copies()
        if columns is not None:
            own = {} if self.source.kind == "folder" else self.columns
            self.columns = {**dict.fromkeys(columns), **own}
        self._save(complete=True, notes=notes, problem=problem)

    def _copy(self, previous: PreviousVersion, row: int) -> None:
        """Copy a unit, later and together with its neighbours."""
        if self._run and self._run[0] is previous and self._run[2] + 1 == row:
            self._run = (previous, self._run[1], row)
            return
        self._flush_copies()
        self._run = (previous, row, row)

    def _flush_copies(self) -> None:
        if self._run is None:
            return
        previous, first, last = self._run
        self._run = None
        start, stop = previous.span(first, last)
        shift = self.images.count - start
        self.images.copy(previous.images, start, stop, unit=self.units.count - first)
        self.units.copy(previous.units, first, last + 1, end=shift)
        if previous.manifest.unreadable:
            for row in range(first, last + 1):
                self.unreadable += len(previous.unreadable(row))
        if previous.manifest.passed:
            self.passed += sum(map(previous.passed, range(first, last + 1)))
        self.columns.update(dict.fromkeys(previous.manifest.columns))
        self.sidecars |= previous.manifest.sidecars

    def _replace_captions(
        self, unit: Unit, previous: PreviousVersion, row: int, captions: Row
    ) -> None:
        """Copy the images of a unit, with new captions."""
        for image in range(*previous.span(row, row)):
            columns = {**previous.images.row(image), "unit": self.units.count}
            name = previous.images.text("name", image)
            self.images.append(columns, {"name": name, "row": self._pack(unit, captions)})
        self._broken = previous.unreadable(row)
        self._end_unit(unit)

    def _add_image(self, unit: Unit, entry: Entry, decoded: Decoded) -> None:
        own = entry.name != unit.name
        if isinstance(decoded, str):
            self._broken.append((f"{unit.name}: {entry.name}" if own else entry.name, decoded))
            return
        digest, found = decoded
        columns = {
            "unit": self.units.count,
            "offset": entry.offset,
            "size": entry.size,
            "sha256": np.frombuffer(digest, np.uint8),
            **asdict(found),
            "split_hash": split_hash(entry.own_name or entry.name),
        }
        texts = {"name": order(entry.name) if own else b"", "row": self._pack(unit, entry.row)}
        self.images.append(columns, texts)

    def _pack(self, unit: Unit, row: Row) -> bytes:
        self.sidecars |= bool(unit.caption_stamp) and TEXT in row.columns
        if not row.line:
            self.columns.update(dict.fromkeys(row.columns) if self.source.kind != "folder" else {})
            if len(self.columns) > MAX_COLUMNS:
                raise UserError(f"{unit.name}: more than {MAX_COLUMNS} different columns")
        return row.pack()

    def _end_unit(self, unit: Unit, findings: Findings | None = None) -> None:
        columns = {
            "size": unit.size,
            "mtime_ns": unit.mtime_ns,
            "caption_stamp": unit.caption_stamp,
            "end": self.images.count,
        }
        passed = list((findings or Findings()).groups())
        notes = [*self._broken, *passed]
        text = json.dumps(notes).encode() if notes else b""
        self.units.append(columns, {"name": order(unit.name), "unreadable": text})
        self.unreadable += len(self._broken)
        self.passed += sum(count for *_, count in passed)
        self._broken = []

    def _save(self, complete: bool, notes: Iterable[str] = (), problem: str = "") -> None:
        for table in (self.images, self.units):
            table.save()
        files = {}
        if complete:
            for name in expected_files():
                files[name] = astuple(FileEntry.of(self.version / name))
        manifest = Manifest(
            rules=RULES,
            complete=complete,
            place=self.source.place,
            kind=self.source.kind,
            images=self.images.count,
            units=self.units.count,
            unreadable=self.unreadable,
            passed=self.passed,
            metadata=self.stamp,
            columns=list(self.columns),
            sidecars=self.sidecars,
            notes=list(notes),
            problem=problem,
            files=files,
        )
        for folder in ("images", "units"):
            fsync_path(self.version / folder)
        write_json(self.version / MANIFEST, manifest.model_dump())
