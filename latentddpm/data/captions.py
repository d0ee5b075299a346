"""Captions of a folder of images: for each image the alternatives one of which is drawn per use.

Two sources, which may stand side by side but never contradict each other:

- a sidecar `NAME.txt` beside the image: its whole text, stripped, is one caption (it is not
  split into lines);
- `metadata.jsonl` or `metadata.csv` at the root: `file_name` (relative to the root), `text`
  (one caption or a list of alternatives) and any further columns for templates.

The column `text` of an image is what its sidecar or its metadata row says; other columns come
from the row. A template such as `"{text}, {style} style"` is filled from these columns, once
for every combination of entries where a column holds a list. An image that lacks a value for
one of its fields gets no caption from that template; an image without captions has none: ().

Files are UTF-8, with or without a byte order mark.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
import string
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from latentddpm.errors import UserError, nearest

METADATA_NAMES = ("metadata.jsonl", "metadata.csv")
FILE_NAME, TEXT = "file_name", "text"
DEFAULT_TEMPLATES = ("{text}",)


@dataclass(frozen=True)
class Row:
    """One row of metadata: `place` names file and line for errors, `columns` is raw."""

    place: str
    columns: Mapping[str, Any] = field(default_factory=dict)


def read_captions(
    folder: str | Path, images: Sequence[str], templates: Sequence[str] = ()
) -> list[tuple[str, ...]]:
    """The caption alternatives of each image, without repeats, in the order of the templates.

    Rows that name files which do not exist are left out with one warning.

    Args:
        folder: root of the images.
        images: POSIX paths relative to `folder`, as in `ImageRecord.path`.
        templates: format strings over the columns, plain `{name}` fields only; none means
            `"{text}"`. A template without a field is a caption of every image.

    Returns:
        One tuple an image, in the order of `images`; () where there is no caption.

    Raises:
        UserError: both metadata files exist; a file is not UTF-8 or malformed; a `file_name` is
            missing, repeated, absolute or climbs out of the folder; a sidecar and a row differ;
            a template is malformed or names an unknown column; a used column holds no text.
    """
    folder = Path(folder)
    templates = (templates,) if isinstance(templates, str) else templates
    parsed = [_parse_template(template) for template in templates or DEFAULT_TEMPLATES]
    source, rows = _read_metadata(folder)
    _warn_of_missing(folder, source, rows, images)
    sidecars = {name: text for name in images if (text := _read_sidecar(folder, name))}

    known = dict.fromkeys(column for row in rows.values() for column in row.columns)
    if not source or sidecars:
        known[TEXT] = None
    _check_fields(parsed, source, known)

    captions = []
    for name in images:
        row = rows.get(name, Row(name))
        if name in sidecars:
            row = _add_sidecar(row, name, sidecars[name])
        filled = (caption for template in parsed for caption in _fill(template, row))
        captions.append(tuple(dict.fromkeys(filled)))
    return captions


# --- Templates -----------------------------------------------------------------------------

Template = list[tuple[str, str | None]]
"""Pairs of literal text and the name of the column after it (None at the end)."""


def _parse_template(template: str) -> Template:
    """Split a template; attributes, indices, conversions and format specs are refused."""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise UserError(f"caption template {template!r}: {error}") from None
    for _, name, spec, conversion in parts:
        if name is not None and (spec or conversion or not name or re.search(r"[.\[\]{}]", name)):
            raise UserError(
                f"caption template {template!r}: only plain fields such as {{text}} are allowed"
            )
    return [(literal, name) for literal, name, _, _ in parts]


def _fields(template: Template) -> list[str]:
    return list(dict.fromkeys(name for _, name in template if name is not None))


def _check_fields(templates: list[Template], source: str, known: Mapping[str, None]) -> None:
    """Every field of every template is a column of some row."""
    for name in (name for template in templates for name in _fields(template)):
        if name not in known:
            raise UserError(
                f"{source or 'captions'}: no column {name!r}{nearest(name, known)}; "
                f"columns are {', '.join(map(repr, known)) or 'none'}"
            )


def _fill(template: Template, row: Row) -> Iterator[str]:
    """The template with every combination of its columns' entries."""
    names = _fields(template)
    for entries in itertools.product(*(_entries(row, name) for name in names)):
        value = dict(zip(names, entries, strict=True))
        caption = "".join(literal + value.get(name, "") for literal, name in template).strip()
        if caption:
            yield caption


