"""What a folder says about its images beside their pixels: a table at its root, and sidecars.

- `metadata.jsonl` or `metadata.csv` at the root: `file_name` (relative to the root), `text`
  (one caption or a list of alternatives) and any further columns for templates;
- a sidecar `NAME.txt` beside the image: its whole text, stripped, is one caption (it is not
  split into lines).

Files are UTF-8, with or without a byte order mark. A table may be of any length: its rows are
copied to an unnamed file and found there by name.
"""

from __future__ import annotations

import contextlib
import csv
import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from latentddpm.data.sources import storage
from latentddpm.data.sources.hash_index import KeyIndex, text_hash
from latentddpm.errors import UserError, nearest

METADATA_NAMES = ("metadata.jsonl", "metadata.csv")
FILE_NAME, TEXT = "file_name", "text"
MAX_LINE = 1 << 26  # bytes of one row
MAX_SIDECAR = 1 << 26
MAX_COLUMNS = 1000  # different names


@dataclass(frozen=True)
class Row:
    """What is known of one image: `columns` is raw.

    Attributes:
        line: of the metadata file; 0 when the columns come from elsewhere.
        problem: why there is no trusting the columns, in one line; empty when they are good.
            It is raised when captions are used, and not before.
    """

    line: int = 0
    columns: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""

    def pack(self) -> bytes:
        """As it is kept; nothing for an image of which nothing is known."""
        if not (self.columns or self.problem):
            return b""
        parts = [self.line, dict(self.columns), *([self.problem] if self.problem else [])]
        text = json.dumps(parts, ensure_ascii=False, separators=(",", ":"))
        return text.encode("utf-8", "surrogatepass")

    @classmethod
    def unpack(cls, data: bytes) -> Row:
        return cls(*json.loads(data.decode("utf-8", "surrogatepass"))) if data else cls()


def text_entries(value: Any, column: str, place: str) -> list[str]:
    """The texts in one column of a row, stripped, empty ones left out.

    Raises:
        UserError: it holds something else.
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
    """UTF-8 without its byte order mark.

    Raises:
        UserError: naming the byte that is not UTF-8.
    """
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise _not_utf8(path, data, error, 0) from None


def with_sidecar(row: Row, image: str, sidecar: bytes, path: str, table: str) -> Row:
    """The row with the sidecar's caption as its text; both must agree where both speak.

    Args:
        image, path, table: how errors call the image, the sidecar, and the row's file.
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


# --- The table -----------------------------------------------------------------------------


