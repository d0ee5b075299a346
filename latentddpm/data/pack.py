"""Packing of captioned images into shards: files are copied unchanged, with their columns.

The images of the shards have the order and the names that they had before. So training has the
same examples, and the latents cache stays valid. The formats are in `data.sources.packed.tar` and
`data.sources.packed.records`.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
import tarfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from latentddpm.data.findings import Findings
from latentddpm.data.places.places import Data, open_places, shown
from latentddpm.data.sources.base import Entry, Source
from latentddpm.data.sources.metadata import FILE_NAME, TEXT, caption_entries
from latentddpm.data.sources.packed.parquet import parquet_module
from latentddpm.data.sources.packed.parquet_layout import (
    BYTES,
    COLUMNS,
    IMAGE_COLUMNS,
    PATH,
    written_schema,
)
from latentddpm.data.sources.packed.records import array_record, make_record
from latentddpm.errors import UserError, check_choice
from latentddpm.utils.console import say
from latentddpm.utils.files import atomic_folder, check_new
from latentddpm.utils.startup import import_tensorflow

DEFAULT_SIZE = "512MB"
GROUP_ROWS, GROUP_BYTES = 64, 8 << 20
"""Rows and bytes of a row group, the least that can be read of a parquet file."""
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def parse_size(text: str) -> int:
    """Number of bytes that a text such as "512MB", "1.5 GB" or "1000" says.

    Raises:
        UserError: `text` is not a size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)B?\s*", text, re.IGNORECASE)
    size = float(match[1]) * UNITS[match[2].upper()] if match else 0
    if size < 1:
        raise UserError(f"--shard-size: {text!r}, expected a size such as 512MB or 1GB")
    return int(size)


def pack(
    place: Data,
    out: Path,
    *,
    kind: str = "tar",
    shard_size: int = parse_size(DEFAULT_SIZE),
    quiet: bool = False,
) -> tuple[int, int]:
    """Pack the images of a place into shards: all of them, or on an error none.

    Files are copied without decoding them; damaged images are copied too.

    Args:
        place: one, or several; see `data.places.places.as_places`.
        out: a new folder, for `shard-000000.tar` and so on.
        kind: one of `KINDS`.
        shard_size: bytes after which the next shard begins.
        quiet: show no progress bar.

    Returns:
        Number of images, number of shards.

    Raises:
        UserError: the folder is not empty, captions are damaged, or a file cannot be read.
        OSError: disk full, no permission.
    """
    check_choice("format", kind, KINDS)
    check_new(out)
    source = open_places(place)
    known = sum(1 for _ in source.units()) if source.kind == "folder" else None
    with (
        atomic_folder(out) as temporary,
        tqdm(desc="pack", total=known, unit="image", delay=2, disable=quiet) as bar,
    ):
        findings = source.survey()
        counts = _write(source, temporary, KINDS[kind], shard_size, bar, findings)
    for line in findings.lines():
        say(f"{shown(place)}: {line}", quiet)
    return counts


def _write(
    source: Source,
    out: Path,
    kind: type[Writer],
    shard_size: int,
    bar: tqdm,
    findings: Findings,
) -> tuple[int, int]:
    metadata = source.open_metadata(max_rows=None)
    if metadata.problem:
        raise UserError(metadata.problem)
    count = shards = size = 0
    writer = None
    try:
        for unit in source.units():
            for entry in source.entries(unit, metadata, findings):
                if entry.row.problem:
                    raise UserError(entry.row.problem)
                if writer is None or size >= shard_size:
                    if writer is not None:
                        writer.close()
                    writer = kind(out / f"shard-{shards:06d}{kind.suffix}")
                    shards, size = shards + 1, 0
                size += writer.add(count, entry.name, _load(entry), _columns(entry))
                count += 1
                bar.update()
    finally:
        if writer is not None:
            writer.close()
    lost, total, names = metadata.missing()
    if lost:
        warnings.warn(
            f"{metadata.path}: {lost} of {total} rows name files that do not exist and are not "
            f"packed ({', '.join(names[:3])})",
            stacklevel=3,
        )
    return count, shards


def _load(entry: Entry) -> bytes:
    try:
        return entry.load()
    except OSError as error:
        raise UserError(f"{entry.where}: {error}; mend or remove it") from None


def _columns(entry: Entry) -> dict[str, Any]:
    return {**entry.row.columns, FILE_NAME: entry.name}


