"""Packing captioned images into shards: the bytes as they are, captions and columns with them.

A packed set is the same set: in the order it had, every image under the name it had, so that it
trains to the same examples and fits the same latents cache. `data.sources.tar` and
`data.sources.records` say what is written.
"""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from latentddpm.data.sources.base import Entry, Source
from latentddpm.data.sources.metadata import FILE_NAME, TEXT, text_entries
from latentddpm.data.sources.open import open_source
from latentddpm.data.sources.records import array_record, make_record
from latentddpm.errors import UserError, check_choice
from latentddpm.utils.files import atomic_folder

DEFAULT_SIZE = "512MB"
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def parse_size(text: str) -> int:
    """`"512MB"`, `"1.5 GB"` or a number of bytes.

    Raises:
        UserError: anything else.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)B?\s*", text, re.IGNORECASE)
    size = float(match[1]) * UNITS[match[2].upper()] if match else 0
    if size < 1:
        raise UserError(f"--shard-size: {text!r}, expected a size such as 512MB or 1GB")
    return int(size)


def pack(
    place: str | Path,
    out: Path,
    *,
    kind: str = "tar",
    shard_size: int = parse_size(DEFAULT_SIZE),
    quiet: bool = False,
) -> tuple[int, int]:
    """Write the images of a place into shards below `out`, all or none.

    Files are copied without being looked at: one that gives no pixels gives none afterwards.

    Args:
        place: see `data.sources.open.open_source`.
        out: a new folder, for `shard-000000.tar` and so on.
        kind: one of `KINDS`.
        shard_size: bytes after which the next shard begins.
        quiet: no progress bar.

    Returns:
        How many images, in how many shards.

    Raises:
        UserError: the folder is taken, captions that are damaged, a file that cannot be read.
        OSError: disk full, no permission.
    """
    check_choice("format", kind, KINDS)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: is there already; name a new folder")
    source = open_source(place)
    known = sum(1 for _ in source.units()) if source.kind == "folder" else None
    with (
        atomic_folder(out) as temporary,
        tqdm(desc="pack", total=known, unit="image", delay=2, disable=quiet) as bar,
    ):
        return _write(source, temporary, KINDS[kind], shard_size, bar)


def _write(
    source: Source, out: Path, kind: type[Writer], shard_size: int, bar: tqdm
) -> tuple[int, int]:
    metadata = source.open_metadata(max_rows=None)
    if metadata.problem:
        raise UserError(metadata.problem)
    count = shards = size = 0
    writer = None
    try:
        for unit in source.units():
            for entry in source.entries(unit, metadata):
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
    """One shard that is being written; `add` returns the bytes it took."""

    suffix: str

    def __init__(self, path: Path) -> None: ...

    def add(self, number: int, name: str, data: bytes, columns: Mapping[str, Any]) -> int: ...

    def close(self) -> None: ...


class TarWriter:
    """WebDataset's layout; see `data.sources.tar`."""

    suffix = ".tar"

    def __init__(self, path: Path) -> None:
        self._tar = tarfile.open(path, "w", format=tarfile.PAX_FORMAT)  # noqa: SIM115

    def add(self, number: int, name: str, data: bytes, columns: Mapping[str, Any]) -> int:
        # Numbers, not names: readers of WebDataset end the stem at the first dot, ours at the
        # last, and files that differ in their suffix alone would become one sample.
        key, before = f"{number:09d}", self._tar.offset
        self._member(key + os.path.splitext(name)[1].lower(), data)
        texts = text_entries(columns.get(TEXT), TEXT, name)
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
        self._tar.members.clear()  # else the names of all members stay in memory


class RecordWriter:
    """One record an image, see `data.sources.records`, in a file that a subclass opens."""

    _file: Any

    def add(self, number: int, name: str, data: bytes, columns: Mapping[str, Any]) -> int:
        record = make_record(data, name, columns_json(columns))
        self._file.write(record)
        return len(record)

    def close(self) -> None:
        self._file.close()


class TFRecordWriter(RecordWriter):
    suffix = ".tfrecord"

    def __init__(self, path: Path) -> None:
        import tensorflow as tf

        self._file = tf.io.TFRecordWriter(str(path))


class ArrayRecordWriter(RecordWriter):
    suffix = ".array_record"

    def __init__(self, path: Path) -> None:
        # One record a chunk: that is what reading in any order wants.
        self._file = array_record().ArrayRecordWriter(str(path), "group_size:1")


KINDS: dict[str, type[Writer]] = {
    "tar": TarWriter,
    "tfrecord": TFRecordWriter,
    "array-record": ArrayRecordWriter,
}


def columns_json(columns: Mapping[str, Any]) -> bytes:
    """A JSON object that any reader can read: half a character is written as an escape."""
    try:
        return json.dumps(dict(columns), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return json.dumps(dict(columns)).encode()
