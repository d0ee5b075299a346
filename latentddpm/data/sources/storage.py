"""Files by name: on this machine, or on any filesystem that TensorFlow reads.

A place with a scheme (gs://, s3://, hdfs://, ram://) goes through `tf.io.gfile`; TensorFlow is
imported for these alone. Nothing here writes.
"""

from __future__ import annotations

import io
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from latentddpm.errors import UserError, one_line

REMOTE_BUFFER = 1 << 20
UNSETTLED_NS = 2_000_000_000  # a file this young may change again within its time stamp


class Stamp(NamedTuple):
    """Size and time alone tell that a file is unchanged; time -1: too young to tell."""

    size: int
    mtime_ns: int


def is_remote(place: str) -> bool:
    """Whether a place has a scheme."""
    return "://" in place


def join(folder: str, name: str) -> str:
    """The path of `name` below `folder`."""
    return f"{folder.rstrip('/')}/{name}" if is_remote(folder) else os.path.join(folder, name)


def is_folder(path: str) -> bool:
    """Whether a path is a folder.

    Raises:
        OSError: its filesystem does not answer.
        UserError: there is no such filesystem.
    """
    if not is_remote(path):
        return os.path.isdir(path)
    with _as_os_error(path):
        return _gfile().isdir(path)


def is_file(path: str) -> bool:
    """Whether a path is a file; a name that no file can have (too long, NUL) is none.

    Raises:
        OSError, UserError: as `is_folder`, of a place with a scheme.
    """
    if is_remote(path):
        with _as_os_error(path):
            return _gfile().exists(path) and not _gfile().isdir(path)
    try:
        return os.path.isfile(path)
    except (OSError, ValueError):
        return False


def stamp(path: str) -> Stamp:
    """The stamp of a file, which tells whether it is still the same.

    Raises:
        OSError: there is none.
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
    """A file to read from, anywhere in it.

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
    """TensorFlow's files as Python's, which know lines and buffers."""

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
    """`size` bytes from `offset` on (None: all).

    Raises:
        OSError: it cannot be read, or ends before.
    """
    with opened(path) as stream:
        if offset:
            stream.seek(offset)
        data = stream.read() if size is None else stream.read(size)
    if size is not None and len(data) < size:
        raise OSError(f"{path}: ends before byte {offset + size}; it was longer once")
    return data


def order(name: str) -> bytes:
    """The key by which names are sorted everywhere: their bytes, which is code point order."""
    return name.encode("utf-8", "surrogateescape")


def walk(root: str, wanted: Callable[[str], bool]) -> Iterator[tuple[str, set[str]]]:
    """Files below `root` whose name is `wanted`, in the order of their relative POSIX paths.

    Hidden files and folders are skipped. A linked file counts when it points to a file inside
    `root`; other linked files are left out with one warning, linked folders are not entered.
    Only one folder's names are held at a time, and those of the folders around it.

    Yields:
        The path relative to `root`, and the names of the files beside it that are not wanted.
    """
    strayed = []
    inside = None if is_remote(root) else Path(root).resolve()

    def enter(folder: str) -> Iterator[tuple[str, set[str]]]:
        items = sorted(listing(join(root, folder) if folder else root), key=order)
        others = {name for name in items if name[-1] != "/" and not wanted(name)}
        for name in items:
            path = folder + name
            if name[-1] == "/":
                yield from enter(path)
            elif name not in others:
                full = join(root, path)
                if inside and os.path.islink(full) and not _stays(full, inside):
                    strayed.append(full)
                elif inside is None or os.path.isfile(full):
                    yield path, others

    yield from enter("")
    if strayed:
        warnings.warn(
            f"{root}: {len(strayed)} links that leave the folder were not followed, "
            f"such as {strayed[0]}",
            stacklevel=2,
        )


def _stays(link: str, inside: Path) -> bool:
    return Path(link).resolve().is_relative_to(inside)


def listing(folder: str) -> list[str]:
    """Names in a folder that are not hidden; those of folders end in "/"."""
    if is_remote(folder):
        with _as_os_error(folder):
            names = [name.rstrip("/") for name in _gfile().listdir(folder)]
            return [
                name + "/" * _gfile().isdir(join(folder, name))
                for name in names
                if name and not name.startswith(".")
            ]
    with os.scandir(folder) as items:
        return [
            item.name + "/" * item.is_dir(follow_symlinks=False)
            for item in items
            if not item.name.startswith(".")
            and not (item.is_symlink() and os.path.isdir(item.path))
        ]


def _gfile() -> Any:
    import tensorflow as tf

    return tf.io.gfile


@contextmanager
def _as_os_error(path: str) -> Iterator[None]:
    """TensorFlow's errors as those of the system."""
    import tensorflow as tf

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
