"""Shards: files that hold many captioned images each, read where they stand, never unpacked.

`data.sources.tar` and `data.sources.records` have the kinds there are.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from latentddpm.data.sources import storage
from latentddpm.data.sources.base import Entry, MetadataStamp, Unit
from latentddpm.data.sources.metadata import MetadataTable, Row, image_name
from latentddpm.errors import UserError, one_line


class Shards:
    """Shards of one kind; a subclass reads them.

    Args:
        place: what the user named.
        folder: in which the shards lie.
        names: of the shards, relative to `folder`, sorted.
    """

    kind = ""

    def __init__(self, place: str, folder: str, names: list[str]) -> None:
        self.place, self.folder, self.names = place, folder, names

    def metadata_stamp(self) -> MetadataStamp:
        return []

    def open_metadata(self, max_rows: int | None = None) -> MetadataTable:
        return MetadataTable(None)

    def units(self) -> Iterator[Unit]:
        for name in self.names:
            yield Unit(name, *storage.stamp(self.path(name)))

    def where(self, unit: str, name: str) -> str:
        return f"{self.path(unit)}: {name}"

    def path(self, unit: str) -> str:
        return storage.join(self.folder, unit) if self.folder else unit

    def entries(self, unit: Unit, metadata: MetadataTable) -> Iterator[Entry]:
        raise NotImplementedError

    def read(self, unit: str, offset: int, size: int) -> bytes:
        raise NotImplementedError


def parse_columns(data: bytes, where: str) -> Row:
    """The columns in a JSON object; what is wrong with it becomes the row's problem."""
    try:
        columns = json.loads(data)
    except (ValueError, RecursionError) as error:
        return Row(problem=f"{where}: not valid JSON ({one_line(error)})")
    if not isinstance(columns, dict):
        return Row(problem=f'{where}: expected an object such as {{"text": "a red apple"}}')
    return Row(0, columns)


def own_name(row: Row, member: str) -> str:
    """The name an image had before it was packed, where its row has a clean one."""
    try:
        return image_name(row.columns, member)
    except UserError:
        return member
