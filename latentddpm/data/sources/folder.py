"""Folder of images: a source with one file per image, all pictures or all arrays."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator
from functools import cached_property

from latentddpm.data.findings import Findings
from latentddpm.data.sources import storage
from latentddpm.data.sources.base import Entry, MetadataStamp, Unit
from latentddpm.data.sources.kinds import (
    ARRAYS_READ,
    PICTURES_READ,
    canonical,
    is_array,
    is_picture,
)
from latentddpm.data.sources.metadata import MAX_SIDECAR, Row, with_sidecars
from latentddpm.data.sources.survey import survey
from latentddpm.data.sources.tables import MAX_ROWS, MetadataTable
from latentddpm.data.sources.walk import (
    NO_SECOND,
    Content,
    Second,
    Walk,
    holds_arrays,
    in_hub_cache,
    stem,
    tables,
)
from latentddpm.errors import UserError


class Folder:
    """Folder of images: a `Source`, with captions from sidecars and tables.

    `data.sources.metadata` and `data.sources.tables` describe these.

    Args:
        place: path of the folder.
        second: second pictures, which are no images of the folder.
    """

    kind = "folder"

    def __init__(self, place: str, second: Second = NO_SECOND) -> None:
        self.place, self.second = place, second
        self._content: Content | None = None  # of the folder that was read last

    @cached_property
    def _is_read(self) -> Callable[[str], bool]:
        """Question whether a file is an image of this folder, by its name."""
        return is_array if holds_arrays(self.place) else is_picture

    @cached_property
    def _named(self) -> set[str]:
        """Files that the columns of `second` name."""
        table = MetadataTable(self.place) if self.second.columns else None
        return {canonical(n) for column in self.second.columns for n in table.files(column)}

    def _is_second(self, name: str, content: Content) -> bool:
        """True for a second picture of an image."""
        beside = content.is_second(name.rpartition("/")[2], self.second.suffixes)
        return beside or canonical(name) in self._named

    def metadata_stamp(self) -> MetadataStamp:
        return [
            [name, *storage.stamp(storage.join(self.place, name))] for name in tables(self.place)
        ]

    def open_metadata(self, max_rows: int | None = MAX_ROWS) -> MetadataTable:
        return MetadataTable(self.place, max_rows)

    def survey(self, limit: int | None = 3) -> Findings:
        return survey(self.place, limit, second=self.second.suffixes)

    def units(self) -> Iterator[Unit]:
        count = 0
        for name, content in Walk(self.place).files():
            if not self._is_read(name) or self._is_second(name, content):
                continue
            self._content = content
            stamps = list(self._stamps(name))
            if not stamps[0]:
                continue  # deleted since the folder was listed
            yield Unit(name, *stamps[0], _fingerprint(list(filter(None, stamps[1:]))))
            count += 1
        if not count:
            raise UserError(self._nothing())

    def entries(
        self, unit: Unit, metadata: MetadataTable, findings: Findings | None = None
    ) -> Iterator[Entry]:
        where = storage.join(self.place, unit.name)
        row = metadata.find(unit.name)
        if unit.caption_stamp:
            row = self._read_sidecars(unit.name, row, metadata)
        sidecar = bool(unit.caption_stamp)
        yield Entry(unit.name, where, 0, unit.size, row, lambda: storage.read(where), sidecar)

    def where(self, unit: str, name: str) -> str:
        return storage.join(self.place, unit)

    def read(self, unit: str, offset: int, size: int) -> bytes:
        return storage.read(storage.join(self.place, unit))

    def _stamps(self, image: str) -> Iterator[storage.Stamp | None]:
        """Stamps of an image and of its text files; None for one that is gone."""
        for name in (image, *self._sidecars(image)):
            try:
                yield storage.stamp(storage.join(self.place, name))
            except FileNotFoundError:
                yield None

    def _nothing(self) -> str:
        """Message about a folder without an image: what was looked for, and what is there."""
        there = list(self.survey(1).lines())
        found = f"; there are: {'; '.join(there)}" if there else ""
        names = " ".join((*PICTURES_READ, *ARRAYS_READ))
        return f"{self.place}: no image in it (looked for {names}){found}"

    def _sidecars(self, image: str) -> list[str]:
        """Paths of the text files of an image, relative to the place."""
        folder, slash, name = image.rpartition("/")
        if self._content is None or self._content.folder != folder + slash:
            self._content = Walk(self.place).content(folder + slash)
        names = self._content.sidecars.get(stem(name), [])
        return [folder + slash + sidecar for sidecar in names]

    def _read_sidecars(self, image: str, row: Row, metadata: MetadataTable) -> Row:
        texts = []
        for name in self._sidecars(image):
            path = storage.join(self.place, name)
            try:
                texts.append((read_sidecar(path, self.place), path))
            except OSError as error:
                return Row(row.line, row.columns, row.problem or str(error), row.table)
        return with_sidecars(row, image, texts, metadata.paths)


def read_sidecar(path: str, place: str) -> bytes:
    """Bytes of the sidecar at `path`.

    Args:
        path: of the sidecar.
        place: folder that a link may not leave, other than into a cache of the Hub.

    Raises:
        OSError: it cannot be read, leaves the folder, or has more than `MAX_SIDECAR` bytes.
    """
    if not storage.is_remote(path) and os.path.islink(path):
        real = os.path.realpath(path)
        if os.path.relpath(real, os.path.realpath(place)).startswith("..") and not in_hub_cache(
            real
        ):
            raise OSError(f"{path}: the link leaves the folder {place}")
    size = storage.stamp(path).size
    if size > MAX_SIDECAR:
        raise OSError(f"{path}: {size:,} bytes of caption, expected at most {MAX_SIDECAR:,}")
    return storage.read(path)


def _fingerprint(stamps: list[storage.Stamp]) -> int:
    """Stamps of text files as a number above 0; 0 without any, or −1 if one is too new."""
    if any(stamp.mtime_ns < 0 for stamp in stamps):
        return -1
    text = ";".join(f"{stamp.size},{stamp.mtime_ns}" for stamp in stamps)
    return 1 + zlib.crc32(text.encode()) if stamps else 0
