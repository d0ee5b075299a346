"""Making a catalog: every new image is decoded in full, everything else is copied.

    units ─► as noted before? ─► copy its rows
                   └─ no ─► entries ─► decoded in parallel ─► rows

What a truncated file lacks is found here, and not in the middle of training. The rows of a
version are taken over by the next one, complete or not: an interrupted scan goes on, and a
change of a few files costs a few files. The processes of one job scan a part each, and the one
that then makes the catalog finds everything known.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import shutil
import time
import zlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from latentddpm.data.catalog import (
    IMAGES,
    MANIFEST,
    UNITS,
    Catalog,
    Manifest,
    check_files,
    expected_files,
    lot,
    open_tables,
    read_manifest,
    require_images,
    versions,
)
from latentddpm.data.crew import ALONE, Crew, alone
from latentddpm.data.images import MAX_BYTES, UnreadableImage, read_whole
from latentddpm.data.metadata import MAX_COLUMNS, TEXT, MetadataTable, Row
from latentddpm.data.sources import open_source
from latentddpm.data.storage import order
from latentddpm.data.table import Table, TableWriter
from latentddpm.data.units import Entry, Source, Unit
from latentddpm.errors import UserError
from latentddpm.files import file_digest, fsync_path, write_json

WORKERS = min(32, os.cpu_count() or 1)
WINDOW = 8  # images a worker that are read ahead, and
WINDOW_BYTES = 1 << 28  # what they may weigh together
SAVE_SECONDS = 30.0  # between two notes of how far a scan has come


def open_catalog(
    place: str | Path,
    folder: Path,
    *,
    strict: bool = False,
    quiet: bool = False,
    crew: Crew = ALONE,
) -> Catalog:
    """The catalog of what is at a place: opened when nothing has changed, else made.

    Args:
        place: see `sources.open_source`.
        folder: of the catalog, made when missing. Two processes that want one take turns.
        strict: refuse data with unreadable files.
        quiet: no progress bar (shown on stderr when the scan takes over two seconds).
        crew: processes that all call this and scan a part each.

    Raises:
        UserError: nothing at the place, or nothing readable; with `strict`, not all of it.
        OSError: the catalog cannot be written; one that stood there before is still good.
    """
    source = open_source(place)
    catalog = _newest(source, folder)
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    if catalog is None:
        next(source.units())  # nothing there is told before anything is made
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder}: is a file, not a folder for the catalog")
        folder.mkdir(parents=True, exist_ok=True)
        if crew.count > 1:
            _scan_part(source, folder, crew, quiet)
            crew.barrier()
        if crew.chief:
            catalog = _make(source, folder, quiet)
        crew.barrier()
        if catalog is None:
            catalog = _newest(source, folder)
            if catalog is None:
                raise OSError(f"{folder}: the catalog that the chief made is not there")
    if not len(catalog) and missing and crew.chief:
        shutil.rmtree(missing[-1])  # a catalog of nothing is no reason to leave a folder
    require_images(catalog, strict)
    return catalog


def _make(source: Source, folder: Path, quiet: bool) -> Catalog:
    with alone(folder, "catalog", quiet):
        catalog = _newest(source, folder)  # another process may have made it meanwhile
        if catalog is None:
            catalog = Catalog(source, _Scan(source, folder, quiet).run())
            _remove_others(folder, catalog.folder)
    return catalog


def _scan_part(source: Source, folder: Path, crew: Crew, quiet: bool) -> None:
    """One process's part; the chief then finds everything known and only copies."""
    here = folder / f"part-{crew.index}-of-{crew.count}"
    here.mkdir(parents=True, exist_ok=True)
    with alone(here, "catalog", quiet):
        _Scan(source, here, quiet, crew, [folder]).run()


def _newest(source: Source, folder: Path) -> Catalog | None:
    """The newest whole version, if nothing has changed since."""
    for version in versions(folder):
        with contextlib.suppress(OSError, ValueError):
            catalog = Catalog(source, version)
            return catalog if _unchanged(source, catalog) else None
    return None


