"""Folder of images: a source with one file per image."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from pathlib import Path

from latentddpm.data.sources import storage
from latentddpm.data.sources.base import IMAGE_SUFFIXES, Entry, MetadataStamp, Unit, is_image
from latentddpm.data.sources.metadata import (
    MAX_ROWS,
    MAX_SIDECAR,
    MetadataTable,
    Row,
    metadata_files,
    with_sidecar,
)
from latentddpm.errors import UserError

SIDECAR_SUFFIX = ".txt"


class Folder:
    """Folder of images: a `Source`, with captions from sidecars and a table.

    `data.sources.metadata` describes these.

    Args:
        place: path of the folder.
    """

    kind = "folder"

    def __init__(self, place: str) -> None:
        self.place = place

    def metadata_stamp(self) -> MetadataStamp:
        return [
            [name, *storage.stamp(storage.join(self.place, name))]
            for name in metadata_files(self.place)
        ]

    def open_metadata(self, max_rows: int | None = MAX_ROWS) -> MetadataTable:
        return MetadataTable(self.place, max_rows)

    def units(self) -> Iterator[Unit]:
        count = 0
        for name, others in storage.walk(self.place, is_image):
            sidecar = os.path.splitext(name)[0] + SIDECAR_SUFFIX
            caption_stamp = 0
            if sidecar.rpartition("/")[2] in others:
                caption_stamp = _fingerprint(storage.stamp(storage.join(self.place, sidecar)))
            try:
                yield Unit(name, *storage.stamp(storage.join(self.place, name)), caption_stamp)
            except FileNotFoundError:
                continue  # deleted since the folder was listed
            count += 1
        if not count:
            suffixes = " ".join(IMAGE_SUFFIXES)
            raise UserError(f"{self.place}: no image in it (looked for {suffixes})")

    def entries(self, unit: Unit, metadata: MetadataTable) -> Iterator[Entry]:
        where = storage.join(self.place, unit.name)
        row = metadata.find(unit.name)
        if unit.caption_stamp:
            row = self._read_sidecar(unit.name, row, metadata)
        yield Entry(unit.name, where, 0, unit.size, row, lambda: storage.read(where))

    def where(self, unit: str, name: str) -> str:
        return storage.join(self.place, unit)

    def read(self, unit: str, offset: int, size: int) -> bytes:
        return storage.read(storage.join(self.place, unit))

    def _read_sidecar(self, image: str, row: Row, metadata: MetadataTable) -> Row:
        path = storage.join(self.place, os.path.splitext(image)[0] + SIDECAR_SUFFIX)
        if not storage.is_remote(path) and os.path.islink(path):
            root = Path(self.place).resolve()
            if not Path(path).resolve().is_relative_to(root):
                problem = f"{path}: the link leaves the folder {self.place}"
                return Row(row.line, row.columns, row.problem or problem)
        try:
            data = read_sidecar(path)
        except OSError as error:
            return Row(row.line, row.columns, row.problem or str(error))
        return with_sidecar(row, image, data, path, metadata.path)


def read_sidecar(path: str) -> bytes:
    """Bytes of the sidecar at `path`.

    Raises:
        OSError: it cannot be read, or has more than `MAX_SIDECAR` bytes.
    """
    size = storage.stamp(path).size
    if size > MAX_SIDECAR:
        raise OSError(f"{path}: {size:,} bytes of caption, expected at most {MAX_SIDECAR:,}")
    return storage.read(path)


def _fingerprint(stamp: storage.Stamp) -> int:
    """Stamp as a number above 0, or −1 if it is too new."""
    if stamp.mtime_ns < 0:
        return -1
    return 1 + zlib.crc32(f"{stamp.size},{stamp.mtime_ns}".encode())
