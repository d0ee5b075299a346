"""The latents cache: every image goes through the encoder once, not once per epoch.

Encoding costs more than a training step of a small UNet, and the encoder never changes while
the UNet trains. So its answer is kept, per image:

    image bytes ─► read_image over white ─► Encoder ─► moments = mean, logvar  (h, w, 2c)

Only what is certain is kept. A flip, a posterior sample mean + exp(logvar / 2) · noise and the
scaling factor are applied at each use; a mirrored copy, whose moments are not the mirrored
moments, is a second row. A cache folder holds

    moments.npy   (rows, h, w, 2c): image i is row i, its mirrored copy row n + i
    index.json    what the rows are made of, and size and digest of moments.npy; written last

and while it is made partial.npy, partial.json and progress.json, from which an interrupted
encoding goes on. Files are replaced one by one: nothing else in the folder is touched, and
what stood there stays usable until the new moments are complete.

Importing this loads neither Keras nor TensorFlow, and a cache that fits is opened without
an autoencoder.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pydantic
from tqdm import tqdm

from latentddpm.data.images import UnreadableImage, read_image
from latentddpm.errors import UserError, check_choice
from latentddpm.files import file_digest, fsync_path, write_json

try:
    import fcntl
except ImportError:  # Windows: two processes must not make one cache at the same time
    fcntl = None

if TYPE_CHECKING:
    from latentddpm.models.autoencoder import Autoencoder

TRANSFORM_VERSION = 1
"""Of `read_image`: raise it when the same file comes to give other pixels."""

DTYPES = ("float16", "float32")
DIGEST_LIMIT = 1 << 30  # moments of this many bytes or more are checked by their size alone
SAVE_SECONDS = 30.0  # between two notes of how far an encoding has come
READ_AHEAD = 3  # batches decoded while one is encoded
UNSETTLED_NS = 2_000_000_000  # a file this young may change again within its time stamp
WORKERS = min(32, os.cpu_count() or 1)


@dataclass(frozen=True, eq=False)
class LatentsCache:
    """Moments of images, random access.

    Attributes:
        paths: POSIX paths relative to the image folder; image i is row i.
        moments: read-only memory map (rows, h, w, 2c), mean before logvar.
        mirrored: whether every image has a second row, of its mirrored copy.
    """

    paths: tuple[str, ...]
    moments: np.ndarray
    mirrored: bool

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(h, w, c)."""
        height, width, channels = self.moments.shape[1:]
        return height, width, channels // 2

    def row(self, index: int, mirrored: bool = False) -> int:
        """The row of image `index`, or of its mirrored copy."""
        if mirrored and not self.mirrored:
            raise UserError("this latents cache was made without mirrored copies")
        return index + len(self.paths) * mirrored

    def gather(self, rows: Any) -> tuple[np.ndarray, np.ndarray]:
        """Mean and logvar of rows (B,), float32 (B, h, w, c) each, unscaled."""
        moments = np.asarray(self.moments[rows], np.float32)
        mean, logvar = np.split(moments, 2, axis=-1)
        return mean, logvar


