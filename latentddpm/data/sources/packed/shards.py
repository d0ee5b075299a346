"""Shards: a source of files with many captioned images each, which are read without unpacking.

The kinds of shards are in `data.sources.packed.tar` and `data.sources.packed.records`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator

from latentddpm.data.findings import Findings
from latentddpm.data.sources import storage
from latentddpm.data.sources.base import Entry, MetadataStamp, Unit
from latentddpm.data.sources.kinds import suffix_of
from latentddpm.data.sources.metadata import Row, image_name
from latentddpm.data.sources.survey import survey
from latentddpm.data.sources.tables import MetadataTable
from latentddpm.errors import UserError, one_line

PARQUET = ".parquet"


class Shards:
    """Shards of one kind: base class of a `Source`. A subclass reads the files.

    Args:
        place: as the user named it.
        folder: of the shards.
        names: of the shards, relative to `folder`, sorted.
    """

    kind = ""

    def __init__(self, place: str, folder: str, names: list[str]) -> None:
        self.place, self.folder, self.names = place, folder, names

    def metadata_stamp(self) -> MetadataStamp:
        return []

    def survey(self, limit: int | None = 3) -> Findings:
        if self.place != self.folder:  # single shards are named, not a folder
            return Findings(limit)
        return survey(self.folder, limit, self.names)

    def open_metadata(self, max_rows: int | None = None) -> MetadataTable:
        return MetadataTable(None)

    def units(self) -> Iterator[Unit]:
        for name in self.names:
            yield Unit(name, *storage.stamp(self.path(name)))

    def where(self, unit: str, name: str) -> str:
        return f"{self.path(unit)}: {name}"

    def path(self, unit: str) -> str:
        """Path of the shard named `unit`."""
        return storage.join(self.folder, unit) if self.folder else unit

    def entries(
        self, unit: Unit, metadata: MetadataTable, findings: Findings | None = None
    ) -> Iterator[Entry]:
        raise NotImplementedError

    def read(self, unit: str, offset: int, size: int) -> bytes:
        raise NotImplementedError


def without_tables(names: Iterable[str]) -> list[str]:
    """Names of shards without the parquet tables that describe other shards, such as those that
    img2dataset writes: `00000.parquet` beside `00000.tar`.

    Args:
        names: of shards.
    """
    names = list(names)
    stems = {os.path.splitext(name)[0] for name in names if suffix_of(name) != PARQUET}
    return [
        name
        for name in names
        if suffix_of(name) != PARQUET or os.path.splitext(name)[0] not in stems
    ]


def parse_columns(data: bytes, where: str) -> Row:
    """Row of the columns in a JSON object; if it is malformed the row has a problem.

    Args:
        data: the JSON text.
        where: its name, for messages.
    """
    try:
        columns = json.loads(data)
    except (ValueError, RecursionError) as error:
        return Row(problem=f"{where}: not valid JSON ({one_line(error)})")
    if not isinstance(columns, dict):
        return Row(problem=f'{where}: expected an object such as {{"text": "a red apple"}}')
    return Row(0, columns)


def own_name(row: Row, member: str) -> str:
    """Name of an image: the `file_name` of its `row` if that is valid, otherwise `member`."""
    try:
        return image_name(row.columns, member)
    except UserError:
        return member
