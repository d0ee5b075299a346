"""Files that are whole or absent: write aside, flush to disk, rename.

A reader never sees half a file under its final name, and a crash or a full disk leaves
what stood there before.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentddpm.errors import UserError

CHUNK = 1 << 20
MAX_FILE_BYTES = 16 << 20  # of a file that is read whole: CLIP's tokenizer.json has 3.6 MB


def fsync_path(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Errors of the system name the file that was to be written, not nothing or a temporary one.

    A full disk names no file (`write` knows none); HDF5 has no error number, only words.
    """
    try:
        yield
    except OSError as error:
        name = str(error.filename or "")
        if name and ".tmp-" not in name:
            raise
        if error.strerror is None:
            raise OSError(f"{path}: {error}") from error
        error.filename = str(path)
        raise


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its name when the block ends without error.

    The temporary name keeps the suffix, because writers (Keras, Pillow) choose their
    format by it.
    """
    path = Path(path)
    with _naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".tmp-", suffix=path.suffix, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            fsync_path(temporary)
            temporary.chmod(0o644)
            os.replace(temporary, path)
            fsync_path(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """A temporary folder beside `path` that replaces it when the block ends without error."""
    path = Path(path)
    with _naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".tmp-{path.name}-", dir=path.parent))
    temporary.chmod(0o755)
    old = temporary.with_name(temporary.name + "-old")
    try:
        with _naming(path):
            yield temporary
        for file in sorted(temporary.rglob("*")):
            fsync_path(file)
        fsync_path(temporary)
        if path.exists():
            os.replace(path, old)
        os.replace(temporary, path)
        fsync_path(path.parent)
    except BaseException:
        if old.exists() and not path.exists():
            os.replace(old, path)
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")


def read_json_lines(path: str | Path) -> list[Any]:
    """The lines of a log, without one that a killed run left half written."""
    *lines, _ = Path(path).read_text("utf-8").split("\n")
    return [json.loads(line) for line in lines]


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


@dataclass(frozen=True)
class FileEntry:
    """Size and SHA-256 of a file, by which a manifest knows it again.

    Attributes:
        bytes: its size.
        sha256: of its bytes, in hexadecimal; None for a file that was too large to be worth it.
    """

    bytes: int
    sha256: str | None

    @classmethod
    def of(cls, path: str | Path, digest_limit: float = math.inf) -> FileEntry:
        """The entry of a file; of `digest_limit` bytes or more, its size alone."""
        size = Path(path).stat().st_size
        return cls(size, file_digest(path) if size < digest_limit else None)

    def difference(self, path: str | Path, digest_limit: float = math.inf) -> str:
        """The difference of a file from the one that was written, in a few words, or none.

        Args:
            digest_limit: the size alone counts of a file of so many bytes or more.
        """
        size = Path(path).stat().st_size
        if size != self.bytes:
            return f"{size} bytes, {self.bytes} were written"
        if size < digest_limit and file_digest(path) != self.sha256:
            return "its bytes have changed"
        return ""

    def matches(self, path: str | Path, digest_limit: float = math.inf) -> bool:
        """Whether a file is the one that was written; see `difference`."""
        return not self.difference(path, digest_limit)


def check_new(folder: Path) -> None:
    """Refuse a folder to write that holds something already."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{folder}: exists already; name a new folder")


def read_json(path: Path, *, optional: bool = False) -> dict[str, Any]:
    """The JSON object in a file of modest size; `{}` where it is `optional` and missing.

    Raises:
        UserError: the file is too large, not UTF-8, not JSON, or no object.
    """
    if optional and not path.is_file():
        return {}
    text = _read_text(path)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:  # bad syntax, or a number of 5,000 digits
        raise UserError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def _read_text(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise UserError(f"{path}: over {MAX_FILE_BYTES >> 20} MiB, refused")
        return path.read_text("utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text") from None
