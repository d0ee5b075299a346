"""Tables of captions and other columns in a folder of images.

A table `metadata.jsonl`, `metadata.csv` or `metadata.tsv`, in the folder or in one of its folders,
has the columns `file_name` (relative to the folder of the table), `text` (one caption or a list of
alternatives) and any others, for templates. Several rows of one image, in one table or in several,
are alternatives.

- Of a CSV the separator is a comma, a semicolon, a tab or "|": the one by which the header has a
  column of names.
- A name matches the file with exactly this name; otherwise the one with the same letters in the
  other Unicode form, or with "/" for a backslash.

A table is read into memory. A set with more rows than `MAX_ROWS` has to be packed into shards,
where every image has its own columns.
"""

from __future__ import annotations

import contextlib
import csv
import itertools
import json
import os
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

from latentddpm.data.sources import storage
from latentddpm.data.sources.kinds import NAME_COLUMNS, canonical, first_column, suffix_of
from latentddpm.data.sources.metadata import FILE_NAME, Row, image_name, not_utf8
from latentddpm.data.sources.walk import tables
from latentddpm.errors import UserError

MAX_LINE = 1 << 26  # bytes of one row
MAX_COLUMNS = 1000  # different names
MAX_ROWS = 2_000_000
"""Most rows of all tables. Measured: a row takes 390 bytes with a caption of 40 letters, 550 with
one of 200, so that the longest table takes about 1 GB in each process that scans."""

SEPARATORS = ",;\t|"


class MetadataTable:
    """Tables of captions and other columns in a folder, looked up by the names of images.

    Args:
        folder: root of the images; None for a table without rows.
        max_rows: more rows are a `problem`; None for any number.

    Attributes:
        paths: of the tables.
        columns: names of all columns, in order of appearance.
        problem: what is wrong with the tables, in one line; there are then no rows.
    """

    def __init__(self, folder: str | None, max_rows: int | None = MAX_ROWS) -> None:
        self.folder, self.problem = folder, ""
        self.columns: dict[str, None] = {}
        self._rows: dict[str, bytes] = {}  # packed, which takes half the memory of dictionaries
        self._forms: dict[str, str] = {}  # canonical names → those of rows, where they differ
        self._found: set[str] = set()
        names = [] if folder is None else tables(folder)
        self.paths = [storage.join(folder, name) for name in names]
        try:
            _check_alone(folder, names)
            for number, name in enumerate(names):
                self._read(number, os.path.dirname(name), max_rows)
        except UserError as error:
            self.problem = str(error)
            self._rows.clear()
            self._forms.clear()

    @property
    def path(self) -> str:
        """Path of the table, or a word for several; empty if there is none."""
        if len(self.paths) > 1:
            return f"{self.folder}: {len(self.paths)} tables"
        return self.paths[0] if self.paths else ""

    def find(self, name: str) -> Row:
        """Row of the image `name`, a POSIX path relative to the folder; empty if there is none."""
        if name not in self._rows:
            form = canonical(name)
            name = form if form in self._rows else self._forms.get(form, "")
            if name not in self._rows:
                return Row()
        self._found.add(name)
        return Row.unpack(self._rows[name])

    def files(self, column: str) -> Iterator[str]:
        """Files that a column names, relative to the root; values that name none are passed over.

        Args:
            column: of the rows, with paths relative to the folder of their table.
        """
        below = [path[len(self.folder) :].lstrip("/") for path in self.paths]
        for packed in self._rows.values():
            row = Row.unpack(packed)
            with contextlib.suppress(UserError):
                yield named_file(row, column, "", below)

    def missing(self, limit: int | None = 4) -> tuple[int, int, list[str]]:
        """Rows whose image is not read: those that `find` did not return.

        Args:
            limit: number of names to return; None for all.

        Returns:
            Number of such rows, number of all rows, and names of the first.
        """
        names = [
            name for name in self._rows if name not in self._found and not self._is_file(name)
        ]
        return len(names), len(self._rows), names[:limit]

    def _is_file(self, name: str) -> bool:
        forms = (name, canonical(name), unicodedata.normalize("NFD", canonical(name)))
        return any(
            storage.is_file(storage.join(self.folder, form)) for form in dict.fromkeys(forms)
        )

    def _read(self, number: int, below: str, max_rows: int | None) -> None:
        """Read one table.

        Args:
            number: of the table.
            below: folder of the table, relative to the root.
            max_rows: of all tables.
        """
        path, empty = self.paths[number], True
        parse = _parse_jsonl if suffix_of(path) == ".jsonl" else _parse_csv
        with storage.opened(path) as stream:
            for line, columns in parse(path, stream):
                place, empty = f"{path} line {line}", False
                name = _row_name(columns, place, below, self.folder)
                row = Row(line, columns, "", number)
                if name in self._rows:
                    row = Row.unpack(self._rows[name]).with_more(columns)
                elif len(self._rows) == max_rows:
                    raise UserError(
                        f"{place}: more than {max_rows:,} rows, and a table is read into memory; "
                        f"pack so many images into shards: "
                        f"latentddpm pack --data {self.folder} --out DIR"
                    )
                self.columns.update(dict.fromkeys(columns))
                if len(self.columns) > MAX_COLUMNS:
                    raise UserError(f"{place}: more than {MAX_COLUMNS} different columns")
                self._rows[name] = row.pack()
                if (form := canonical(name)) != name:
                    self._forms.setdefault(form, name)
        if empty:
            raise UserError(f"{path}: describes no image; fill it or remove it")


