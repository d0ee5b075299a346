"""Storage: files on this machine, or on any filesystem that TensorFlow reads.

Places with a scheme (gs://, s3://, hdfs://, ram://) are read through `tf.io.gfile`; TensorFlow is
imported only for these. Nothing here writes.
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, NamedTuple

from latentddpm.data.sources.kinds import CAPTION_SUFFIXES, is_image, is_shard, suffix_of
from latentddpm.errors import UserError, one_line
from latentddpm.utils.startup import import_tensorflow

REMOTE_BUFFER = 1 << 20
UNSETTLED_NS = 2_000_000_000  # a file newer than this may change again with the same time stamp


class Stamp(NamedTuple):
    """Stamp of a file: a file with the same size and time is unchanged.

    Attributes:
        size: in bytes.
        mtime_ns: time of the last change; −1 for a file so new that it may change again within
            the resolution of time stamps.
    """

    size: int
    mtime_ns: int


def is_remote(place: str) -> bool:
    """True for a `place` with a scheme."""
    return "://" in place


def join(folder: str, name: str) -> str:
    """Path of `name` in `folder`."""
    return f"{folder.rstrip('/')}/{name}" if is_remote(folder) else os.path.join(folder, name)


def is_folder(path: str) -> bool:
    """True where `path` is a folder.

    Raises:
        OSError: its filesystem does not answer.
        UserError: TensorFlow does not read its filesystem.
    """
    if not is_remote(path):
        return os.path.isdir(path)
    with _as_os_error(path):
        return _gfile().isdir(path)


def is_file(path: str) -> bool:
    """True where `path` is a file; False also for an impossible name (too long, with NUL).

    Raises:
        OSError, UserError: for a place with a scheme, see `is_folder`.
    """
    if is_remote(path):
        with _as_os_error(path):
            return _gfile().exists(path) and not _gfile().isdir(path)
    try:
        return os.path.isfile(path)
    except (OSError, ValueError):
        return False


def stamp(path: str) -> Stamp:
    """Stamp of the file at `path`, as of now.

    Raises:
        OSError: there is no such file.
    """
    if is_remote(path):
        with _as_os_error(path):
            status = _gfile().stat(path)
        size, mtime_ns = status.length, status.mtime_nsec
    else:
        status = os.stat(path)
        size, mtime_ns = status.st_size, status.st_mtime_ns
    return Stamp(size, mtime_ns if time.time_ns() - mtime_ns > UNSETTLED_NS else -1)


@contextmanager
def opened(path: str) -> Iterator[BinaryIO]:
    """Open the file at `path` for reading, with random access.

    Raises:
        OSError: it cannot be opened or read.
    """
    if not is_remote(path):
        with open(path, "rb") as stream:
            yield stream
        return
    with _as_os_error(path), _gfile().GFile(path, "rb") as stream:
        yield io.BufferedReader(_Remote(stream), REMOTE_BUFFER)


class _Remote(io.RawIOBase):
    """File of `tf.io.gfile` as a raw file of Python, so that Python can buffer it."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._stream.seek(offset, whence)
        return self._stream.tell()

    def tell(self) -> int:
        return self._stream.tell()


def read(path: str, offset: int = 0, size: int | None = None) -> bytes:
    """Bytes of the file at `path`.

    Args:
        path: of the file.
        offset: of the first byte.
        size: number of bytes; None for all.

    Raises:
        OSError: the file cannot be read, or is shorter.
    """
    with opened(path) as stream:
        if offset:
            stream.seek(offset)
        data = stream.read() if size is None else stream.read(size)
    if size is not None and len(data) < size:
        raise OSError(f"{path}: ends before byte {offset + size}; it was longer once")
    return data


def order(name: str) -> bytes:
    """Sort key of a file `name`: its bytes, which sort as its code points do."""
    return name.encode("utf-8", "surrogateescape")


class Item(NamedTuple):
    """Item of a folder.

    Attributes:
        name: of the file or folder.
        kind: "file", "folder", "link", or "other" for sockets, devices and the like.
    """

    name: str
    kind: str


def items(folder: str) -> list[Item]:
    """Items of a `folder`, hidden ones included, sorted so that whole paths are in order.

    Raises:
        OSError: it cannot be listed.
    """
    if is_remote(folder):
        with _as_os_error(folder):
            found = [
                Item(name.rstrip("/"), "folder" if _is_remote_folder(folder, name) else "file")
                for name in _gfile().listdir(folder)
                if name.rstrip("/")
            ]
    else:
        with os.scandir(folder) as entries:
            found = [Item(entry.name, _kind(entry)) for entry in entries]
    return sorted(found, key=lambda item: order(item.name + "/" * (item.kind == "folder")))


def _is_remote_folder(folder: str, name: str) -> bool:
    """True for a folder; a request is made only for a name whose suffix does not tell it."""
    if (
        name.endswith("/")
        or is_shard(name)
        or is_image(name)
        or suffix_of(name) in CAPTION_SUFFIXES
    ):
        return name.endswith("/")
    return _gfile().isdir(join(folder, name))


def _kind(entry: os.DirEntry) -> str:
    if entry.is_symlink():
        return "link"
    if entry.is_dir(follow_symlinks=False):
        return "folder"
    return "file" if entry.is_file(follow_symlinks=False) else "other"


def _gfile() -> Any:
    return import_tensorflow().io.gfile


@contextmanager
def _as_os_error(path: str) -> Iterator[None]:
    """Replace TensorFlow's errors inside the block by an `OSError` or a `UserError`."""
    tf = import_tensorflow()
    try:
        yield
    except tf.errors.NotFoundError as error:
        raise FileNotFoundError(f"{path}: {error.message}") from error
    except tf.errors.UnimplementedError:
        scheme = path.partition("://")[0]
        raise UserError(
            f"{path}: TensorFlow reads no {scheme}:// by itself; some filesystems come with "
            "tensorflow-io"
        ) from None
    except tf.errors.OpError as error:
        raise OSError(f"{path}: {one_line(error.message)}") from error