def _entries(row: Row, column: str) -> list[str]:
    """The texts in one column of a row, stripped, empty ones left out."""
    value = row.columns.get(column)
    texts = []
    for entry in value if isinstance(value, list) else [value]:
        if isinstance(entry, bool | dict | list):
            raise UserError(
                f"{row.place}: {column!r} is {entry!r:.40}, expected a text or a list of texts"
            )
        text = "" if entry is None else str(entry).strip()
        if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
            raise UserError(f"{row.place}: {column!r} has half a character (a lone surrogate)")
        if text:
            texts.append(text)
    return texts


# --- Files ---------------------------------------------------------------------------------


def _read_text(path: Path) -> str:
    """A whole UTF-8 file without its byte order mark."""
    data = path.read_bytes()
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: not UTF-8 (byte 0x{data[error.start]:02x} at position {error.start}); "
            "save it as UTF-8"
        ) from None


def _read_sidecar(folder: Path, image: str) -> str:
    """The stripped text beside an image, empty when there is none."""
    path = (folder / image).with_suffix(".txt")
    if not path.is_file():
        return ""
    if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{path}: the link leaves the folder {folder}")
    return _read_text(path).strip()


def _add_sidecar(row: Row, image: str, caption: str) -> Row:
    """The row with the sidecar's caption as its text; both must agree where both speak."""
    texts = _entries(row, TEXT)
    if texts and texts != [caption]:
        raise UserError(
            f"{image}: its .txt file says {caption!r:.60}, {row.place} says {texts[0]!r:.60}; "
            "keep one of them"
        )
    return Row(row.place, {**row.columns, TEXT: caption})


def _read_metadata(folder: Path) -> tuple[str, dict[str, Row]]:
    """The name of the metadata file (empty when there is none) and its rows by image path."""
    present = [name for name in METADATA_NAMES if (folder / name).is_file()]
    if len(present) > 1:
        raise UserError(f"{folder}: holds both {' and '.join(present)}; keep one of them")
    if not present:
        return "", {}
    path = folder / present[0]
    parse = _parse_csv if path.suffix == ".csv" else _parse_jsonl
    rows: dict[str, Row] = {}
    for line, columns in parse(path, _read_text(path)):
        row = Row(f"{path} line {line}", columns)
        name = _image_name(row)
        if name in rows:
            raise UserError(f"{row.place}: {name!r} was described before, at {rows[name].place}")
        rows[name] = row
    if not rows:
        raise UserError(f"{path}: describes no image; fill it or remove it")
    return path.name, rows


def _parse_jsonl(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and object of each line that is not blank."""
    for number, line in enumerate(text.split("\n"), start=1):
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


def _parse_csv(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and columns of each row below the header; JSON lists of texts become lists."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
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


def _image_name(row: Row) -> str:
    """The row's `file_name` as a clean relative POSIX path."""
    if FILE_NAME not in row.columns:
        hint = nearest(FILE_NAME, row.columns)
        raise UserError(f"{row.place}: no {FILE_NAME!r}{hint}")
    name = row.columns[FILE_NAME]
    if not isinstance(name, str) or not name.strip():
        raise UserError(f"{row.place}: {FILE_NAME!r} is {name!r}, expected a relative path")
    if name.startswith(("/", "\\")) or PureWindowsPath(name).drive:
        raise UserError(
            f"{row.place}: {FILE_NAME!r} {name!r} is absolute, expected a relative path"
        )
    if ".." in re.split(r"[/\\]", name):
        raise UserError(f"{row.place}: {FILE_NAME!r} {name!r} climbs out of the folder")
    return PurePosixPath(name).as_posix()


def _warn_of_missing(
    folder: Path, source: str, rows: Mapping[str, Row], images: Sequence[str]
) -> None:
    """One warning for all rows whose file does not exist."""
    listed = set(images)
    missing = [name for name in rows if name not in listed and not _exists(folder / name)]
    if missing:
        few = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        warnings.warn(
            f"{folder / source}: {len(missing)} of {len(rows)} rows name files that do not "
            f"exist ({few})",
            stacklevel=3,
        )


def _exists(path: Path) -> bool:
    """Whether a path is a file; a name that no file can have (too long, NUL) is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False
