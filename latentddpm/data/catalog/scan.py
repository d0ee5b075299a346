"""Scan of a source into a catalog: new images are decoded in full, known ones are copied.

    units ─► SourceReader ─► events ─► CatalogWriter ─► version
                  ▲
           previous versions

Images are decoded in `reader.examine`, so a truncated file is found before training. A new
version copies the rows of unchanged units from previous versions, also from those of interrupted
scans. So an interrupted scan resumes, and a change of a few files takes a scan of a few files.
Each process of a job scans its part of the units; then the chief copies all parts into one
version.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from pathlib import Path

from tqdm import tqdm

from latentddpm.data.catalog.catalog import Catalog, require_images, versions
from latentddpm.data.catalog.reader import PARTS, PreviousVersion, SourceReader, previous_versions
from latentddpm.data.catalog.writer import CatalogWriter
from latentddpm.data.places.places import Data, open_places
from latentddpm.data.sources.base import Source
from latentddpm.data.sources.walk import NO_SECOND, Second
from latentddpm.distribution.processes import ONE_PROCESS, ProcessGroup
from latentddpm.errors import UserError
from latentddpm.utils.locks import wait_for_lock

SAVE_SECONDS = 30.0  # between two saves of an unfinished scan


def open_catalog(
    place: Data,
    folder: Path,
    *,
    strict: bool = False,
    quiet: bool = False,
    processes: ProcessGroup = ONE_PROCESS,
    second: Second = NO_SECOND,
) -> Catalog:
    """Catalog of the images at a place: opened if nothing has changed, otherwise made.

    Files that cannot be read are named on stderr.

    Args:
        place: one, or several; see `data.places.places.as_places`.
        folder: of the catalog, made when missing. A process waits while another one writes it.
        strict: refuse data with unreadable files.
        quiet: show no progress bar. It appears on stderr when a scan takes over two seconds.
        processes: of one job, which all call this and scan a part each.
        second: see `data.sources.open.open_source`.

    Raises:
        UserError: nothing at the place, or nothing readable; with `strict`, not all of it.
        OSError: the catalog cannot be written; a previous version is still valid.
    """
    source = open_places(place, second)
    catalog = _newest(source, folder)
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    if catalog is None:
        next(source.units())  # an empty place is an error before anything is made
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder}: is a file, not a folder for the catalog")
        folder.mkdir(parents=True, exist_ok=True)
        if processes.count > 1:
            _scan_part(source, folder, processes, quiet)
            processes.barrier()
        if processes.is_chief:
            catalog = _make(source, folder, quiet)
        processes.barrier()
        if catalog is None:
            catalog = _newest(source, folder)
            if catalog is None:
                raise OSError(f"{folder}: the catalog that the chief made is not there")
    if not len(catalog) and missing and processes.is_chief:
        shutil.rmtree(missing[-1])  # an empty catalog leaves no folder behind
    require_images(catalog, strict)
    if processes.is_chief:
        catalog.report(quiet)
    return catalog


def _newest(source: Source, folder: Path) -> Catalog | None:
    """Catalog of the newest complete version, if nothing has changed since."""
    for version in versions(folder):
        with contextlib.suppress(OSError, ValueError):
            catalog = Catalog(source, version)
            return catalog if _unchanged(source, catalog) else None
    return None


def _unchanged(source: Source, catalog: Catalog) -> bool:
    """True where no file and no caption has changed since the scan."""
    if catalog.manifest.kind != source.kind:
        return False
    previous = PreviousVersion(
        source.metadata_stamp(), catalog.manifest, catalog.images, catalog.units
    )
    return previous.same_metadata and previous.same_units(source.units())


def _make(source: Source, folder: Path, quiet: bool) -> Catalog:
    with wait_for_lock(folder, "catalog", quiet):
        catalog = _newest(source, folder)  # another process may have made it
        if catalog is None:
            catalog = Catalog(source, _scan(source, folder, quiet))
            _remove_others(folder, catalog.folder)
    return catalog


def _scan_part(source: Source, folder: Path, processes: ProcessGroup, quiet: bool) -> None:
    """Scan the part of one process; the chief then copies it."""
    here = folder / PARTS.replace("*", "{}").format(processes.index, processes.count)
    here.mkdir(parents=True, exist_ok=True)
    with wait_for_lock(here, "catalog", quiet):
        _scan(source, here, quiet, processes, folder)


def _remove_others(folder: Path, version: Path) -> None:
    """Remove all versions and parts but `version`; one that cannot be removed only takes space."""
    for path in (*versions(folder), *folder.glob(PARTS)):
        if path != version:
            shutil.rmtree(path, ignore_errors=True)


def _scan(
    source: Source, folder: Path, quiet: bool, processes: ProcessGroup = ONE_PROCESS, *others: Path
) -> Path:
    """Scan a source once, and return the folder of the complete version.

    Args:
        source: to scan.
        folder: of the version; rows are copied from the other versions and parts in it.
        quiet: show no progress bar.
        processes: scan only the units of this process.
        others: more folders to copy rows from.
    """
    stamp = source.metadata_stamp()
    previous = list(previous_versions(source.kind, stamp, (folder, *others)))
    last = max((int(path.name[-6:]) for path in versions(folder)), default=0)
    version = folder / f"version-{last + 1:06d}"
    reader = SourceReader(source, stamp, previous, processes)
    in_bytes = source.kind != "folder"  # shards are few and large
    total = sum(unit.size if in_bytes else 1 for unit in reader.units())
    saved, inside = time.monotonic(), 0
    with (
        CatalogWriter(source, version, stamp) as writer,
        tqdm(
            desc="scan",
            total=total,
            unit="B" if in_bytes else "image",
            unit_scale=in_bytes,
            delay=2,
            disable=quiet,
        ) as bar,
    ):
        try:
            for event in reader:
                writer.write(event)
                done = event.entry.size if event.entry else event.unit.size - inside
                inside = inside + done if event.entry else 0
                if in_bytes:
                    bar.set_postfix(images=writer.images.count, refresh=False)
                    bar.update(done)
                elif event.entry is None:
                    bar.update()
                if time.monotonic() - saved > SAVE_SECONDS:
                    writer.save()
                    saved = time.monotonic()
        except BaseException:
            with contextlib.suppress(OSError):
                writer.save()
            raise
        writer.finish(*reader.captions())
    return version
