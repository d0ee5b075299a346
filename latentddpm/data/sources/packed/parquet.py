"""Parquet shards: a row for each image, as Hugging Face's image data sets have them.

    image      struct {bytes, path}, or bytes      the image file
    text       text, or a list of texts            captions; also any of `kinds.CAPTION_COLUMNS`
    label      whole number                        of a ClassLabel: its word, by the file's schema
    others     text, numbers, lists of them        columns, as of a table
    columns    text                                all of a row's columns as a JSON object, where
                                                   `pack` wrote the file; the others are then
                                                   for other readers

Which column holds the images is told in `parquet_layout`. The `offset` of an image is the number
of its row.

A row group is the least that can be read. The groups that were read last are kept, `KEPT_BYTES` of
them, so memory does not grow with the file. Needs the package pyarrow (extra `hub`).
"""

from __future__ import annotations

import os
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from itertools import accumulate
from typing import Any

from latentddpm.data.findings import Findings
from latentddpm.data.sources import storage
from latentddpm.data.sources.base import Entry, Unit
from latentddpm.data.sources.packed.parquet_layout import (
    BYTES,
    PATH,
    Layout,
    image_suffix,
    layout_of,
    read_row,
)
from latentddpm.data.sources.packed.shards import Shards, own_name
from latentddpm.data.sources.tables import MetadataTable
from latentddpm.errors import UserError, one_line

KEPT_BYTES = 512 << 20
"""Bytes of the row groups that are kept for reading in any order."""
BATCH = 64  # rows that become Python objects at a time


class ParquetShards(Shards):
    """Shards in parquet files; the `offset` of an image is the number of its row.

    Args:
        place, folder, names: see `Shards`.

    Raises:
        UserError: a remote place, or the package pyarrow is not installed.
    """

    kind = "parquet"

    def __init__(self, place: str, folder: str, names: list[str]) -> None:
        super().__init__(place, folder, names)
        if storage.is_remote(folder):
            raise UserError(f"{place}: parquet files are read on this machine only")
        parquet_module()
        self._groups = _Groups()

    def entries(
        self, unit: Unit, metadata: MetadataTable, findings: Findings | None = None
    ) -> Iterator[Entry]:
        path = self.path(unit.name)
        number, names = 0, set()
        with _naming(path):
            file, layout = _open(path)
            for name, reason in layout.unused if findings is not None else ():
                findings.note("other_member", f"{path}: column {name}", reason)
            for batch in _batches(file, layout):
                for values in batch.to_pylist():
                    entry = self._entry(path, unit.name, number, values, layout)
                    if entry is not None:
                        if entry.name in names:  # as 0001.png of each class: the split reads names
                            before = f"{os.path.splitext(unit.name)[0]}/{number:06d}"
                            entry = replace(entry, name=f"{before}/{entry.name}")
                        names.add(entry.name)
                        yield entry
                    elif findings is not None:
                        reason = "no bytes in the row: the file that it names is not in the shard"
                        findings.note("picture_not_read", f"{path}: row {number}", reason)
                    number += 1

    def _entry(
        self, path: str, unit: str, number: int, values: dict[str, Any], layout: Layout
    ) -> Entry | None:
        """Entry of a row; None for a row without an image."""
        value, where = values.pop(layout.image), f"{path}: row {number}"
        named = value if isinstance(value, dict) else {BYTES: value}
        data, name = named.get(BYTES), named.get(PATH)
        if not isinstance(data, bytes):
            return None
        row = read_row(values, layout, where)
        if not (isinstance(name, str) and name.strip()):
            name = f"{os.path.splitext(unit)[0]}/{number:06d}{image_suffix(data)}"
        name = own_name(row, os.path.basename(name) if os.path.isabs(name) else name)
        return Entry(name, f"{path}: {name}", number, len(data), row, lambda: data)

    def read(self, unit: str, offset: int, size: int) -> bytes:
        path = self.path(unit)
        data = self._groups.image(path, offset)
        if data is None or len(data) != size:
            raise OSError(f"{path}: row {offset} is not the image it was")
        return data


class _Groups:
    """Images of the row groups that were read last, for many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, int], Any] = OrderedDict()
        self._bytes = 0
        self._file = lru_cache(maxsize=64)(_open)
        self._ends = lru_cache(maxsize=4096)(_group_ends)

    def image(self, path: str, row: int) -> bytes | None:
        """Bytes of the image in a row, or None where it has none.

        Args:
            path: of the file.
            row: its number.

        Raises:
            OSError: the file cannot be read.
        """
        try:
            ends = self._ends(path)
            group = bisect_right(ends, row)
            if group == len(ends):
                return None
            column = self._column(path, group)
        except UserError as error:
            raise OSError(str(error)) from None
        except Exception as error:
            if not _of_arrow(error):
                raise
            raise OSError(f"{path}: {one_line(error, 200)}") from None
        value = column[row - (ends[group - 1] if group else 0)].as_py()
        return value.get(BYTES) if isinstance(value, dict) else value

    def _column(self, path: str, group: int) -> Any:
        """Column of the images of a row group."""
        with self._lock:  # a file of pyarrow is read by one thread at a time
            if (kept := self._kept.get((path, group))) is not None:
                self._kept.move_to_end((path, group))
                return kept
            file, layout = self._file(path)
            column = file.read_row_group(group, columns=_paths(layout)[:1]).column(0)
            self._kept[path, group] = column
            self._bytes += column.nbytes
            while self._bytes > KEPT_BYTES and len(self._kept) > 1:
                self._bytes -= self._kept.popitem(last=False)[1].nbytes
            return column


# --- Files ---------------------------------------------------------------------------------


def parquet_module() -> Any:
    """Module `pyarrow.parquet`.

    Raises:
        UserError: it is not installed.
    """
    try:
        import pyarrow.parquet
    except ImportError:
        raise UserError(
            'parquet files need the package pyarrow: pip install "latentddpm[hub]", '
            'in a checkout pip install ".[hub]"'
        ) from None
    return pyarrow.parquet


def _of_arrow(error: Exception) -> bool:
    import pyarrow

    if isinstance(error, OSError):  # of a file that is missing it has a number
        return error.errno is None
    return isinstance(error, pyarrow.ArrowException)


class _naming:
    """Turn pyarrow's errors inside the block into a `UserError` that names the file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if isinstance(error, Exception) and not isinstance(error, UserError) and _of_arrow(error):
            raise UserError(
                f"{self.path}: not a whole parquet file ({one_line(error, 120)})"
            ) from None


def _open(path: str) -> tuple[Any, Layout]:
    """Open file, and its layout.

    Raises:
        UserError: it is no parquet file, or has no images.
    """
    with _naming(path):
        file = parquet_module().ParquetFile(path)
    return file, layout_of(file.schema_arrow, path)


def _group_ends(path: str) -> list[int]:
    """Numbers of rows up to the end of each row group."""
    metadata = _open(path)[0].metadata
    return list(accumulate(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)))


def _paths(layout: Layout) -> list[str]:
    """Columns that are read, as pyarrow names them: the images first."""
    return [layout.image, *layout.others]


def _batches(file: Any, layout: Layout) -> Iterator[Any]:
    """Batches of rows, a row group at a time."""
    for group in range(file.num_row_groups):
        yield from file.iter_batches(BATCH, row_groups=[group], columns=_paths(layout))
