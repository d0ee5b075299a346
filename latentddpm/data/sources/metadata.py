"""Metadata of a folder of images, that is captions and other columns: a table, and sidecars.

- A table `metadata.jsonl` or `metadata.csv` at the root has the columns `file_name` (relative to
  the root), `text` (one caption or a list of alternatives) and any others, for templates.
- A sidecar `NAME.txt` beside the image: its whole text, stripped, is one caption. It is not split
  into lines.

Files are UTF-8, with or without a byte order mark. A table is read into memory. A set with more
rows than `MAX_ROWS` has to be packed into shards, where every image has its own columns.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from latentddpm.data.sources import storage
from latentddpm.errors import UserError, nearest

METADATA_NAMES = ("metadata.jsonl", "metadata.csv")
FILE_NAME, TEXT = "file_name", "text"
MAX_LINE = 1 << 26  # bytes of one row
MAX_SIDECAR = 1 << 26
MAX_COLUMNS = 1000  # different names
MAX_ROWS = 2_000_000
"""Most rows of a table. Measured: a row takes 390 bytes with a caption of 40 letters, 550 with one
of 200, so that the longest table takes about 1 GB in each process that scans."""


@dataclass(frozen=True)
class Row:
    """Row of one image: its columns, as they were found.

    Attributes:
        line: of the table; 0 if the columns are not from a table.
        columns: name → value, as of JSON.
        problem: what is wrong with the columns, in one line; empty if nothing is. It is raised
            only when captions are used.
    """

    line: int = 0
    columns: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""

    def pack(self) -> bytes:
        """Row as bytes, as a catalog has it; empty for a row without columns and problem."""
        if not (self.columns or self.problem):
            return b""
        parts = [self.line, dict(self.columns), *([self.problem] if self.problem else [])]
        text = json.dumps(parts, ensure_ascii=False, separators=(",", ":"))
        return text.encode("utf-8", "surrogatepass")

    @classmethod
    def unpack(cls, data: bytes) -> Row:
        """Row of the bytes that `pack` made."""
        return cls(*json.loads(data.decode("utf-8", "surrogatepass"))) if data else cls()


def text_entries(value: Any, column: str, place: str) -> list[str]:
    """Texts in one column of a row: stripped, without empty ones.

    Args:
        value: of the column: a text, a number, None, or a list of them.
        column: its name, for messages.
        place: of the row, for messages.

    Raises:
        UserError: another value, or a text with a lone surrogate.
    """
    texts = []
    for entry in value if isinstance(value, list) else [value]:
        if isinstance(entry, bool | dict | list):
            raise UserError(
                f"{place}: {column!r} is {entry!r:.40}, expected a text or a list of texts"
            )
        text = "" if entry is None else str(entry).strip()
        if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
            raise UserError(f"{place}: {column!r} has half a character (a lone surrogate)")
        if text:
            texts.append(text)
    return texts


# --- Sidecars ------------------------------------------------------------------------------


def decode_text(data: bytes, path: str) -> str:
    """Text of UTF-8 bytes, without a byte order mark.

    Args:
        data: bytes of a file.
        path: of the file, for messages.

    Raises:
        UserError: it is not UTF-8; the message names the byte.
    """
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise _not_utf8(path, data, error, 0) from None


def with_sidecar(row: Row, image: str, sidecar: bytes, path: str, table: str) -> Row:
    """Row with the caption of a sidecar as its text.

    Where the row has a text already, the two must be equal; otherwise the row has a problem.

    Args:
        row: of the image.
        image: its name, for messages.
        sidecar: bytes of the sidecar.
        path: of the sidecar, for messages.
        table: path of the table, for messages.
    """
    if row.problem:
        return row
    try:
        caption = decode_text(sidecar, path).strip()
        place = f"{table} line {row.line}" if row.line else image
        texts = text_entries(row.columns.get(TEXT), TEXT, place)
    except UserError as error:
        return Row(row.line, row.columns, str(error))
    if not caption:
        return row
    columns = {**row.columns, TEXT: caption}
    if texts and texts != [caption]:
        return Row(
            row.line,
            columns,
            f"{image}: its .txt file says {caption!r:.60}, {place} says {texts[0]!r:.60}; "
            "keep one of them",
        )
    return Row(row.line, columns)


# --- Table ---------------------------------------------------------------------------------


class MetadataTable:
    """Table of captions and other columns in a folder, looked up by the names of images.

    Args:
        folder: root of the images; None for a table without rows.
        max_rows: more rows are a `problem`; None for any number.

    Attributes:
        path: of the table; empty if there is none.
        columns: names of all columns, in order of appearance.
        problem: what is wrong with the whole table, in one line; it then has no rows.
    """

    def __init__(self, folder: str | None, max_rows: int | None = MAX_ROWS) -> None:
        self.folder, self.path, self.problem = folder, "", ""
        self.columns: dict[str, None] = {}
        self._rows: dict[str, bytes] = {}  # packed, which takes half the memory of dictionaries
        self._found: set[str] = set()
        present = [] if folder is None else metadata_files(folder)
        if not present:
            return
        self.path = storage.join(folder, present[0])
        try:
            if len(present) > 1:
                raise UserError(f"{folder}: holds both {' and '.join(present)}; keep one of them")
            self._read(max_rows)
        except UserError as error:
            self.problem = str(error)
            self._rows.clear()

    def find(self, name: str) -> Row:
        """Row of the image `name`, a POSIX path relative to the folder; empty if there is none."""
        if name not in self._rows:
            return Row()
        self._found.add(name)
        return Row.unpack(self._rows[name])

    def missing(self, limit: int | None = 4) -> tuple[int, int, list[str]]:
        """Rows whose image does not exist: those that `find` did not return, without a file.

        Args:
            limit: number of names to return; None for all.

        Returns:
            Number of such rows, number of all rows, and names of the first.
        """
        names = [
            name
            for name in self._rows
            if name not in self._found and not storage.is_file(storage.join(self.folder, name))
        ]
        return len(names), len(self._rows), names[:limit]

    def _read(self, max_rows: int | None) -> None:
        parse = _parse_csv if self.path.endswith(".csv") else _parse_jsonl
        with storage.opened(self.path) as stream:
            for line, columns in parse(self.path, stream):
                place = f"{self.path} line {line}"
                name = image_name(columns, place)
                if name in self._rows:
                    before = Row.unpack(self._rows[name]).line
                    raise UserError(
                        f"{place}: {name!r} was described before, at {self.path} line {before}"
                    )
                if len(self._rows) == max_rows:
                    raise UserError(
                        f"{place}: more than {max_rows:,} rows, and a table is read into memory; "
                        f"pack so many images into shards: "
                        f"latentddpm pack --data {self.folder} --out DIR"
                    )
                self.columns.update(dict.fromkeys(columns))
                if len(self.columns) > MAX_COLUMNS:
                    raise UserError(f"{place}: more than {MAX_COLUMNS} different columns")
                self._rows[name] = Row(line, columns).pack()
        if not self._rows:
            raise UserError(f"{self.path}: describes no image; fill it or remove it")


def metadata_files(folder: str) -> list[str]:
    """Names of the tables at the root of a `folder`; `MetadataTable` refuses more than one."""
    return [name for name in METADATA_NAMES if storage.is_file(storage.join(folder, name))]


def image_name(columns: Mapping[str, Any], place: str) -> str:
    """Name of the image of a row: its `file_name` as a normalised relative POSIX path.

    Args:
        columns: of the row.
        place: of the row, for messages.

    Raises:
        UserError: it is missing, not a text, absolute, or leaves the folder.
    """
    if FILE_NAME not in columns:
        raise UserError(f"{place}: no {FILE_NAME!r}{nearest(FILE_NAME, columns)}")
    name = columns[FILE_NAME]
    if not isinstance(name, str) or not name.strip():
        raise UserError(f"{place}: {FILE_NAME!r} is {name!r}, expected a relative path")
    if re.match(r"[/\\]|[A-Za-z]:", name):
        raise UserError(f"{place}: {FILE_NAME!r} {name!r} is absolute, expected a relative path")
    if ".." in re.split(r"[/\\]", name):
        raise UserError(f"{place}: {FILE_NAME!r} {name!r} climbs out of the folder")
    return _clean(name)


def _clean(name: str) -> str:
    """Relative path without "." and double slashes.

    `pathlib` would do it too, but interns every name, so that all of them stay in memory.
    """
    return "/".join(part for part in name.split("/") if part not in ("", ".")) or "."


def _lines(path: str, stream: BinaryIO) -> Iterator[str]:
    """Lines of a UTF-8 file, with their line breaks."""
    at = 0
    while data := stream.readline(MAX_LINE + 1):
        if len(data) > MAX_LINE:
            raise UserError(f"{path}: a line is longer than {MAX_LINE:,} bytes")
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise _not_utf8(path, data, error, at) from None
        yield text if at else text.removeprefix("\ufeff")
        at += len(data)


def _not_utf8(path: str, data: bytes, error: UnicodeDecodeError, before: int) -> UserError:
    return UserError(
        f"{path}: not UTF-8 (byte 0x{data[error.start]:02x} at position {before + error.start}); "
        "save it as UTF-8"
    )


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
    reader = csv.reader(_lines(path, stream), strict=True)
    header: list[str] = []
    try:
        for cells in reader:
            if not cells:
                continue
            if not header:
                header = cells
                if len(set(header)) < len(header):
                    raise UserError(f"{path}: a column name is repeated in {', '.join(header)}")
                continue
            if len(cells) != len(header):
                raise UserError(
                    f"{path} line {reader.line_num}: {len(cells)} cells, "
                    f"expected {len(header)} ({', '.join(header)})"
                )
            yield reader.line_num, dict(zip(header, map(_csv_cell, cells), strict=True))
    except csv.Error as error:
        raise UserError(f"{path} line {reader.line_num}: not valid CSV ({error})") from None


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
