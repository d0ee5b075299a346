"""Files, written atomically: under a temporary name, flushed to disk, then renamed.

A reader never sees half a file under its final name. After a crash or on a full disk the file
that was there before is still there.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentddpm.errors import UserError, one_line

CHUNK = 1 << 20
MAX_FILE_BYTES = 16 << 20  # of a file that is read whole; CLIP's tokenizer.json has 3.6 MB
WITHOUT_LINKS = (errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK)
"""Errors of `os.link` on a filesystem that has no hard links."""


def fsync_path(path: Path) -> None:
    """Flush to disk the content of a file, or the list of files of a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Let an `OSError` inside the block name the file that was to be written.

    Otherwise it names the temporary file, or none: `write` on a full disk does not know the name,
    and HDF5 raises an error with a message only.
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
def atomic_path(path: str | Path, replace: bool = True) -> Iterator[Path]:
    """Temporary file beside `path` that is renamed to it when the block ends without error.

    The temporary name keeps the suffix, because writers (Keras, Pillow) choose their
    format by it.

    Args:
        path: of the file to write; its folder is made when missing.
        replace: replace a file that is there.

    Raises:
        FileExistsError: `replace` is false and there is a file, also where another process has
            made it a moment ago.
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
            if not replace:
                _claim(temporary, path)
            os.replace(temporary, path)
            fsync_path(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def _claim(temporary: Path, path: Path) -> None:
    """Give a file its name, which nothing may have yet, at once or else as an empty file."""
    try:
        os.link(temporary, path)
    except OSError as error:
        if error.errno not in WITHOUT_LINKS:
            raise
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Temporary folder beside `path` that replaces it when the block ends without error."""
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
    """Write `value` to `path` as indented JSON, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")


def read_json_lines(path: str | Path) -> list[Any]:
    """Values of the lines of a JSON Lines file.

    A last line without a line break is left out: a run was killed while it wrote that line.
    """
    *lines, _ = Path(path).read_text("utf-8").split("\n")
    return [json.loads(line) for line in lines]


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def size_text(number: float) -> str:
    """Size of `number` bytes in words, such as "1.5 GB"."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB"


@dataclass(frozen=True)
class FileEntry:
    """Entry of a file in a manifest: the size and SHA-256 it had when it was written.

    Attributes:
        bytes: size of the file.
        sha256: of its bytes, in hexadecimal; None for a file of `digest_limit` bytes or more.
    """

    bytes: int
    sha256: str | None

    @classmethod
    def of(cls, path: str | Path, digest_limit: float = math.inf) -> FileEntry:
        """Entry of the file at `path`.

        Args:
            path: of the file.
            digest_limit: files of this many bytes or more get no SHA-256.
        """
        size = Path(path).stat().st_size
        return cls(size, file_digest(path) if size < digest_limit else None)

    def difference(self, path: str | Path, digest_limit: float = math.inf) -> str:
        """Difference of the file at `path` from this entry, in words; empty when there is none.

        Args:
            path: of the file.
            digest_limit: of files of this many bytes or more only the size is compared.
        """
        size = Path(path).stat().st_size
        if size != self.bytes:
            return f"{size} bytes, {self.bytes} were written"
        if size < digest_limit and file_digest(path) != self.sha256:
            return "its bytes have changed"
        return ""

    def matches(self, path: str | Path, digest_limit: float = math.inf) -> bool:
        """True where the file at `path` has no `difference` from this entry."""
        return not self.difference(path, digest_limit)


