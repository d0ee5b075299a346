"""Shards of records: TFRecord and ArrayRecord files whose records are `tf.train.Example`s.

    image/encoded   bytes   the image file, unchanged
    image/filename  bytes   its name: POSIX, relative
    columns         bytes   a JSON object of all columns, with `text` for the captions
    text            bytes   alternative captions; read if there are no `columns`. Also under one of
                            the other names of `kinds.CAPTION_COLUMNS`, alone or below `image/`

Only `image/encoded` is required; other features of bytes are counted. TFRecord files are read from
any filesystem of TensorFlow, and their checksums are verified in the scan. ArrayRecord files need
the package `array-record` (extra `array-record`) and are read from this machine only.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from latentddpm.data.findings import Findings
from latentddpm.data.sources import storage
from latentddpm.data.sources.base import Entry, Unit
from latentddpm.data.sources.kinds import CAPTION_COLUMNS, first_column
from latentddpm.data.sources.metadata import TEXT, Row
from latentddpm.data.sources.packed.shards import Shards, own_name, parse_columns
from latentddpm.data.sources.tables import MetadataTable
from latentddpm.errors import UserError
from latentddpm.utils.startup import import_tensorflow

IMAGE, NAME, COLUMNS = "image/encoded", "image/filename", "columns"
TEXTS = (*CAPTION_COLUMNS, *(f"image/{column}" for column in CAPTION_COLUMNS))
FRAME = 12  # bytes before the data of a TFRecord: its length and a checksum
TAIL = 4  # bytes after it: another checksum


class RecordShards(Shards):
    """Shards of records, each a `tf.train.Example`; a subclass reads the files."""

    def entries(
        self, unit: Unit, metadata: MetadataTable, findings: Findings | None = None
    ) -> Iterator[Entry]:
        path = self.path(unit.name)
        for number, (offset, size, record) in enumerate(self._records(path)):
            where = f"{path}: record {number}"
            features = parse_record(record, where)
            row = record_row(features, where)
            name = own_name(row, _text(features.get(NAME, []), str(number)))
            data = features[IMAGE][0]
            for key in unused_features(features) if findings is not None else ():
                findings.note("other_member", name, f"feature {key!r}")
            yield Entry(name, f"{path}: {name}", offset, size, row, lambda data=data: data)

    def _records(self, path: str) -> Iterator[tuple[int, int, bytes]]:
        """Offset and size, as `read` takes them, and bytes of each record."""
        raise NotImplementedError


class TFRecordShards(RecordShards):
    """Shards in TFRecord files; an image is read by the offset of its record."""

    kind = "tfrecord"

    def _records(self, path: str) -> Iterator[tuple[int, int, bytes]]:
        tf = import_tensorflow()
        offset = FRAME
        try:
            for record in tf.data.TFRecordDataset(path).as_numpy_iterator():
                yield offset, len(record), record
                offset += len(record) + TAIL + FRAME
        except tf.errors.OpError as error:
            reason = error.message.splitlines()[0]
            raise UserError(
                f"{path}: not a whole, uncompressed TFRecord file ({reason})"
            ) from None

    def read(self, unit: str, offset: int, size: int) -> bytes:
        path = self.path(unit)
        return _image(storage.read(path, offset, size), f"{path} byte {offset}")


class ArrayRecordShards(RecordShards):
    """Shards in ArrayRecord files; the `offset` of an image is the number of its record.

    Args:
        place, folder, names: see `Shards`.

    Raises:
        UserError: a remote place, or the package array-record is not installed.
    """

    kind = "array-record"

    def __init__(self, place: str, folder: str, names: list[str]) -> None:
        super().__init__(place, folder, names)
        if storage.is_remote(folder):
            raise UserError(f"{place}: ArrayRecord files are read on this machine only")
        array_record()
        self._lock = threading.Lock()
        self._reader = lru_cache(maxsize=32)(_open_array_record)

    def _records(self, path: str) -> Iterator[tuple[int, int, bytes]]:
        reader = _open_array_record(path)
        for number in range(reader.num_records()):
            record = _array_record(reader, path, number)
            yield number, len(record), record

    def read(self, unit: str, offset: int, size: int) -> bytes:
        path = self.path(unit)
        with self._lock:
            record = _array_record(self._reader(path), path, offset)
        return _image(record, f"{path}: record {offset}")


def array_record() -> Any:
    """Module of the package array-record.

    Raises:
        UserError: it is not installed.
    """
    try:
        from array_record.python import array_record_module
    except ImportError:
        raise UserError(
            "ArrayRecord files need the package array-record: "
            'pip install "latentddpm[array-record]", in a checkout pip install ".[array-record]"'
        ) from None
    return array_record_module


def _open_array_record(path: str) -> Any:
    reader = array_record().ArrayRecordReader(path)
    if not reader.ok():
        raise UserError(f"{path}: not a whole ArrayRecord file")
    return reader


def _array_record(reader: Any, path: str, number: int) -> bytes:
    try:
        return reader.read([number])[0]
    except (RuntimeError, ValueError, IndexError) as error:
        raise OSError(f"{path}: record {number}: {error}") from None


# --- Records -------------------------------------------------------------------------------


def make_record(data: bytes, name: str, columns: bytes) -> bytes:
    """Record of an image, a serialized `tf.train.Example`.

    Args:
        data: bytes of the image file.
        name: of the image.
        columns: a JSON object.
    """
    tf = import_tensorflow()
    values = {IMAGE: data, NAME: storage.order(name), COLUMNS: columns}
    features = {
        key: tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
        for key, value in values.items()
    }
    example = tf.train.Example(features=tf.train.Features(feature=features))
    return example.SerializeToString(deterministic=True)


def parse_record(record: bytes, where: str) -> dict[str, list[bytes]]:
    """Features of a record, those of type bytes.

    Args:
        record: its bytes.
        where: its name, for messages.

    Raises:
        UserError: it is not a `tf.train.Example`, or has no image.
    """
    tf = import_tensorflow()
    from google.protobuf.message import DecodeError

    try:
        example = tf.train.Example.FromString(record)
    except DecodeError:
        raise UserError(f"{where}: not a tf.train.Example") from None
    features = {
        key: list(value.bytes_list.value) for key, value in example.features.feature.items()
    }
    if not features.get(IMAGE):
        known = ", ".join(sorted(features)) or "none"
        raise UserError(f"{where}: no feature {IMAGE!r}; features are {known}")
    return features


def record_row(features: Mapping[str, list[bytes]], where: str) -> Row:
    """Row of a record; if its columns are malformed the row has a problem.

    Args:
        features: of the record.
        where: its name, for messages.
    """
    if features.get(COLUMNS):
        return parse_columns(features[COLUMNS][0], where)
    name = first_column(features, TEXTS)
    try:
        texts = [text.decode("utf-8") for text in features.get(name, [])]
    except UnicodeDecodeError:
        return Row(problem=f"{where}: feature {name!r} is not UTF-8")
    return Row(0, {TEXT: texts}) if texts else Row()


def unused_features(features: Mapping[str, list[bytes]]) -> list[str]:
    """Names of the features of a record that are not read.

    Args:
        features: of the record.
    """
    text = COLUMNS if features.get(COLUMNS) else first_column(features, TEXTS)
    return [key for key, values in features.items() if values and key not in (IMAGE, NAME, text)]


def _image(record: bytes, where: str) -> bytes:
    try:
        return parse_record(record, where)[IMAGE][0]
    except UserError as error:
        raise OSError(str(error)) from None


def _text(values: list[bytes], otherwise: str) -> str:
    return values[0].decode("utf-8", "surrogateescape") if values else otherwise
