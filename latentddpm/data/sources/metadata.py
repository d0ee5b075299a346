"""Metadata of an image, that is captions and other columns, from tables and sidecars.

- A sidecar `NAME.txt` or `NAME.caption` beside the image: its whole text, stripped, is one
  caption. It is not split into lines. Both together are alternatives. Of Tux Paint's stamps,
  whose text goes on with translations (`de.utf8=…`), it is the text before them.
- A row of a table (see `data.sources.tables`), or the columns in a shard.

The captions of an image are in its column `text`, otherwise in one of the others that
`kinds.CAPTION_COLUMNS` lists. The built-in column `folder` is the name of the folder that the
image is in. What is no text (null, NaN, a number alone, a program's word for a missing value) is
no caption. Files are UTF-8, with or without a byte order mark.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from latentddpm.data.sources.kinds import CAPTION_COLUMNS, NAME_COLUMNS, NO_TEXT, first_column
from latentddpm.errors import UserError, nearest

FILE_NAME, TEXT, FOLDER = "file_name", "text", "folder"
MAX_SIDECAR = 1 << 26
TRANSLATION = re.compile(r"^[a-z]{2,3}([_@][A-Za-z]+)*\.utf8=", re.MULTILINE)
"""Beginning of a line of Tux Paint's stamps that is a translation."""


@dataclass(frozen=True)
class Row:
    """Row of one image: its columns, as they were found.

    Attributes:
        line: of the table; 0 if the columns are not from a table.
        columns: name → value, as of JSON.
        problem: what is wrong with the columns, in one line; empty if nothing is. It is raised
            only when captions are used.
        table: number of the table, in the order of `tables`.
    """

    line: int = 0
    columns: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""
    table: int = 0

    def pack(self) -> bytes:
        """Row as bytes, as a catalog has it; empty for a row without columns and problem."""
        if not (self.columns or self.problem):
            return b""
        parts = [self.line, dict(self.columns), self.problem, self.table]
        while not parts[-1] and len(parts) > 2:
            parts.pop()
        text = json.dumps(parts, ensure_ascii=False, separators=(",", ":"))
        return text.encode("utf-8", "surrogatepass")

    @classmethod
    def unpack(cls, data: bytes) -> Row:
        """Row of the bytes that `pack` made."""
        return cls(*json.loads(data.decode("utf-8", "surrogatepass"))) if data else cls()

    def with_more(self, columns: Mapping[str, Any]) -> Row:
        """Row with the values of another row of the same image as alternatives.

        Args:
            columns: of the other row. A value that differs makes its column a list.
        """
        merged = dict(self.columns)
        for name, value in columns.items():
            if name not in merged:
                merged[name] = value
            elif merged[name] != value and name.casefold() not in NAME_COLUMNS:
                entries = [*_as_list(merged[name]), *_as_list(value)]
                merged[name] = [one for i, one in enumerate(entries) if one not in entries[:i]]
        return Row(self.line, merged, self.problem, self.table)


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


# --- Texts ---------------------------------------------------------------------------------


def text_entries(value: Any, column: str, place: str, numbers: bool = True) -> list[str]:
    """Texts in one column of a row: stripped, without empty ones and without what is no text.

    Args:
        value: of the column: a text, a number, None, or a list of them.
        column: its name, for messages.
        place: of the row, for messages.
        numbers: take finite numbers for texts, as the fields of a template do.

    Raises:
        UserError: another value, or a text with a lone surrogate.
    """
    texts = []
    for entry in _as_list(value):
        if isinstance(entry, bool | dict | list):
            raise UserError(
                f"{place}: {column!r} is {entry!r:.40}, expected a text or a list of texts"
            )
        if not (isinstance(entry, str) or (numbers and entry is not None and _finite(entry))):
            continue
        text = str(entry).strip()
        if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
            raise UserError(f"{place}: {column!r} has half a character (a lone surrogate)")
        if text and text not in NO_TEXT:
            texts.append(text)
    return texts


def _finite(number: float) -> bool:
    return isinstance(number, int) or math.isfinite(number)


def caption_entries(columns: Mapping[str, Any], place: str, numbers: bool = False) -> list[str]:
    """Captions in the columns of an image: those of the first caption column that has a text.

    Args:
        columns: name → value.
        place: of the row, for messages.
        numbers: see `text_entries`.

    Raises:
        UserError: see `text_entries`.
    """
    left = dict(columns)
    while name := TEXT if TEXT in left else first_column(left, CAPTION_COLUMNS):
        if texts := text_entries(left.pop(name), name, place, numbers):
            return texts
    return []