def check_new(folder: Path) -> None:
    """Check that `folder` is missing or empty, so that it can be written.

    Raises:
        UserError: it is a file, or holds something.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{folder}: exists already; name a new folder")


def read_json(path: Path, *, optional: bool = False) -> dict[str, Any]:
    """JSON object in a file of at most `MAX_FILE_BYTES`.

    Args:
        path: of the file.
        optional: return `{}` for a missing file.

    Raises:
        UserError: the file is too large, not UTF-8, not JSON, or its value is not an object.
        OSError: it cannot be read.
    """
    if optional and not path.is_file():
        return {}
    text = read_text(path)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:  # bad syntax, or a number of 5,000 digits
        raise UserError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def read_text(path: Path) -> str:
    """Text of a UTF-8 file of at most `MAX_FILE_BYTES`.

    Raises:
        UserError: the file is too large or not UTF-8.
        OSError: it cannot be read.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise UserError(f"{path}: over {MAX_FILE_BYTES >> 20} MiB, refused")
        return path.read_text("utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text") from None


# --- Archives of Keras: zip files of metadata.json, config.json and model.weights.h5 ----------

WEIGHTS = "model.weights.h5"
MEMBERS = {"metadata.json", "config.json", WEIGHTS}
MAX_CONFIG_BYTES = 1 << 20
MAX_EXPANSION = 200
"""Largest ratio of sizes after and before decompression; only a zip bomb compresses more."""

AUTOENCODER, TEXT_ENCODER = "latentddpm>Autoencoder", "latentddpm>TextEncoder"
"""Names under which Keras knows networks of a model folder."""
DENOISERS = {
    "latentddpm>UNet": "unet",
    "latentddpm>ClassicUNet": "classic",
    "latentddpm>BasicUNet": "basic",
}
"""Names under which Keras knows the networks that denoise → their kinds."""
NETWORKS = (AUTOENCODER, TEXT_ENCODER, *DENOISERS)
"""Names of all networks of a model folder, as Keras registers them."""


def read_arguments(path: str | Path, *names: str) -> dict[str, Any]:
    """Arguments of the network in an archive.

    Args:
        path: of the archive.
        names: of the network's class, as Keras registers it, or of those that it may have.

    Raises:
        UserError: it is not an archive of such a network.
    """
    return read_network(path, *names)[1]


@contextlib.contextmanager
def open_archive(path: str | Path) -> Iterator[zipfile.ZipFile]:
    """Open archive of Keras, with the members of one and of a size that can be.

    Args:
        path: of the archive.

    Raises:
        UserError: it has other members, or would grow too much when decompressed; or what is read
            from it inside the block is damaged.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename: info for info in archive.infolist()}
            unknown = sorted(set(members) - MEMBERS)
            if unknown or set(members) != MEMBERS:
                odd = unknown or sorted(MEMBERS - set(members))
                raise UserError(f"{path}: not a .keras archive of a network ({odd[0]!r})")
            size = sum(info.file_size for info in members.values())
            if size > MAX_EXPANSION * path.stat().st_size:
                raise UserError(f"{path}: expands to {size:,} bytes; refused")
            if members["config.json"].file_size > MAX_CONFIG_BYTES:
                raise UserError(f"{path}: config.json is too large; refused")
            yield archive
    except UserError:
        raise
    # RuntimeError: an encrypted member, an unknown compression, JSON nested without end.
    except (zipfile.BadZipFile, zlib.error, ValueError, OSError, EOFError, RuntimeError) as error:
        raise UserError(f"{path}: not a .keras archive: {one_line(error, 300)}") from None


def read_network(path: str | Path, *names: str) -> tuple[str, dict[str, Any]]:
    """Name and arguments of the network in an archive.

    Args:
        path: of the archive.
        names: of the network's class, as Keras registers it, or of those that it may have.

    Returns:
        (which of the names it has, arguments of its constructor).

    Raises:
        UserError: it is not an archive of such a network.
    """
    with open_archive(path) as archive:
        config = json.loads(archive.read("config.json"))
    found = None
    if isinstance(config, dict):
        found = config.get("registered_name") or config.get("class_name")
    if found not in names:
        expected = " or ".join(map(repr, names))
        raise UserError(f"{path}: holds {str(found)[:100]!r}, expected {expected}")
    if not isinstance(config.get("config"), dict):
        raise UserError(f"{path}: not a .keras archive: config.json lacks its arguments")
    return found, config["config"]