class _Record(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


class _Key(_Record):
    """Everything but the images that decides what the moments are."""

    vae_digest: str
    resolution: int
    transform: int
    dtype: str
    mirrored: bool


class _Stamp(_Record):
    """One image. Size and time alone tell that a file is unchanged; -1: too young to tell."""

    path: str
    sha256: str
    size: int
    mtime_ns: int


class _Index(_Record):
    """What index.json (moments complete) and partial.json (not yet) hold."""

    format: Literal[1] = 1
    key: _Key
    images: list[_Stamp]
    moments_size: int = 0
    moments_sha256: str | None = None

    def contents(self) -> list[str]:
        return [stamp.sha256 for stamp in self.images]


def prepare_latents(
    data: Path,
    paths: Sequence[str],
    cache: Path,
    *,
    vae_digest: str,
    load_autoencoder: Callable[[], Autoencoder],
    resolution: int,
    mirrored: bool = False,
    dtype: str = "float16",
    batch_size: int = 32,
    quiet: bool = False,
) -> LatentsCache:
    """The moments of `paths`: opened when the cache fits, else encoded and said why.

    Images are told apart by the SHA-256 of their bytes; a file whose size and modification
    time are as noted is not read again. When only images changed, rows of unchanged (or
    renamed) images are copied. Two processes that want one cache take turns.

    Args:
        data: the image folder.
        paths: of images relative to `data`; rows come in this order.
        cache: folder of the cache, made when missing.
        vae_digest: `weights_digest` of the autoencoder.
        load_autoencoder: called only when something must be encoded.
        dtype: "float16" rounds each number by less than 0.05 %; a million 32×32×4 latents
            then take 16 GB, in "float32" twice as much.
        quiet: no messages, no progress bars.

    Raises:
        UserError: a file that is missing or unreadable, a resolution that the autoencoder
            cannot take, an encoding that is not finite or exceeds the range of `dtype`.
        OSError: disk full, no permission; nothing unfinished stands under a final name.
    """
    data, cache, paths = Path(data), Path(cache), tuple(paths)
    check_choice("dtype", dtype, DTYPES)
    if not paths:
        raise UserError(f"{data}: no image to encode")
    if cache.exists() and not cache.is_dir():
        raise UserError(f"{cache}: is a file, not a folder for the latents cache")
    key = _Key(
        vae_digest=vae_digest,
        resolution=resolution,
        transform=TRANSFORM_VERSION,
        dtype=dtype,
        mirrored=mirrored,
    )
    index, moments, problem = _open(cache)
    known = {
        stamp.path: stamp
        for source in (_read_index(cache / "partial.json"), index)
        if source is not None
        for stamp in source.images
    }
    wanted = _Index(key=key, images=_stamps(data, paths, known, quiet))
    if problem or _misfit(index, wanted):
        cache.mkdir(parents=True, exist_ok=True)
        with _alone(cache, quiet):
            index, moments, problem = _open(cache)  # another process may have made it meanwhile
            problem = problem or _misfit(index, wanted)
            if problem:
                fits = moments is not None and index.key == key
                plan = _plan(cache, wanted, index if fits else None)
                _say(f"latents cache {cache}: {problem}; {plan}", quiet)
                _build(data, cache, wanted, plan, moments, load_autoencoder, batch_size, quiet)
                index, moments, problem = _open(cache)
                if problem:
                    raise OSError(f"{cache}: {problem}, right after it was written")
    elif index.images != wanted.images:
        # Same bytes under new time stamps (a copied folder): noted, so that they are not read
        # again next time. A cache that cannot be written is still a good one.
        with contextlib.suppress(OSError), _alone(cache, quiet):
            if _read_index(cache / "index.json") == index:
                _write_index(
                    cache / "index.json", index.model_copy(update={"images": wanted.images})
                )
    return LatentsCache(paths, moments, mirrored)


# --- What is there, and whether it fits -----------------------------------------------------


def _open(cache: Path) -> tuple[_Index | None, np.ndarray | None, str]:
    """The index and the moments that belong together, or what is wrong with them."""
    index = _read_index(cache / "index.json")
    if index is None:
        if (cache / "index.json").exists():
            return None, None, "its index is damaged or of another version"
        if (cache / "moments.npy").exists() or (cache / "partial.npy").exists():
            return None, None, "half-written (an encoding was interrupted)"
        return None, None, "not there yet"
    path = cache / "moments.npy"
    if not path.exists():
        return index, None, "half-written (no moments)"
    size = path.stat().st_size
    if size != index.moments_size:
        problem = f"{size} bytes, {index.moments_size} were written"
    elif size < DIGEST_LIMIT and file_digest(path) != index.moments_sha256:
        problem = "its bytes have changed"
    else:
        try:
            moments = np.load(path, mmap_mode="r", allow_pickle=False)
        except ValueError as error:
            return index, None, f"damaged moments file ({error})"
        shape = moments.shape
        rows = len(index.images) * (1 + index.key.mirrored)
        if len(shape) == 4 and shape[0] == rows and moments.dtype == index.key.dtype:
            return index, moments, ""
        problem = f"it holds {moments.dtype} {shape}"
    return index, None, f"damaged moments file ({problem})"


def _misfit(index: _Index, wanted: _Index) -> str:
    """Why a whole cache is not the wanted one; empty when it is."""
    has, needs = index.key, wanted.key
    if has.vae_digest != needs.vae_digest:
        return "made with another autoencoder"
    if has.resolution != needs.resolution:
        return f"made at resolution {has.resolution}, not {needs.resolution}"
    if has.transform != needs.transform:
        return f"made with version {has.transform} of reading images, now {needs.transform}"
    if has.dtype != needs.dtype:
        return f"made in {has.dtype}, not {needs.dtype}"
    if has.mirrored != needs.mirrored:
        return f"made {'with' if has.mirrored else 'without'} mirrored copies"
    old = {stamp.path: stamp.sha256 for stamp in index.images}
    new = {stamp.path: stamp.sha256 for stamp in wanted.images}
    kinds = {
        "added": [path for path in new if path not in old],
        "removed": [path for path in old if path not in new],
        "changed": [path for path in new if path in old and old[path] != new[path]],
    }
    parts = [f"{len(names)} {kind} ({_few(names)})" for kind, names in kinds.items() if names]
    if parts:
        return "images " + ", ".join(parts)
    return "" if list(old) == list(new) else "the order of the images has changed"


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _read_index(path: Path) -> _Index | None:
    """None when it is missing or holds something else."""
    try:
        return _Index.model_validate_json(path.read_bytes())
    except (FileNotFoundError, pydantic.ValidationError):
        return None


def _write_index(path: Path, index: _Index) -> None:
    write_json(path, index.model_dump())


def _stamps(
    data: Path, paths: Sequence[str], known: dict[str, _Stamp], quiet: bool
) -> list[_Stamp]:
    """What every image file is now; bytes are read only where size or time are not as known."""

    def stamp(path: str) -> _Stamp:
        before = known.get(path)
        now = time.time_ns()
        try:
            status = os.stat(data / path)
            size, changed = status.st_size, status.st_mtime_ns
            if before and (before.size, before.mtime_ns) == (size, changed):
                return before
            digest = file_digest(data / path)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise UserError(f"{data / path}: no such file any more") from None
        settled = now - changed > UNSETTLED_NS
        return _Stamp(path=path, sha256=digest, size=size, mtime_ns=changed if settled else -1)

    with ThreadPoolExecutor(WORKERS) as pool:
        try:
            found = pool.map(stamp, paths)
            bar = tqdm(found, "check images", len(paths), unit="image", delay=2, disable=quiet)
            return list(bar)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


# --- Making it ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Plan:
    """Where the rows come from: the images before `done` are in partial.npy already.

    Of the others, `copies` gives the row in the old moments, `todo` are to be encoded.
    """

    count: int
    done: int
    copies: dict[int, int]
    todo: list[int]

    def __str__(self) -> str:
        resumed = f", {self.done} were already before it was interrupted" if self.done else ""
        return f"{len(self.todo)} of {self.count} images to encode{resumed}"


def _plan(cache: Path, wanted: _Index, old: _Index | None) -> _Plan:
    known = {digest: row for row, digest in enumerate(old.contents())} if old else {}
    contents, done = wanted.contents(), _progress(cache, wanted)
    copies = {i: known[contents[i]] for i in range(done, len(contents)) if contents[i] in known}
    todo = [i for i in range(done, len(contents)) if i not in copies]
    return _Plan(len(contents), done, copies, todo)


def _build(
    data: Path,
    cache: Path,
    wanted: _Index,
    plan: _Plan,
    old_moments: np.ndarray | None,
    load_autoencoder: Callable[[], Autoencoder],
    batch_size: int,
    quiet: bool,
) -> None:
    """Copy the rows that are known, encode the others, then let the result take its name."""
    partial, key, count, todo = cache / "partial.npy", wanted.key, plan.count, plan.todo
    if todo:
        autoencoder = load_autoencoder()
        autoencoder.check_size(key.resolution, key.resolution)
        side = key.resolution // autoencoder.downsample_factor
        shape = (side, side, 2 * autoencoder.latent_channels)
        encode = _compiled(autoencoder)
    elif plan.copies:
        shape = old_moments.shape[1:]
    if not plan.done:
        _allocate(partial, (count * (1 + key.mirrored), *shape), key.dtype)
        _write_index(cache / "partial.json", wanted)
    layout = np.load(partial, mmap_mode="r")
    offset, row_size = layout.offset, layout[0].nbytes
    with open(partial, "r+b") as stream:

        def write(row: int, moments: np.ndarray) -> None:
            # Through the file, not a memory map: a full disk is then an OSError, not a SIGBUS.
            stream.seek(offset + row * row_size)
            stream.write(np.ascontiguousarray(moments))

        def save_progress(images: int) -> None:
            stream.flush()
            os.fsync(stream.fileno())
            write_json(cache / "progress.json", images)

        for i, row in plan.copies.items():
            write(i, old_moments[row])
            if key.mirrored:
                write(count + i, old_moments[len(old_moments) // 2 + row])
        saved = time.monotonic()
        names = [wanted.images[i].path for i in todo]
        with tqdm(total=len(todo), desc="encode", unit="image", disable=quiet) as bar:
            batches = _image_batches(data, names, key.resolution, batch_size)
            for start, images in zip(range(0, len(todo), batch_size), batches, strict=True):
                rows = todo[start : start + batch_size]
                whole = _padded(images, min(batch_size, len(todo)))
                for first, side in ((0, 1), (count, -1))[: 1 + key.mirrored]:
                    moments = encode(whole[:, :, ::side])[: len(rows)]
                    stored = _stored(moments, key.dtype, names[start:])
                    for row, one in zip(rows, stored, strict=True):
                        write(first + row, one)
                bar.update(len(rows))
                if time.monotonic() - saved > SAVE_SECONDS:
                    save_progress(rows[-1] + 1)
                    saved = time.monotonic()
        save_progress(count)
    size = partial.stat().st_size
    digest = file_digest(partial) if size < DIGEST_LIMIT else None
    (cache / "index.json").unlink(missing_ok=True)
    fsync_path(cache)  # the old index must be gone before the new moments stand in its place
    os.replace(partial, cache / "moments.npy")
    fsync_path(cache)
    done_index = wanted.model_copy(update={"moments_size": size, "moments_sha256": digest})
    _write_index(cache / "index.json", done_index)
    for name in ("partial.json", "progress.json"):
        (cache / name).unlink(missing_ok=True)


def _progress(cache: Path, wanted: _Index) -> int:
    """How many images an interrupted encoding of the same rows has finished, in order."""
    partial = _read_index(cache / "partial.json")
    if partial and partial.key == wanted.key and partial.contents() == wanted.contents():
        try:
            rows = len(np.load(cache / "partial.npy", mmap_mode="r", allow_pickle=False))
            done = json.loads((cache / "progress.json").read_bytes())
            if isinstance(done, int) and 0 <= done <= len(wanted.images):
                return done if rows == len(wanted.images) * (1 + wanted.key.mirrored) else 0
        except (OSError, ValueError):
            pass
    return 0


def _allocate(path: Path, shape: tuple[int, ...], dtype: str) -> None:
    """An .npy file of the full size on disk: a full disk is told before hours of encoding."""
    for name in ("progress.json", "partial.json"):
        path.with_name(name).unlink(missing_ok=True)
    try:
        np.lib.format.open_memmap(path, "w+", dtype, shape)
        if hasattr(os, "posix_fallocate"):
            with open(path, "r+b") as stream:
                os.posix_fallocate(stream.fileno(), 0, path.stat().st_size)
    except OSError:
        path.unlink(missing_ok=True)
        raise


def _image_batches(
    data: Path, paths: Sequence[str], resolution: int, batch_size: int
) -> Iterator[np.ndarray]:
    """float32 (B, H, W, 3) in [-1, 1], a few batches decoded ahead, the last one shorter."""

    def read(path: str) -> np.ndarray:
        try:
            return read_image(data / path, resolution)
        except UnreadableImage as error:
            raise UserError(f"{error}; mend or remove it") from error

    def stacked(batch: list[Future]) -> np.ndarray:
        pixels = np.stack([future.result() for future in batch])
        return pixels.astype(np.float32) / 127.5 - 1.0

    waiting: deque[list[Future]] = deque()
    with ThreadPoolExecutor(WORKERS) as pool:
        for start in range(0, len(paths), batch_size):
            waiting.append([pool.submit(read, path) for path in paths[start : start + batch_size]])
            if len(waiting) > READ_AHEAD:
                yield stacked(waiting.popleft())
        while waiting:
            yield stacked(waiting.popleft())


def _padded(images: np.ndarray, batch_size: int) -> np.ndarray:
    """Images filled up to a whole batch: one shape is compiled once."""
    fill = np.repeat(images[-1:], batch_size - len(images), axis=0)
    return np.concatenate([images, fill])


def _compiled(autoencoder: Autoencoder) -> Callable[[np.ndarray], np.ndarray]:
    """Images → moments, mean and logvar side by side."""
    return lambda images: np.concatenate(autoencoder.encode_on_batch(images), axis=-1)


def _stored(moments: np.ndarray, dtype: str, names: Sequence[str]) -> np.ndarray:
    """Moments as they are kept.

    Raises:
        UserError: naming the image whose moments are not finite, or exceed `dtype`.
    """
    with np.errstate(over="ignore"):
        stored = np.asarray(moments).astype(dtype)
    for name, kept, moment in zip(names, np.isfinite(stored), moments, strict=False):
        if not np.isfinite(moment).all():
            raise UserError(f"{name}: the autoencoder's moments of this image are not finite")
        if not kept.all():
            raise UserError(f"{name}: moments up to {abs(moment).max():g} exceed {dtype}")
    return stored


def _say(message: str, quiet: bool) -> None:
    if not quiet:
        print(message, file=sys.stderr, flush=True)


@contextlib.contextmanager
def _alone(cache: Path, quiet: bool) -> Iterator[None]:
    """One process at a time changes a cache; the lock ends with its process, however it ends."""
    if fcntl is None:
        yield
        return
    with open(cache / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say(f"latents cache {cache}: waiting for another process to finish it", quiet)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