class Writer(Protocol):
    """Writer of one shard.

    Args:
        path: of the shard.

    Attributes:
        suffix: of the shard's name.
    """

    suffix: str

    def __init__(self, path: Path) -> None: ...

    def add(self, number: int, name: str, data: bytes, columns: Mapping[str, Any]) -> int:
        """Add an image.

        Args:
            number: of the image in the whole set.
            name: of its file.
            data: bytes of its file.
            columns: its captions and other columns.

        Returns:
            Number of bytes that the shard has grown by.
        """

    def close(self) -> None:
        """Finish the shard."""


class TarWriter:
    """Tar shard in the layout of WebDataset: a `Writer`; see `data.sources.packed.tar`."""

    suffix = ".tar"

    def __init__(self, path: Path) -> None:
        self._tar = tarfile.open(path, "w", format=tarfile.PAX_FORMAT)  # noqa: SIM115

    def add(self, number: int, name: str, data: bytes, columns: Mapping[str, Any]) -> int:
        # Members are called by numbers. With names, files that differ only in their suffix would
        # become one sample, and readers of WebDataset end the stem at the first dot.
        key, before = f"{number:09d}", self._tar.offset
        self._member(key + os.path.splitext(name)[1].lower(), data)
        texts = caption_entries(columns, name)
        if len(texts) == 1:
            self._member(f"{key}.txt", texts[0].encode())
        self._member(f"{key}.json", columns_json(columns))
        return self._tar.offset - before

    def close(self) -> None:
        self._tar.close()

    def _member(self, name: str, data: bytes) -> None:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        self._tar.addfile(info, io.BytesIO(data))
        self._tar.members.clear()  # or the names of all members stay in memory


class RecordWriter:
    """Shard with one record per image: base class of a `Writer`. A subclass opens the file."""

    _file: Any

    def add(self, number: int, name: str, data: bytes, columns: Mapping[str, Any]) -> int:
        record = make_record(data, name, columns_json(columns))
        self._file.write(record)
        return len(record)

    def close(self) -> None:
        self._file.close()


class TFRecordWriter(RecordWriter):
    """Shard in a TFRecord file: a `Writer`; see `data.sources.packed.records`."""

    suffix = ".tfrecord"

    def __init__(self, path: Path) -> None:
        self._file = import_tensorflow().io.TFRecordWriter(str(path))


class ArrayRecordWriter(RecordWriter):
    """Shard in an ArrayRecord file: a `Writer`; see `data.sources.packed.records`."""

    suffix = ".array_record"

    def __init__(self, path: Path) -> None:
        # One record per chunk, which is best for reading in any order.
        self._file = array_record().ArrayRecordWriter(str(path), "group_size:1")


class ParquetWriter:
    """Shard in a parquet file, as Hugging Face's image data sets are: a `Writer`.

    See `data.sources.packed.parquet`. The column `text` has the first caption, for other readers.
    """

    suffix = ".parquet"

    def __init__(self, path: Path) -> None:
        self._writer = parquet_module().ParquetWriter(path, written_schema(), compression="none")
        self._rows: list[dict[str, Any]] = []
        self._bytes = 0

    def add(self, number: int, name: str, data: bytes, columns: Mapping[str, Any]) -> int:
        text = columns_json(columns).decode()
        shown = name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        captions = caption_entries(columns, name) or [None]
        self._rows.append(
            {IMAGE_COLUMNS[0]: {BYTES: data, PATH: shown}, TEXT: captions[0], COLUMNS: text}
        )
        size = len(data) + len(text)
        self._bytes += size
        if len(self._rows) == GROUP_ROWS or self._bytes >= GROUP_BYTES:
            self._flush()
        return size

    def close(self) -> None:
        if self._rows:
            self._flush()
        self._writer.close()

    def _flush(self) -> None:
        """Write the rows since the last time as a row group."""
        import pyarrow

        schema = self._writer.schema
        self._writer.write_table(pyarrow.Table.from_pylist(self._rows, schema))
        self._rows, self._bytes = [], 0


KINDS: dict[str, type[Writer]] = {
    "tar": TarWriter,
    "parquet": ParquetWriter,
    "tfrecord": TFRecordWriter,
    "array-record": ArrayRecordWriter,
}
"""Format of shards → its writer."""


def columns_json(columns: Mapping[str, Any]) -> bytes:
    """JSON object of the columns of an image, in UTF-8; lone surrogates are written as escapes.

    Numbers that are not finite become null, since JSON has none.
    """
    columns = _json_value(columns)
    try:
        return json.dumps(columns, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        return json.dumps(columns, allow_nan=False).encode()


def _json_value(value: Any) -> Any:
    """Value that JSON can hold: null for a number that is not finite."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, list):
        return [_json_value(entry) for entry in value]
    if isinstance(value, Mapping):
        return {key: _json_value(entry) for key, entry in value.items()}
    return value