def named_file(row: Row, column: str, place: str, tables: Sequence[str]) -> str:
    """File that a column of a row names, relative to the root.

    Args:
        row: of an image.
        column: with a path, relative to the folder of the row's table.
        place: of the row, for messages.
        tables: paths of the tables, relative to the root.

    Raises:
        UserError: see `image_name`.
    """
    name = image_name(row.columns, place, column)
    below = os.path.dirname(tables[row.table]) if row.line else ""
    return f"{below}/{name}" if below else name


def _check_alone(folder: str | None, names: list[str]) -> None:
    """Check that no folder holds two tables.

    Raises:
        UserError: one does.
    """
    for below, group in itertools.groupby(sorted(names, key=os.path.dirname), os.path.dirname):
        here = [os.path.basename(name) for name in sorted(group, key=suffix_of, reverse=True)]
        here.sort(key=lambda name: suffix_of(name) != ".jsonl")
        if len(here) > 1:
            place = os.path.join(folder, below) if below else folder
            raise UserError(f"{place}: holds both {' and '.join(here)}; keep one of them")


def _row_name(columns: Mapping[str, Any], place: str, below: str, root: str) -> str:
    """Name of the image of a row, relative to the root.

    Args:
        columns: of the row.
        place: of the row, for messages.
        below: folder of the table, relative to the root.
        root: folder of the images; an absolute path in it is understood.

    Raises:
        UserError: see `image_name`; or it leaves the root.
    """
    column = FILE_NAME if FILE_NAME in columns else first_column(columns, NAME_COLUMNS)
    name = columns.get(column)
    if isinstance(name, str) and name.startswith("/"):
        for folder in (os.path.abspath(root), os.path.realpath(root)):
            if name.startswith(folder + "/"):
                path = os.path.relpath(name, folder)
                return image_name({**columns, column: path}, place, column)
    if below and isinstance(name, str) and ".." in name:
        path = os.path.normpath(f"{below}/{name.replace(chr(92), '/')}")
        return image_name({**columns, column: path}, place, column)
    name = image_name(columns, place, column or FILE_NAME)
    return f"{below}/{name}" if below else name


def _lines(path: str, stream: BinaryIO) -> Iterator[str]:
    """Lines of a UTF-8 file, with their line breaks."""
    at = 0
    while data := stream.readline(MAX_LINE + 1):
        if len(data) > MAX_LINE:
            raise UserError(f"{path}: a line is longer than {MAX_LINE:,} bytes")
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise not_utf8(path, data, error, at) from None
        yield text if at else text.removeprefix("\ufeff")
        at += len(data)


def _parse_jsonl(path: str, stream: BinaryIO) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and JSON object of each line that is not blank."""
    for number, line in enumerate(_lines(path, stream), start=1):
        if not line.strip():
            continue
        try:
            columns = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} line {number}: not valid JSON ({error})") from None
        if not isinstance(columns, dict):
            raise UserError(
                f"{path} line {number}: expected an object such as "
                '{"file_name": "a.png", "text": "a red apple"}'
            )
        yield number, columns


def _parse_csv(path: str, stream: BinaryIO) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and columns of each line below the header; JSON lists of texts become lists."""
    lines, before = _lines(path, stream), []
    for line in lines:
        before.append(line)
        if line.strip():
            break
    separator = _separator("".join(before), "\t" if suffix_of(path) == ".tsv" else ",")
    reader = csv.reader(
        itertools.chain(before, lines), delimiter=separator, skipinitialspace=True, strict=True
    )
    header: list[str] = []
    try:
        for cells in reader:
            if not cells:
                continue
            if not header:
                header = [cell.strip() for cell in cells]
                if not first_column(header, NAME_COLUMNS):
                    image_name(dict.fromkeys(header), f"{path}: in its first line")
                if len(set(header)) < len(header):
                    raise UserError(f"{path}: a column name is repeated in {', '.join(header)}")
                continue
            if len(cells) != len(header):
                quoted = f'"a{separator} b"' if separator != "\t" else '"a b"'
                raise UserError(
                    f"{path} line {reader.line_num}: {len(cells)} cells, "
                    f"expected {len(header)} ({', '.join(header)}); a text with the separator "
                    f"{separator!r} in it stands in quotes: {quoted}"
                )
            yield reader.line_num, dict(zip(header, map(_csv_cell, cells), strict=True))
    except csv.Error as error:
        raise UserError(f"{path} line {reader.line_num}: not valid CSV ({error})") from None


def _separator(header: str, usual: str) -> str:
    """Separator by which the line `header` has a column of names; the `usual` one if none does."""
    for separator in (usual, *SEPARATORS):
        cells = [cell.strip().strip('"') for cell in header.split(separator)]
        if len(cells) > 1 and first_column(cells, NAME_COLUMNS):
            return separator
    return usual


def _csv_cell(cell: str) -> str | list[str]:
    """Value of a cell: a list if it is a JSON list of strings, otherwise its text."""
    if cell.lstrip().startswith("["):
        try:
            value = json.loads(cell)
        except (ValueError, RecursionError):
            return cell
        if isinstance(value, list) and all(isinstance(entry, str) for entry in value):
            return value
    return cell
