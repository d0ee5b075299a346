"""Making a latents cache: encode what is new, copy what is known, go on where it was interrupted.

Rows are written to partial.npy, which takes its final name when all of them are there. See
`data.latents` for the files.
"""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from latentddpm.data.images import UnreadableImage, read_image
from latentddpm.data.latents_index import DIGEST_LIMIT, WORKERS, Index, read_index, write_index
from latentddpm.errors import UserError
from latentddpm.files import file_digest, fsync_path, write_json

if TYPE_CHECKING:
    from latentddpm.models.autoencoder import Autoencoder

SAVE_SECONDS = 30.0  # between two notes of how far an encoding has come
READ_AHEAD = 3  # batches decoded while one is encoded


@dataclass(frozen=True)
class Plan:
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


def make_plan(cache: Path, wanted: Index, old: Index | None) -> Plan:
    """What is left to do for `wanted`, given the index of moments whose rows may be copied."""
    known = {digest: row for row, digest in enumerate(old.contents())} if old else {}
    contents, done = wanted.contents(), _progress(cache, wanted)
    copies = {i: known[contents[i]] for i in range(done, len(contents)) if contents[i] in known}
    todo = [i for i in range(done, len(contents)) if i not in copies]
    return Plan(len(contents), done, copies, todo)


def build_cache(
    data: Path,
    cache: Path,
    wanted: Index,
    plan: Plan,
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
        write_index(cache / "partial.json", wanted)
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
    write_index(cache / "index.json", done_index)
    for name in ("partial.json", "progress.json"):
        (cache / name).unlink(missing_ok=True)


def _progress(cache: Path, wanted: Index) -> int:
    """How many images an interrupted encoding of the same rows has finished, in order."""
    partial = read_index(cache / "partial.json")
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
