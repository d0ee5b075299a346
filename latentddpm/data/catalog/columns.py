"""Columns on disk: tables with one file per column, written row by row, then memory-mapped.

    COLUMN.npy      a number (or an array of numbers) per row, in NumPy's format
    TEXT.bin        bytes of all rows, one after the other
    TEXT_end.npy    end of the bytes of each row

Memory does not grow with the number of rows: reading maps pages of the files, which the system
frees when it needs them. Nothing is pickled. A file that does not match the schema, or is too
short, is an error.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

HEADER = 128  # bytes; enough for any number of rows, as NumPy's own
BLOCK = 256  # rows written at a time
COPY = 1 << 16  # rows copied at a time


@dataclass(frozen=True)
class Schema:
    """Schema of a table.

    Attributes:
        columns: name → dtype and shape of one row.
        texts: names of the columns of bytes.
    """

    columns: Mapping[str, tuple[str, tuple[int, ...]]]
    texts: tuple[str, ...]

    def all_columns(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Columns of numbers: name → dtype and shape, with those of the ends of texts."""
        return {**self.columns, **{f"{name}_end": ("<u8", ()) for name in self.texts}}

    def files(self) -> list[str]:
        """Names of the files of a table."""
        return [*(f"{name}.npy" for name in self.all_columns()), *(f"{t}.bin" for t in self.texts)]


class Table:
    """Table in a folder, memory-mapped: `table["width"]` is an array (count, …).

    Args:
        folder: of the files.
        schema: of the table.
        count: number of rows; the files may have more.

    Raises:
        ValueError: a file does not match the schema, or is too short.
        OSError: a file is missing.
    """

    def __init__(self, folder: Path, schema: Schema, count: int) -> None:
        self.schema, self.count = schema, count
        self._columns = {
            name: _column(folder / f"{name}.npy", np.dtype(dtype), shape, count)
            for name, (dtype, shape) in schema.all_columns().items()
        }
        self._texts = {name: _bytes(folder / f"{name}.bin") for name in schema.texts}
        for name in schema.texts:
            last = int(self[f"{name}_end"][-1]) if count else 0
            if last > len(self._texts[name]):
                raise ValueError(f"{folder / name}.bin: ends before byte {last}")

    def __getitem__(self, column: str) -> np.ndarray:
        return self._columns[column]

    def __len__(self) -> int:
        return self.count

    def span(self, text: str, start: int, stop: int) -> tuple[int, int]:
        """Range (first, end) of the bytes of rows `start` … `stop` − 1 in the file of a `text`."""
        ends = self._columns[f"{text}_end"]
        return (int(ends[start - 1]) if start else 0), (int(ends[stop - 1]) if stop else 0)

    def text(self, name: str, row: int) -> bytes:
        """Text of a `row` in the column `name`."""
        start, stop = self.span(name, row, row + 1)
        return self._texts[name][start:stop].tobytes()

    def row(self, row: int) -> dict[str, Any]:
        """Numbers of a `row`: column → value."""
        return {name: self._columns[name][row] for name in self.schema.columns}


class TableWriter:
    """Writer of a table, a context manager; `save` makes the rows so far readable.

    Args:
        folder: of the table, which must not exist.
        schema: of the table.

    Raises:
        OSError: the folder exists, or cannot be written.
    """

    def __init__(self, folder: Path, schema: Schema) -> None:
        folder.mkdir(parents=True)
        self.folder, self.schema, self.count = folder, schema, 0
        self._types = schema.all_columns()
        self._pending: dict[str, list[Any]] = {name: [] for name in self._types}
        self._stack = contextlib.ExitStack()
        self._files = {name: self._open(f"{name}.npy") for name in self._types}
        self._texts = {name: self._open(f"{name}.bin") for name in schema.texts}
        self._ends = dict.fromkeys(schema.texts, 0)
        for name in self._types:
            self._files[name].write(self._header(name))

    def append(self, columns: Mapping[str, Any], texts: Mapping[str, bytes]) -> None:
        """Add a row of `columns`, name → value, and `texts`, name → bytes."""
        for name, data in texts.items():
            self._texts[name].write(data)
            self._ends[name] += len(data)
            self._pending[f"{name}_end"].append(self._ends[name])
        for name, value in columns.items():
            self._pending[name].append(value)
        self.count += 1
        if self.count % BLOCK == 0:
            self._write_pending()

    def copy(self, table: Table, start: int, stop: int, **shifts: int) -> None:
        """Add the rows `start` … `stop` − 1 of another table with the same schema.

        Args:
            table: to copy from.
            start, stop: rows.
            shifts: column → a number that is added to its values.
        """
        self._write_pending()
        for name in self.schema.texts:
            first, last = table.span(name, start, stop)
            shifts[f"{name}_end"] = self._ends[name] - first
            for here in range(first, last, 1 << 22):
                self._texts[name].write(table._texts[name][here : min(here + (1 << 22), last)])
            self._ends[name] += last - first
        for here in range(start, stop, COPY):
            for name, (dtype, _) in self._types.items():
                values = table[name][here : min(here + COPY, stop)]
                if name in shifts:
                    values = (values.astype(np.int64) + shifts[name]).astype(dtype)
                self._files[name].write(np.ascontiguousarray(values))
        self.count += stop - start

    def save(self) -> None:
        """Write all rows to the disk, with headers that have their number."""
        self._write_pending()
        for name, file in self._files.items():
            file.seek(0)
            file.write(self._header(name))
            file.seek(0, os.SEEK_END)
        for file in (*self._files.values(), *self._texts.values()):
            file.flush()
            os.fsync(file.fileno())

    def __enter__(self) -> TableWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _open(self, name: str) -> BinaryIO:
        return self._stack.enter_context(open(self.folder / name, "wb"))

    def _write_pending(self) -> None:
        for name, values in self._pending.items():
            if values:
                self._files[name].write(np.array(values, self._types[name][0]))
                values.clear()

    def _header(self, column: str) -> bytes:
        dtype, shape = self._types[column]
        return npy_header(dtype, (self.count, *shape))


def npy_header(dtype: str, shape: tuple[int, ...]) -> bytes:
    """Header of an .npy file of an array of `dtype` and `shape`, of `HEADER` bytes."""
    text = repr({"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape})
    body = text.encode().ljust(HEADER - 11) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(body).to_bytes(2, "little") + body


def _column(path: Path, dtype: np.dtype, shape: tuple[int, ...], count: int) -> np.ndarray:
    with open(path, "rb") as stream:
        version = np.lib.format.read_magic(stream)
        if version != (1, 0):
            raise ValueError(f"{path}: version {version} of NumPy's format")
        found, _, found_type = np.lib.format.read_array_header_1_0(stream)
        offset = stream.tell()
    if found_type != dtype or found[1:] != shape or found[0] < count:
        raise ValueError(f"{path}: holds {found_type} {found}, expected {dtype} {(count, *shape)}")
    if not count:
        return np.zeros((0, *shape), dtype)
    return np.memmap(path, dtype, "r", offset, (count, *shape))


def _bytes(path: Path) -> np.ndarray:
    return np.memmap(path, np.uint8, "r") if path.stat().st_size else np.zeros(0, np.uint8)
