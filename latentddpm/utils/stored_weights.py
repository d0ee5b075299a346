"""Weights in files: read by name from an archive of Keras, without Keras; finite, or refused.

An archive (`.keras`) is a zip file. Its member `model.weights.h5` is an HDF5 file with a dataset
for each weight. Here a weight's name is the path of its dataset, such as
`layers/resnet_block/conv1/conv/vars/0`; `models.archive.weight_paths` gives the names of the
weights of a network. One weight at a time is read into memory, besides the member itself where it
is compressed.

One weight that is NaN or infinite makes every picture black, or a training stop, long after the
file that brought it was read. Looking for them takes a thousandth of the time of loading.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import struct
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from latentddpm.errors import UserError, nearest, one_line
from latentddpm.utils.files import CHUNK, WEIGHTS, open_archive

LOCAL_HEADER = struct.Struct("<4s22xHH")
"""Start of a member in a zip file: mark, …, lengths of its name and of its extra field."""


def read_weights(path: str | Path, names: Iterable[str] | None = None) -> dict[str, np.ndarray]:
    """Weights of the network in an archive, of the type that they are stored in.

    Args:
        path: of the archive.
        names: of the weights to read; all by default.

    Returns:
        Name → array, float32 or float16; bfloat16 as float32.

    Raises:
        UserError: it is not an archive of Keras, it is damaged, or has no such weight.
    """
    with open_weights(path) as weights:
        return {name: weights[name] for name in (weights if names is None else names)}


@contextlib.contextmanager
def open_weights(path: str | Path) -> Iterator[StoredWeights]:
    """Weights in an archive, each read when it is asked for.

    Args:
        path: of the archive.

    Raises:
        UserError: it is not an archive of Keras, or it is damaged.
    """
    import h5py  # a tenth of a second, which reading arguments alone need not wait for

    with open_archive(path) as archive, open(path, "rb") as file:
        size = archive.getinfo(WEIGHTS).file_size
        member = _member(archive, file)
        try:
            with h5py.File(member) as weights:
                yield StoredWeights(path, weights, member, size)
        except UserError:
            raise
        except Exception as error:  # h5py has no exceptions of its own
            raise UserError(f"{path}: cannot be loaded: {one_line(error, 300)}") from error


class StoredWeights(Mapping):
    """Weights in an open HDF5 file: name → array, read anew each time.

    Args:
        path: of the archive, for messages.
        file: the HDF5 file.
        stream: the bytes that it is read from.
        stored: number of those bytes.

    Attributes:
        size: numbers in all weights together.

    Raises:
        UserError: a dataset is no array of numbers, or they claim more bytes than are there.
    """

    def __init__(self, path: str | Path, file: Any, stream: BinaryIO, stored: int) -> None:
        self._path, self._stream = path, stream
        self._datasets: dict[str, Any] = {}
        # It follows no links, neither inside the file nor to others.
        file.visititems(self._add)
        self.size = sum(dataset.size for dataset in self._datasets.values())
        claimed = sum(dataset.nbytes for dataset in self._datasets.values())
        if claimed > stored:
            raise UserError(
                f"{path}: cannot be loaded: {claimed:,} bytes of weights in {stored:,} bytes"
            )

    def _add(self, name: str, item: Any) -> None:
        if not hasattr(item, "dtype"):
            return  # a group
        stored = item.id.get_storage_size()
        if (
            not (item.dtype.kind in "fiu" or _is_bfloat16(item))
            or item.external
            or item.is_virtual
            or item.nbytes > stored
        ):
            raise UserError(
                f"{self._path}: cannot be loaded: {name!r} is {item.dtype} {item.shape} in "
                f"{stored:,} bytes"
            )
        self._datasets[name] = item

    def __iter__(self) -> Iterator[str]:
        return iter(self._datasets)

    def __len__(self) -> int:
        return len(self._datasets)

    def __getitem__(self, name: str) -> np.ndarray:
        dataset = self._datasets.get(name)
        if dataset is None:
            hint = nearest(name, self._datasets)
            raise UserError(f"{self._path}: cannot be loaded: no weight {name!r}{hint}")
        start = dataset.id.get_offset()
        if start is None:  # it is in chunks, or empty
            return dataset[...]
        array = np.empty(dataset.shape, dataset.dtype)
        self._stream.seek(start)
        if self._stream.readinto(array.reshape(-1).view(np.uint8)) != array.nbytes:
            raise UserError(f"{self._path}: cannot be loaded: {name!r} is cut off")
        if _is_bfloat16(dataset):  # the upper half of a float32, a type that NumPy lacks
            return (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        return array


def _is_bfloat16(dataset: Any) -> bool:
    """True for an array that Keras has written as bfloat16, to HDF5 two bytes without meaning."""
    return dataset.dtype == np.dtype("V2") and dataset.attrs.get("dtype") == "bfloat16"


def _member(archive: zipfile.ZipFile, file: BinaryIO) -> BinaryIO:
    """HDF5 file in an archive, its checksum verified: a part of the zip file or, where it is
    compressed, in memory.
    """
    info = archive.getinfo(WEIGHTS)
    with archive.open(info) as member:
        if info.compress_type != zipfile.ZIP_STORED:
            inflated = io.BytesIO()
            inflated.seek(max(info.file_size - 1, 0))
            inflated.write(b"\0")  # all memory at once: growing would copy it
            inflated.seek(0)
            shutil.copyfileobj(member, inflated, CHUNK)
            return inflated
        while member.read(CHUNK):
            pass
    file.seek(info.header_offset)
    _, name, extra = LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))
    return _Window(file, info.header_offset + LOCAL_HEADER.size + name + extra, info.file_size)


class _Window(io.RawIOBase):
    """Part of a file as a file."""

    def __init__(self, file: BinaryIO, start: int, size: int) -> None:
        self._file, self._start, self._size, self._place = file, start, size, 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence]
        self._place = start + offset
        return self._place

    def tell(self) -> int:
        return self._place

    def readinto(self, target: Any) -> int:
        view = memoryview(target).cast("B")[: max(self._size - self._place, 0)]
        self._file.seek(self._start + self._place)
        count = self._file.readinto(view)
        self._place += count
        return count


def check_finite(array: Any, file: object, tensor: str) -> None:
    """Check that all numbers of a tensor are finite.

    Args:
        array: of numbers of any type.
        file: that the tensor was read from, for the message.
        tensor: its name in the file, for the message.

    Raises:
        UserError: one is NaN or infinite; the message counts them.
    """
    finite = np.isfinite(array)
    if not finite.all():
        wrong, count = finite.size - np.count_nonzero(finite), finite.size
        raise UserError(
            f"{file}: {tensor!r} holds numbers that are not finite (NaN, ∞): {wrong:,} of "
            f"{count:,}; get the file again, or another version of it"
        )
