"""Union of several sources of images: a source of its own.

    photos/cat.jpg     ─►  photos    │ cat.jpg          units and images are named with the label
    drawn/0001.tar     ─►  drawn     │ 0001.tar         of their place in front

The split into training and validation images depends on the name of an image in its own place, so
it is the same whether a place is used alone or with others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction

from latentddpm.data.findings import Finding, Findings
from latentddpm.data.sources.base import Entry, MetadataStamp, Source, Unit
from latentddpm.data.sources.storage import order
from latentddpm.data.sources.tables import MAX_ROWS, MetadataTable


class Union:
    """Union of sources: a `Source`.

    Args:
        place: all places in one line, for messages.
        parts: label of each place → its source.
        weights: of the places, in the order of `parts`.

    Attributes:
        parts: in the order of their units.
        weights: label → weight.
    """

    kind = "places"

    def __init__(
        self, place: str, parts: Mapping[str, Source], weights: Sequence[Fraction]
    ) -> None:
        self.place = place
        self.parts = dict(sorted(parts.items(), key=lambda part: order(part[0] + "/")))
        self.weights = dict(zip(parts, weights, strict=True))

    def part_of(self, unit: str) -> tuple[str, Source, str]:
        """Label and source that a unit belongs to, and its name there.

        Args:
            unit: its name in the union.
        """
        label, _, name = unit.partition("/")
        return label, self.parts[label], name

    def metadata_stamp(self) -> MetadataStamp:
        return [
            [f"{label}/{name}", *stamp]
            for label, part in self.parts.items()
            for name, *stamp in part.metadata_stamp()
        ]

    def table_paths(self, names: Sequence[str]) -> list[str]:
        """Paths of tables of captions.

        Args:
            names: of the tables in the union.
        """
        found = (self.part_of(name) for name in names)
        return [f"{part.place.rstrip('/')}/{name}" for _, part, name in found]

    def has_tables(self, unit: str) -> bool:
        """True where the captions of a unit may be in a table beside it.

        Args:
            unit: its name in the union.
        """
        return self.part_of(unit)[1].kind == "folder"

    def open_metadata(self, max_rows: int | None = MAX_ROWS) -> UnionTables:
        return UnionTables(
            {label: part.open_metadata(max_rows) for label, part in self.parts.items()}
        )

    def survey(self, limit: int | None = 3) -> Findings:
        whole = Findings(limit)
        for label, part in self.parts.items():
            for key, found in part.survey(limit).items():
                mine = whole.setdefault(key, Finding())
                mine.count += found.count
                mine.items += [(f"{label}/{name}", detail) for name, detail in found.items]
                for detail, (count, first) in found.groups.items():
                    before, name = mine.groups.get(detail, (0, f"{label}/{first}"))
                    mine.groups[detail] = before + count, name
        for found in whole.values():
            del found.items[limit if limit is not None else len(found.items) :]
        return whole

    def units(self) -> Iterator[Unit]:
        for label, part in self.parts.items():
            for unit in part.units():
                yield unit._replace(name=f"{label}/{unit.name}")

    def entries(
        self, unit: Unit, metadata: UnionTables, findings: Findings | None = None
    ) -> Iterator[Entry]:
        label, part, name = self.part_of(unit.name)
        table, before = metadata.of(label)
        for entry in part.entries(unit._replace(name=name), table, findings):
            row = entry.row
            if row.line:
                row = replace(row, table=row.table + before)
            yield replace(entry, name=f"{label}/{entry.name}", row=row, own_name=entry.name)

    def where(self, unit: str, name: str) -> str:
        label, part, own = self.part_of(unit)
        return part.where(own, name.removeprefix(f"{label}/"))

    def read(self, unit: str, offset: int, size: int) -> bytes:
        _, part, own = self.part_of(unit)
        return part.read(own, offset, size)


class UnionTables:
    """Tables of captions of several sources: as a `MetadataTable`.

    Args:
        tables: label of each source → its tables, in the order of their units.
    """

    def __init__(self, tables: Mapping[str, MetadataTable]) -> None:
        self.tables = tables
        before = 0
        self._before = {}
        for label, table in tables.items():
            self._before[label] = before
            before += len(table.paths)

    def of(self, label: str) -> tuple[MetadataTable, int]:
        """Tables of one source, and the number of those before them.

        Args:
            label: of the source.
        """
        return self.tables[label], self._before[label]

    @property
    def paths(self) -> list[str]:
        """Paths of all tables."""
        return [path for table in self.tables.values() for path in table.paths]

    @property
    def path(self) -> str:
        """Paths of the tables in one line; empty if there is none."""
        return " + ".join(table.path for table in self.tables.values() if table.path)

    @property
    def columns(self) -> dict[str, None]:
        """Names of all columns, in order of appearance."""
        return {name: None for table in self.tables.values() for name in table.columns}

    @property
    def problem(self) -> str:
        """Error of the first table that has one; empty if there is none."""
        return next((table.problem for table in self.tables.values() if table.problem), "")

    def missing(self, limit: int | None = 4) -> tuple[int, int, list[str]]:
        """Rows whose image is not read; see `MetadataTable.missing`.

        Args:
            limit: number of names to return; None for all.
        """
        counts = total = 0
        names: list[str] = []
        for label, table in self.tables.items():
            count, rows, found = table.missing(limit)
            counts, total = counts + count, total + rows
            names += [f"{label}/{name}" for name in found]
        return counts, total, names[:limit]
