"""What a version of a catalog, whole or interrupted, knows of the units that are there now."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from latentddpm.data.catalog.catalog import (
    Manifest,
    check_files,
    open_tables,
    read_manifest,
    versions,
)
from latentddpm.data.catalog.columns import Table
from latentddpm.data.sources.base import MetadataStamp, Unit
from latentddpm.data.sources.storage import order

PARTS = "part-*-of-*"
"""Folders beside the versions, in which the processes of one job scan a part each."""


class Noted:
    """What one version knows of units, asked for in their order.

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

    def same_words(self, row: int, unit: Unit) -> bool:
        return unit.words >= 0 and int(self.units["words"][row]) == unit.words

    def unreadable(self, row: int) -> list[tuple[str, str]]:
        """The files of a unit that give no pixels, each with its reason."""
        return list(map(tuple, json.loads(self.units.text("unreadable", row) or "[]")))

    def same_units(self, units: Iterable[Unit]) -> bool:
        """Whether every unit is as it was noted, and there are no others."""
        count = 0
        for unit in units:
            if count >= self.count or self.name(count) != order(unit.name):
                return False
            if not (self.same_pixels(count, unit) and self.same_words(count, unit)):
                return False
            count += 1
        return count == self.count

    def span(self, first: int, last: int) -> tuple[int, int]:
        """The rows of the images of units `first` … `last`, both included: from, and behind."""
        ends = self.units["end"]
        return (int(ends[first - 1]) if first else 0), int(ends[last])


def open_noted(kind: str, stamp: MetadataStamp, folders: Iterable[Path]) -> Iterator[Noted]:
    """What the versions in catalogs' folders know, complete or not, the newest first.

    Args:
        kind: of the source; versions of another kind know nothing of it.
        stamp: see `Noted`.
    """
    for folder in folders:
        parts = sorted(folder.glob(PARTS))
        for version in itertools.chain(versions(folder), *map(versions, parts)):
            with contextlib.suppress(OSError, ValueError):
                manifest = read_manifest(version)
                if manifest.complete:
                    check_files(version, manifest)  # damage is not taken over
                if manifest.kind == kind:
                    yield Noted(stamp, manifest, *open_tables(version, manifest))