def _unchanged(source: Source, catalog: Catalog) -> bool:
    """Whether every unit is as it was noted, and there are no others."""
    noted = _Noted(source, catalog.manifest, catalog.images, catalog.units)
    if catalog.manifest.kind != source.kind or not noted.same_metadata:
        return False
    count = 0
    for unit in source.units():
        if count >= noted.count or noted.name(count) != order(unit.name):
            return False
        if not (noted.same_pixels(count, unit) and noted.same_words(count, unit)):
            return False
        count += 1
    return count == noted.count


def _same_metadata(source: Source, manifest: Manifest) -> bool:
    now = source.metadata_stamp()
    return now == manifest.metadata and all(stamp[-1] >= 0 for stamp in now)


def _remove_others(folder: Path, version: Path) -> None:
    """Drop what a whole version has taken over. What cannot be removed costs only space."""
    for path in (*versions(folder), *folder.glob("part-*-of-*")):
        if path != version:
            shutil.rmtree(path, ignore_errors=True)


class _Noted:
    """What one version knows of units, asked for in their order."""

    def __init__(self, source: Source, manifest: Manifest, images: Table, units: Table) -> None:
        self.manifest, self.images, self.units = manifest, images, units
        self.same_metadata = _same_metadata(source, manifest)
        self.count = manifest.units
        self._next = 0

    def name(self, unit: int) -> bytes:
        return self.units.text("name", unit)

    def find(self, unit: Unit) -> int | None:
        """The row of a unit; units come sorted."""
        name = order(unit.name)
        while self._next < self.count and self.name(self._next) < name:
            self._next += 1
        found = self._next < self.count and self.name(self._next) == name
        return self._next if found and self.same_pixels(self._next, unit) else None

    def same_pixels(self, row: int, unit: Unit) -> bool:
        stamp = int(self.units["size"][row]), int(self.units["mtime_ns"][row])
        return unit.mtime_ns >= 0 and stamp == (unit.size, unit.mtime_ns)

    def same_words(self, row: int, unit: Unit) -> bool:
        return unit.words >= 0 and int(self.units["words"][row]) == unit.words

    def span(self, first: int, last: int) -> tuple[int, int]:
        """The images of units `first` … `last`, both included."""
        ends = self.units["end"]
        return (int(ends[first - 1]) if first else 0), int(ends[last])


class _Event(NamedTuple):
    """One thing to write, in its turn: a unit as noted, an image, or the end of a unit."""

    unit: Unit
    noted: _Noted | None = None
    row: int = 0
    words: Row | None = None  # of an image whose pixels are noted
    entry: Entry | None = None
    seen: Future | None = None