def no_caption(columns: Mapping[str, Any]) -> str:
    """Reason why the values in the caption columns are no captions, in a few words; or "".

    Args:
        columns: name → value, of an image without a caption.
    """
    for name in CAPTION_COLUMNS:
        found = first_column(columns, (name,))
        for value in _as_list(columns.get(found)) if found else []:
            if value is None or not isinstance(value, str) or value.strip() in NO_TEXT:
                shown = "null" if value is None else f"{value!r:.30}"
                return f"its {found!r} is {shown}, no text"
    return ""


def template_columns(columns: Iterable[str], sidecars: bool) -> list[str]:
    """Columns that templates of captions can use.

    Args:
        columns: of all images.
        sidecars: True if an image has a caption from a text file.
    """
    known = dict.fromkeys(columns)
    others = {name for name in known if name.casefold() not in NAME_COLUMNS}
    if not others or sidecars or first_column(known, CAPTION_COLUMNS):
        known[TEXT] = None
    known[FOLDER] = None
    return list(known)


def with_folder(columns: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Columns of an image with the built-in `folder`, unless they have one of this name.

    Args:
        columns: name → value.
        name: of the image, whose folder it is.
    """
    folder = name.rpartition("/")[0].rpartition("/")[2]
    return {FOLDER: folder, **columns} if folder else columns


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
        raise not_utf8(path, data, error) from None


def without_translations(text: str) -> str:
    """Caption of a text file: all of it, or what stands before Tux Paint's translations.

    Args:
        text: of the file.
    """
    found = TRANSLATION.search(text)
    return (text[: found.start()] if found else text).strip()


def not_utf8(path: str, data: bytes, error: UnicodeDecodeError, before: int = 0) -> UserError:
    """Error for a file that is not UTF-8.

    Args:
        path: of the file.
        data: bytes that were decoded.
        error: of decoding them.
        before: number of bytes of the file before them.
    """
    place = f"byte 0x{data[error.start]:02x} at position {before + error.start}"
    return UserError(f"{path}: not UTF-8 ({place}); save it as UTF-8")


def with_sidecars(
    row: Row, image: str, sidecars: Sequence[tuple[bytes, str]], tables: Sequence[str]
) -> Row:
    """Row with the captions of sidecars as its text.

    Where the row has a text already, it must be the same; otherwise the row has a problem.

    Args:
        row: of the image.
        image: its name, for messages.
        sidecars: bytes and path of each.
        tables: paths of the tables, for messages.
    """
    if row.problem:
        return row
    try:
        captions = [without_translations(decode_text(data, path)) for data, path in sidecars]
        place = f"{tables[row.table]} line {row.line}" if row.line else image
        texts = text_entries(row.columns.get(TEXT), TEXT, place)
    except UserError as error:
        return Row(row.line, row.columns, str(error), row.table)
    captions = list(dict.fromkeys(filter(None, captions)))
    if not captions:
        return row
    columns = {**row.columns, TEXT: captions[0] if len(captions) == 1 else captions}
    problem = ""
    if texts and texts != captions:
        suffix = sidecars[0][1].rpartition(".")[2]
        problem = (
            f"{image}: its .{suffix} file says {captions[0]!r:.60}, "
            f"{place} says {texts[0]!r:.60}; keep one of them"
        )
    return Row(row.line, columns, problem, row.table)


# --- Names ---------------------------------------------------------------------------------


def image_name(columns: Mapping[str, Any], place: str, column: str = FILE_NAME) -> str:
    """Name of the image of a row: its `file_name` as a normalised relative POSIX path.

    Args:
        columns: of the row.
        place: of the row, for messages.
        column: the one that holds the name.

    Raises:
        UserError: it is missing, not a text, absolute, or leaves the folder.
    """
    if column not in columns:
        known = ", ".join(map(repr, columns)) or "none"
        raise UserError(
            f"{place}: no {FILE_NAME!r}{nearest(FILE_NAME, columns)}; columns are {known}; "
            f"call the one that names the images {FILE_NAME}"
        )
    name = columns[column]
    if not isinstance(name, str) or not name.strip():
        raise UserError(f"{place}: {column!r} is {name!r:.40}, expected a relative path")
    if re.match(r"[/\\]|[A-Za-z]:", name):
        raise UserError(f"{place}: {column!r} {name!r} is absolute, expected a relative path")
    if ".." in re.split(r"[/\\]", name):
        raise UserError(f"{place}: {column!r} {name!r} climbs out of the folder")
    return _clean(name)


def _clean(name: str) -> str:
    """Relative path without "." and double slashes.

    `pathlib` would do it too, but interns every name, so that all of them stay in memory.
    """
    return "/".join(part for part in name.split("/") if part not in ("", ".")) or "."
