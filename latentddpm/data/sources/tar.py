"""Tar shards in the layout of WebDataset: neighbouring members with one stem are a sample.

    000000017.png   the image
    000000017.txt   its caption                                     (or none)
    000000017.json  its columns, with `text` for captions and `file_name` for its original name

The stem ends at the last dot. Other members (.cls, .npy, …), hidden ones, links and devices are
ignored.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from typing import Any, BinaryIO

from latentddpm.data.sources import storage
from latentddpm.data.sources.base import Entry, Unit, is_image
from latentddpm.data.sources.metadata import (
    FILE_NAME,
    MAX_SIDECAR,
    MetadataTable,
    Row,
    image_name,
    with_sidecar,
)
from latentddpm.data.sources.shards import Shards, own_name, parse_columns
from latentddpm.errors import UserError


class TarShards(Shards):
    """Shards in tar files; an image is read by its offset."""

    kind = "tar"

    def entries(self, unit: Unit, metadata: MetadataTable) -> Iterator[Entry]:
        path = self.path(unit.name)
        sample = _Sample(path, "")
        with storage.opened(path) as stream:
            for member in _members(path, stream):
                stem, suffix = os.path.splitext(member.name)
                if stem != sample.stem:
                    yield from sample.entries()
                    sample = _Sample(path, stem)
                if is_image(member.name):
                    data = None
                    if storage.is_remote(path):  # one pass, not a request per image
                        stream.seek(member.offset_data)
                        data = stream.read(member.size)
                    sample.images.append((member.name, member.offset_data, member.size, data))
                elif suffix in (".txt", ".json"):
                    sample.add_text(suffix, member, stream)
            yield from sample.entries()

    def read(self, unit: str, offset: int, size: int) -> bytes:
        return storage.read(self.path(unit), offset, size)


class _Sample:
    """Sample: the members with one stem that were read so far."""

    def __init__(self, path: str, stem: str) -> None:
        self.path, self.stem = path, stem
        self.images: list[tuple[str, int, int, bytes | None]] = []
        self.row, self.text, self.text_name = Row(), b"", ""

    def add_text(self, suffix: str, member: tarfile.TarInfo, stream: BinaryIO) -> None:
        """Read a caption or columns; if they are malformed the row has a problem."""
        where = f"{self.path}: {member.name}"
        if member.size > MAX_SIDECAR:
            self.row = Row(
                problem=f"{where}: {member.size:,} bytes, expected at most {MAX_SIDECAR:,}"
            )
            return
        stream.seek(member.offset_data)
        data = stream.read(member.size)
        if suffix == ".txt":
            self.text, self.text_name = data, where
        elif not self.row.problem:
            self.row = parse_columns(data, where)

    def entries(self) -> Iterator[Entry]:
        for member, offset, size, data in self.images:
            name = own_name(self.row, member)
            where = f"{self.path}: {name}"
            row = self.row
            if self.text_name:
                row = with_sidecar(row, where, self.text, self.text_name, "")
            yield Entry(name, where, offset, size, row, self._loader(offset, size, data))

    def _loader(self, offset: int, size: int, data: bytes | None) -> Any:
        if data is not None:
            return lambda: data
        return lambda: storage.read(self.path, offset, size)


def _members(path: str, stream: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """Members of a tar that are regular files and not hidden, with normalised names.

    Raises:
        UserError: it is compressed, not a tar, damaged, or has a member with an unsafe name.
    """
    try:
        with tarfile.open(fileobj=stream, mode="r:") as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # or all members of the shard stay in memory
                if not member.isreg() or member.issparse():
                    continue
                member.name = image_name({FILE_NAME: member.name}, f"{path}: a member")
                if not any(part.startswith(".") for part in member.name.split("/")):
                    yield member
            # `tarfile` takes a broken header for the end of the archive.
            stream.seek(archive.offset)
            if stream.read(tarfile.BLOCKSIZE).strip(b"\0"):
                raise UserError(f"{path}: damaged at byte {archive.offset}; expected a tar header")
    except tarfile.TarError as error:
        raise UserError(
            f"{path}: not a whole, uncompressed tar file ({error}); shards are not compressed, "
            "images are already"
        ) from None