class _Scan:
    """One pass over a source.

    Args:
        folder: in which the version is made; its other versions and parts are taken over.
        crew: scan only what falls to this process of it.
        others: more folders to take rows over from.
    """

    def __init__(
        self,
        source: Source,
        folder: Path,
        quiet: bool,
        crew: Crew = ALONE,
        others: list[Path] | None = None,
    ) -> None:
        self.source, self.quiet, self.crew = source, quiet, crew
        self.stamp = source.metadata_stamp()
        self.noted = list(self._open_noted([folder, *(others or [])]))
        last = max((int(path.name[-6:]) for path in versions(folder)), default=0)
        self.version = folder / f"version-{last + 1:06d}"
        self.metadata: MetadataTable | None = None
        self.columns: dict[str, None] = {}
        self.sidecars = False
        self.unreadable = 0
        self._broken: list[tuple[str, str]] = []
        self._run: tuple[_Noted, int, int] | None = None

    def run(self) -> Path:
        """Scan everything; returns the folder of the whole version."""
        saved, inside = time.monotonic(), 0
        in_bytes = self.source.kind != "folder"
        mine = list if in_bytes else iter  # shards are few
        units = mine(self._mine())
        total = sum(unit.size for unit in units) if in_bytes else sum(1 for _ in units)
        with (
            TableWriter(self.version / "images", IMAGES) as self.images,
            TableWriter(self.version / "units", UNITS) as self.units,
            tqdm(
                desc="scan",
                total=total,
                unit="B" if in_bytes else "image",
                unit_scale=in_bytes,
                delay=2,
                disable=self.quiet,
            ) as bar,
        ):
            try:
                for event in self._in_order():
                    self._write(event)
                    done = event.entry.size if event.entry else event.unit.size - inside
                    inside = inside + done if event.entry else 0
                    if in_bytes:
                        bar.set_postfix(images=self.images.count, refresh=False)
                        bar.update(done)
                    elif event.entry is None:
                        bar.update()
                    if time.monotonic() - saved > SAVE_SECONDS:
                        self._save(complete=False)
                        saved = time.monotonic()
            except BaseException:
                with contextlib.suppress(OSError):
                    self._save(complete=False)
                raise
            self._save(complete=True)
        return self.version

    # --- In parallel, in order ---

    def _mine(self) -> Iterator[Unit]:
        index, count = self.crew.index, self.crew.count
        return (
            unit
            for unit in self.source.units()
            if count == 1 or zlib.crc32(order(unit.name)) % count == index
        )

    def _in_order(self) -> Iterator[_Event]:
        """All events in order, images decoded a little ahead."""
        waiting: deque[_Event] = deque()
        weight = images = 0
        with ThreadPoolExecutor(WORKERS) as pool:
            try:
                for event in self._events(pool):
                    waiting.append(event)
                    if event.entry is not None:
                        weight, images = weight + event.entry.size, images + 1
                    while waiting and (
                        waiting[0].entry is None
                        or waiting[0].seen.done()
                        or images > WINDOW * WORKERS
                        or weight > WINDOW_BYTES
                    ):
                        first = waiting.popleft()
                        if first.entry is not None:
                            weight, images = weight - first.entry.size, images - 1
                        yield first
                yield from waiting
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _events(self, pool: ThreadPoolExecutor) -> Iterator[_Event]:
        for unit in self._mine():
            found = next(
                ((n, row) for n in self.noted if (row := n.find(unit)) is not None), (None, 0)
            )
            noted, row = found
            if noted is not None:
                same = noted.same_words(row, unit) and noted.same_metadata
                words = None if same else self._words(unit)
                yield _Event(unit, noted, row, words)
                continue
            for entry in self.source.entries(unit, self._open_metadata()):
                yield _Event(unit, entry=entry, seen=pool.submit(_examine, entry))
            yield _Event(unit)

    def _words(self, unit: Unit) -> Row:
        """The columns of the one image of a unit, without its pixels."""
        return next(iter(self.source.entries(unit, self._open_metadata()))).row

    def _open_metadata(self) -> MetadataTable:
        if self.metadata is None:
            self.metadata = self.source.open_metadata(self.version)
        return self.metadata

    # --- Writing ---

    def _write(self, event: _Event) -> None:
        if event.noted is not None and event.words is None:
            self._copy(event.noted, event.row)
            return
        self._flush_copies()
        if event.noted is not None:
            self._reword(event.unit, event.noted, event.row, event.words)
        elif event.entry is not None:
            self._add_image(event.unit, event.entry, event.seen.result())
        else:
            self._end_unit(event.unit)

    def _copy(self, noted: _Noted, row: int) -> None:
        """Take over a unit; neighbours are copied together."""
        if self._run and self._run[0] is noted and self._run[2] + 1 == row:
            self._run = (noted, self._run[1], row)
            return
        self._flush_copies()
        self._run = (noted, row, row)

    def _flush_copies(self) -> None:
        if self._run is None:
            return
        noted, first, last = self._run
        self._run = None
        start, stop = noted.span(first, last)
        shift = self.images.count - start
        self.images.copy(noted.images, start, stop, unit=self.units.count - first)
        self.units.copy(noted.units, first, last + 1, end=shift)
        if noted.manifest.unreadable:
            for row in range(first, last + 1):
                self.unreadable += len(json.loads(noted.units.text("unreadable", row) or "[]"))
        self.columns.update(dict.fromkeys(noted.manifest.columns))
        self.sidecars |= noted.manifest.sidecars

    def _reword(self, unit: Unit, noted: _Noted, row: int, words: Row) -> None:
        for image in range(*noted.span(row, row)):
            columns = {**noted.images.row(image), "unit": self.units.count}
            name = noted.images.text("name", image)
            self.images.append(columns, {"name": name, "row": self._pack(unit, words)})
        self._broken = json.loads(noted.units.text("unreadable", row) or "[]")
        self._end_unit(unit)

    def _add_image(self, unit: Unit, entry: Entry, seen: tuple | str) -> None:
        own = entry.name != unit.name
        if isinstance(seen, str):
            self._broken.append((f"{unit.name}: {entry.name}" if own else entry.name, seen))
            return
        digest, width, height, transparent = seen
        columns = {
            "unit": self.units.count,
            "offset": entry.offset,
            "size": entry.size,
            "sha256": np.frombuffer(digest, np.uint8),
            "width": width,
            "height": height,
            "transparent": transparent,
            "lot": lot(entry.name),
        }
        texts = {"name": order(entry.name) if own else b"", "row": self._pack(unit, entry.row)}
        self.images.append(columns, texts)

    def _pack(self, unit: Unit, row: Row) -> bytes:
        self.sidecars |= bool(unit.words) and TEXT in row.columns
        if not row.line:
            self.columns.update(dict.fromkeys(row.columns) if self.source.kind != "folder" else {})
            if len(self.columns) > MAX_COLUMNS:
                raise UserError(f"{unit.name}: more than {MAX_COLUMNS} different columns")
        return row.pack()

    def _end_unit(self, unit: Unit) -> None:
        columns = {
            "size": unit.size,
            "mtime_ns": unit.mtime_ns,
            "words": unit.words,
            "end": self.images.count,
        }
        broken = json.dumps(self._broken).encode() if self._broken else b""
        self.units.append(columns, {"name": order(unit.name), "unreadable": broken})
        self.unreadable += len(self._broken)
        self._broken = []

    def _save(self, complete: bool) -> None:
        """Make what was written so far readable; `complete` declares it the catalog."""
        if complete:
            self._flush_copies()
        for table in (self.images, self.units):
            table.save()
        files = {}
        if complete:
            for name in expected_files():
                path = self.version / name
                files[name] = (path.stat().st_size, file_digest(path))
        notes, problem, columns = self._about_metadata() if complete else ([], "", self.columns)
        manifest = Manifest(
            complete=complete,
            place=self.source.place,
            kind=self.source.kind,
            images=self.images.count,
            units=self.units.count,
            unreadable=self.unreadable,
            metadata=self.stamp,
            columns=list(columns),
            sidecars=self.sidecars,
            notes=notes,
            problem=problem,
            files=files,
        )
        for folder in ("images", "units"):
            fsync_path(self.version / folder)
        write_json(self.version / MANIFEST, manifest.model_dump())

    def _about_metadata(self) -> tuple[list[str], str, dict[str, None]]:
        """What is to be said of the table of captions, what is wrong with it, its columns."""
        table = self.metadata
        if table is None:  # not read, so it is as one of the versions found it
            for noted in self.noted:
                if noted.manifest.complete and noted.manifest.metadata == self.stamp:
                    return noted.manifest.notes, noted.manifest.problem, self.columns
            return [], "", self.columns
        count, total, names = table.missing()
        notes = []
        if count:
            few = ", ".join(names[:3]) + (", ..." if count > 3 else "")
            notes = [f"{table.path}: {count} of {total} rows name files that do not exist ({few})"]
        columns = table.columns if self.source.kind == "folder" else self.columns
        return notes, table.problem, columns

    def _open_noted(self, folders: list[Path]) -> Iterator[_Noted]:
        """What earlier versions know, complete or not, the newest first."""
        for folder in folders:
            parts = sorted(folder.glob("part-*-of-*"))
            for version in itertools.chain(versions(folder), *map(versions, parts)):
                with contextlib.suppress(OSError, ValueError):
                    manifest = read_manifest(version)
                    if manifest.complete:
                        check_files(version, manifest)  # damage is not taken over
                    if manifest.kind == self.source.kind:
                        yield _Noted(self.source, manifest, *open_tables(version, manifest))


def _examine(entry: Entry) -> tuple[bytes, int, int, bool] | str:
    """SHA-256, width, height and whether a pixel is not opaque; or why it gives no pixels."""
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
