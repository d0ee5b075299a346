"""Source of captioned images, a folder or shards: the interface that all kinds have.

    .survey()       findings about what is there and is not read
    .units()        an image file with its sidecar, or a shard: parts with one time stamp each
    .entries(unit)  images of a unit, each with the place of its bytes and its columns
    .read(...)      bytes of an image, at any time, in any order

Units and entries are streamed, in an order that depends only on their names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from latentddpm.data.findings import Findings
from latentddpm.data.sources.metadata import Row
from latentddpm.data.sources.tables import MAX_ROWS, MetadataTable

MetadataStamp = list[list[str | int]]
"""Stamp of the tables of captions, by which a change of them is noticed."""


class Unit(NamedTuple):
    """Unit of a source: a file with its stamp. If only `caption_stamp` changes, pixels do not.

    Attributes:
        name: relative to the place; units are sorted by it.
        size: of the file; see `storage.Stamp`.
        mtime_ns: of the file; see `storage.Stamp`.
        caption_stamp: changes with the sidecar; 0 without one, −1 if it is too new, see
            `storage.Stamp`.
    """

    name: str
    size: int
    mtime_ns: int
    caption_stamp: int = 0


@dataclass(frozen=True)
class Entry:
    """Entry of a unit: one image.

    Attributes:
        name: of the image, POSIX, relative; it decides between training and validation, unless
            there is an `own_name`.
        where: name of the image in messages.
        offset: of its bytes in the unit, for `Source.read`.
        size: of its bytes.
        row: its captions and other columns.
        load: function that returns its bytes.
        sidecar: True if a text file lies beside it.
        own_name: its name in its own place, where `name` has that place in front.
    """

    name: str
    where: str
    offset: int
    size: int
    row: Row = field(default_factory=Row)
    load: Callable[[], bytes] = bytes
    sidecar: bool = False
    own_name: str = ""


class Source(Protocol):
    """Source of captioned images at one place.

    Attributes:
        place: as the user named it.
        kind: of the source, such as "folder" or "tar".
    """

    place: str
    kind: str

    def metadata_stamp(self) -> MetadataStamp:
        """Stamp of the tables of captions, as of now; empty without one."""

    def survey(self, limit: int | None = 3) -> Findings:
        """Findings about what lies at the place, looks like data, and is not read.

        Args:
            limit: number of files that are kept for each; None for all.
        """

    def open_metadata(self, max_rows: int | None = MAX_ROWS) -> MetadataTable:
        """Tables of captions in the source.

        Args:
            max_rows: a table with more rows has a `problem`; None for any number.
        """

    def units(self) -> Iterator[Unit]:
        """Units of the source, sorted by name.

        Raises:
            UserError: there is none.
        """

    def entries(
        self, unit: Unit, metadata: MetadataTable, findings: Findings | None = None
    ) -> Iterator[Entry]:
        """Images of a unit.

        Args:
            unit: of this source.
            metadata: of `open_metadata`.
            findings: where to note what in the unit is not read; None for nowhere.

        Raises:
            UserError: the unit is damaged, or not what its name says.
        """

    def where(self, unit: str, name: str) -> str:
        """Name of an image in messages.

        Args:
            unit: name of the unit.
            name: of the image.
        """

    def read(self, unit: str, offset: int, size: int) -> bytes:
        """Bytes of an image's file; can be called from many threads.

        Args:
            unit: name of the unit.
            offset, size: of the `Entry`.

        Raises:
            OSError: they cannot be read any more.
        """