class MetadataTable:
    """The rows of a folder's metadata file, found by the names of images.

    Args:
        folder: root of the images; None for a table without rows.
        scratch: where unnamed files may grow.

    Attributes:
        path: of the file; empty when there is none.
        columns: all names of columns, in order of appearance.
        problem: what is wrong with the file as a whole, in one line; then no row is found.
    """

    def __init__(self, folder: str | None, scratch: Path) -> None:
        self.folder, self.path, self.problem = folder, "", ""
        self.columns: dict[str, None] = {}
        present = [] if folder is None else metadata_files(folder)
        if not present:
            return
        self.path = storage.join(folder, present[0])
        try:
            if len(present) > 1:
                raise UserError(f"{folder}: holds both {' and '.join(present)}; keep one of them")
            self._read(scratch)
        except UserError as error:
            self.problem = str(error)

    def find(self, name: str) -> Row:
        """The row of an image, by its POSIX path relative to the folder."""
        if not self.path or self.problem:
            return Row()
        number = self._number(name)
        if number is None:
            return Row()
        self._used[number] = 1
        line, columns = self._row(number)
        return Row(line, columns)

    def missing(self, limit: int | None = 4) -> tuple[int, int, list[str]]:
        """Rows whose file does not exist: how many, of how many, and `limit` of their names.

        A row counts when `find` has not asked for it and there is no such file.
        """
        if not self.path or self.problem:
            return 0, 0, []
        count, names = 0, []
        for start in range(0, self._count, 1 << 16):
            for number in np.flatnonzero(self._used[start : start + (1 << 16)] == 0):
                name = self._row(start + int(number))[1][FILE_NAME]
                name = _clean(name)
                if not storage.is_file(storage.join(self.folder, name)):
                    count += 1
                    if limit is None or len(names) < limit:
                        names.append(name)
        return count, self._count, names

    def _read(self, scratch: Path) -> None:
        """Copy all rows to an unnamed file, and index them by name."""
        parse = _parse_csv if self.path.endswith(".csv") else _parse_jsonl
        self._count, at = 0, 0
        with contextlib.ExitStack() as stack:
            spool, ends, hashes, used = (
                stack.enter_context(tempfile.TemporaryFile(dir=scratch)) for _ in range(4)
            )
            for line, columns in parse(self.path, stack.enter_context(storage.opened(self.path))):
                name = image_name(columns, f"{self.path} line {line}")
                self.columns.update(dict.fromkeys(columns))
                if len(self.columns) > MAX_COLUMNS:
                    raise UserError(
                        f"{self.path} line {line}: more than {MAX_COLUMNS} different columns"
                    )
                text = json.dumps([line, columns], ensure_ascii=False)
                at += spool.write(text.encode("utf-8", "surrogatepass"))
                ends.write(at.to_bytes(8, "little"))
                hashes.write(text_hash(name).to_bytes(8, "little"))
                self._count += 1
            if not self._count:
                raise UserError(f"{self.path}: describes no image; fill it or remove it")
            used.truncate(self._count)
            for file in (spool, ends, hashes):
                file.flush()
            # Memory maps outlive the handles of their files.
            self._used = np.memmap(used, np.uint8, "r+")
            self._ends = np.memmap(ends, "<u8", "r")
            self._lines = np.memmap(spool, np.uint8, "r")
            values = np.memmap(hashes, "<u8", "r")
        blocks = (values[i : i + (1 << 16)] for i in range(0, self._count, 1 << 16))
        self._index = KeyIndex(blocks, self._count, scratch)
        for first, second in self._index.alike():
            (before, one), (line, other) = self._row(first), self._row(second)
            name = _clean(other[FILE_NAME])
            if _clean(one[FILE_NAME]) == name:
                raise UserError(
                    f"{self.path} line {line}: {name!r} was described before, "
                    f"at {self.path} line {before}"
                )

    def _row(self, number: int) -> tuple[int, dict[str, Any]]:
        start = int(self._ends[number - 1]) if number else 0
        data = self._lines[start : int(self._ends[number])].tobytes()
        line, columns = json.loads(data.decode("utf-8", "surrogatepass"))
        return line, columns

    def _number(self, name: str) -> int | None:
        start, stop = self._index.rows(np.array([text_hash(name)], np.uint64))
        for place in range(int(start[0]), int(stop[0])):
            number = int(self._index.row_at(place))
            if _clean(self._row(number)[1][FILE_NAME]) == name:
                return number
        return None


def metadata_files(folder: str) -> list[str]:
    """The names of the metadata files at the root; more than one is a mistake of the user's."""
    return [name for name in METADATA_NAMES if storage.is_file(storage.join(folder, name))]


def image_name(columns: Mapping[str, Any], place: str) -> str:
    """A row's `file_name` as a clean relative POSIX path.

    Raises:
        UserError: it is missing, no text, absolute, or climbs out of the folder.
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
    """A relative path without "." and doubled slashes. (`pathlib` would keep every name it has
    seen in the interpreter's table of strings.)"""
    return "/".join(part for part in name.split("/") if part not in ("", ".")) or "."


def _lines(path: str, stream: BinaryIO) -> Iterator[str]:
    """The lines of a UTF-8 file, each with its end."""
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
    """Line number and object of each line that is not blank."""
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
    """Line number and columns of each row below the header; JSON lists of texts become lists."""
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
    """A list when the cell is a JSON list of strings, else the cell."""
    if cell.lstrip().startswith("["):
        try:
            value = json.loads(cell)
        except (ValueError, RecursionError):
            return cell
        if isinstance(value, list) and all(isinstance(entry, str) for entry in value):
            return value
    return cell
