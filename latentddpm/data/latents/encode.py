"""Encoding of a latents cache: new images are encoded, known ones copied; it can be interrupted.

    begin         make partial.npy, at its full size
    encode_rows   fill rows start … stop − 1 of it; several processes fill a range each
    finish        rename it to moments.npy, and write the index

See `data.latents.cache` for the files.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from tqdm import tqdm

from latentddpm.data.buckets import Buckets, Shape
from latentddpm.data.catalog.catalog import Catalog
from latentddpm.data.catalog.columns import npy_header
from latentddpm.data.latents.as_memory_allows import AsMemoryAllows
from latentddpm.data.latents.contents import BLOCK, Contents
from latentddpm.data.latents.manifest import DIGEST_LIMIT, Index, read_index, write_index
from latentddpm.data.latents.pixels import decode
from latentddpm.data.prefetch import map_ahead
from latentddpm.errors import UserError
from latentddpm.utils import signals
from latentddpm.utils.files import FileEntry, atomic_path, fsync_path, write_json
from latentddpm.utils.images.pixel_format import PixelFormat

if TYPE_CHECKING:
    from latentddpm.models.autoencoder.autoencoder import Autoencoder

SAVE_SECONDS = 30.0  # between two saves of the progress
READ_AHEAD = 3  # batches of images decoded while one is encoded


class PendingRow(NamedTuple):
    """Pending row: an image to be encoded.

    Attributes:
        row: of the image.
        shape: (height, width) that it is cropped to.
        done: progress of its range once this row and all before it are done.
    """

    row: int
    shape: Shape
    done: int


@dataclass(frozen=True, eq=False)
class ReusableMoments:
    """Reusable moments of an old cache.

    Attributes:
        moments: (rows, h, w, 2c).
        contents: to find the row of an image.
    """

    moments: np.ndarray
    contents: Contents


class RowRange:
    """Range of rows of a cache, to be filled by one process.

    Args:
        cache: folder of the cache.
        catalog: of the images.
        wanted: index of the new cache.
        rows: of the range.
        old: moments to copy rows from; None if there are none.

    Attributes:
        done: progress: rows up to it are in partial.npy already.
        todo: number of images to encode; the others are copied from `old`.
    """

    def __init__(
        self,
        cache: Path,
        catalog: Catalog,
        wanted: Index,
        rows: range,
        old: ReusableMoments | None,
    ):
        self.cache, self.catalog, self.wanted = cache, catalog, wanted
        self.rows, self.old = rows, old
        self.progress = cache / f"progress-{rows.start}-{rows.stop}.json"
        self.done = _progress(self.progress, wanted, rows)
        self.buckets = Buckets(wanted.key.resolution, wanted.key.buckets)
        self.pixels = PixelFormat.from_json(wanted.key.pixels)
        self.todo = sum(int((old < 0).sum()) for _, _, old in self.blocks())

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Blocks of rows to fill: rows, their buckets, and their rows in `old` or −1.

        The rows of a block are sorted by bucket, so that images of one shape are encoded together.
        """
        digests, bucket = self.catalog.images["sha256"], self.buckets.of(self.catalog)
        first = self.rows.start + (self.done - self.rows.start) // BLOCK * BLOCK
        for start in range(first, self.rows.stop, BLOCK):
            buckets = bucket(start, min(start + BLOCK, self.rows.stop))
            order = np.argsort(buckets, kind="stable")[max(self.done - start, 0) :]
            rows = start + order
            known = self.old is not None
            old = self.old.contents.rows(digests[rows]) if known else np.full(len(rows), -1)
            yield rows, buckets[order], old

    def __str__(self) -> str:
        done = self.done - self.rows.start
        resumed = f", {done} were already before it was interrupted" if done else ""
        return f"{self.todo} of {len(self.rows)} images to encode{resumed}"


def begin(
    cache: Path,
    wanted: Index,
    old: ReusableMoments | None,
    load_autoencoder: Callable[[], Autoencoder],
) -> None:
    """Make partial.npy, unless an interrupted encoding of the same rows has left it.

    Args:
        cache, wanted, old: see `RowRange`.
        load_autoencoder: called only if there are no old moments, for the shape of a row.

    Raises:
        UserError: a resolution that does not fit the autoencoder.
        OSError: not enough space on the disk.
    """
    if _begun(cache, wanted):
        return
    key = wanted.key
    if old is not None:
        shape = old.moments.shape[1:]
    else:
        autoencoder = load_autoencoder()
        for height, width in ((key.resolution, key.resolution), *key.buckets):
            autoencoder.check_size(height, width)
        side = key.resolution // autoencoder.downsample_factor
        shape = (side, side, 2 * autoencoder.latent_channels)
    _allocate(cache / "partial.npy", (wanted.images * (1 + key.mirrored), *shape), key.dtype)
    write_index(cache / "partial.json", wanted)


def encode_rows(
    rows: RowRange,
    load_autoencoder: Callable[[], Autoencoder],
    batch_size: int,
    quiet: bool,
) -> None:
    """Fill the rows of a range: copy the known ones, encode the others.

    Args:
        rows: of the range.
        load_autoencoder: called only if an image has to be encoded.
        batch_size: images that are encoded at a time.
        quiet: show no progress bar.

    Raises:
        UserError: an image cannot be read, or its moments are not finite or exceed the dtype.
        OSError: disk full, no permission.
        Stopped: by a signal, after the progress was saved.
    """
    partial, key, count = rows.cache / "partial.npy", rows.wanted.key, rows.wanted.images
    encode = _compiled(load_autoencoder()) if rows.todo else None
    layout = np.load(partial, mmap_mode="r")
    offset, row_size = layout.offset, layout[0].nbytes
    with signals.deferred(), open(partial, "r+b") as stream:

        def write(row: int, moments: np.ndarray) -> None:
            # Not through a memory map, where a full disk is a SIGBUS and not an OSError.
            stream.seek(offset + row * row_size)
            stream.write(np.ascontiguousarray(moments))

        def save_progress(done: int) -> None:
            stream.flush()
            os.fsync(stream.fileno())
            write_json(rows.progress, done)

        def copy_known() -> Iterator[PendingRow]:
            """Copy known rows, and yield those that are to be encoded."""
            done = rows.done
            for block in rows.blocks():
                for row, bucket, old_row in zip(*map(np.ndarray.tolist, block), strict=True):
                    done += 1
                    if old_row < 0:
                        yield PendingRow(row, rows.buckets.shapes[bucket], done)
                        continue
                    moments = rows.old.moments
                    write(row, moments[old_row])
                    if key.mirrored:
                        write(count + row, moments[len(moments) // 2 + old_row])

        saved = time.monotonic()
        idle = quiet or not rows.todo
        with tqdm(total=rows.todo, desc="encode", unit="image", disable=idle) as bar:
            for batch, done, images in _image_batches(rows, copy_known(), batch_size):
                whole = _padded(images, min(batch_size, rows.todo))
                for first, side in ((0, 1), (count, -1))[: 1 + key.mirrored]:
                    moments = encode(whole[:, :, ::side])[: len(batch)]
                    stored = _stored(moments, key.dtype, rows.catalog, batch)
                    for row, one in zip(batch, stored, strict=True):
                        write(first + row, one)
                bar.update(len(batch))
                stopping = signals.pending() is not None
                if stopping or time.monotonic() - saved > SAVE_SECONDS:
                    save_progress(done)
                    saved = time.monotonic()
                if stopping:
                    signals.check(
                        f"stopped by a signal after {done} of {count} images; the same "
                        f"command goes on from there ({rows.cache})"
                    )
        save_progress(rows.rows.stop)


def finish(cache: Path, catalog: Catalog, wanted: Index) -> None:
    """Rename partial.npy in the folder `cache` to moments.npy, and write its other files.

    Args:
        cache, catalog, wanted: see `RowRange`.
    """
    partial = cache / "partial.npy"
    made = FileEntry.of(partial, DIGEST_LIMIT)
    (cache / "index.json").unlink(missing_ok=True)
    fsync_path(cache)  # the old index must be gone before the old moments are replaced
    _write_contents(cache / "contents.npy", catalog)
    os.replace(partial, cache / "moments.npy")
    fsync_path(cache)
    done = wanted.model_copy(update={"moments_size": made.bytes, "moments_sha256": made.sha256})
    write_index(cache / "index.json", done)
    _remove_progress(cache)


def _write_contents(path: Path, catalog: Catalog) -> None:
    """Write the digests of all images, from memory: a new scan may have replaced their file."""
    digests = catalog.images["sha256"]
    with atomic_path(path) as temporary, open(temporary, "wb") as stream:
        stream.write(npy_header("|u1", digests.shape))
        for start in range(0, len(digests), BLOCK):
            stream.write(np.ascontiguousarray(digests[start : start + BLOCK]))


def _begun(cache: Path, wanted: Index) -> bool:
    """True where partial.npy was made for the wanted rows."""
    if read_index(cache / "partial.json") != wanted:
        return False
    try:
        rows = len(np.load(cache / "partial.npy", mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError):
        return False
    return rows == wanted.images * (1 + wanted.key.mirrored)


def _progress(path: Path, wanted: Index, rows: range) -> int:
    """Progress of a range of rows: the end of those that an interrupted encoding has finished."""
    if _begun(path.parent, wanted):
        try:
            done: Any = json.loads(path.read_bytes())
        except (OSError, ValueError):
            done = None
        if isinstance(done, int) and done in range(rows.start, rows.stop + 1):
            return done
    return rows.start


def _remove_progress(cache: Path) -> None:
    (cache / "partial.json").unlink(missing_ok=True)
    for path in cache.glob("progress-*-*.json"):
        path.unlink(missing_ok=True)


def _allocate(path: Path, shape: tuple[int, ...], dtype: str) -> None:
    """Make an .npy file of its full size, so that a full disk is an error before the encoding."""
    _remove_progress(path.parent)
    try:
        np.lib.format.open_memmap(path, "w+", dtype, shape)
        if hasattr(os, "posix_fallocate"):
            with open(path, "r+b") as stream:
                os.posix_fallocate(stream.fileno(), 0, path.stat().st_size)
    except OSError:
        path.unlink(missing_ok=True)
        raise


def _image_batches(
    rows: RowRange, wanted: Iterator[PendingRow], batch_size: int
) -> Iterator[tuple[list[int], int, np.ndarray]]:
    """Batches of one shape: rows, progress after them, images float32 (B, H, W, C) in [-1, 1].

    Threads decode the next batches. The last one before another shape may be smaller.
    """

    catalog, pixels = rows.catalog, rows.pixels
    size = np.dtype(pixels.dtype).itemsize * pixels.channels
    decoded = map_ahead(
        lambda one: decode(catalog, one.row, one.shape, pixels),
        wanted,
        weigh=lambda one: size * math.prod(one.shape),
        window=READ_AHEAD * batch_size,
    )
    for _, run in groupby(decoded, lambda pair: pair[0].shape):
        while batch := list(islice(run, batch_size)):
            pending, values = zip(*batch, strict=True)
            images = pixels.to_images(np.stack(values))
            yield [one.row for one in pending], pending[-1].done, images


def _padded(images: np.ndarray, batch_size: int) -> np.ndarray:
    """Images filled up to a whole batch, so that a network is compiled once per shape."""
    filling = np.repeat(images[-1:], batch_size - len(images), axis=0)
    return np.concatenate([images, filling])


def _compiled(autoencoder: Autoencoder) -> Callable[[np.ndarray], np.ndarray]:
    """Function images → moments, (B, h, w, 2c), that is mean and logvar, as memory allows."""
    from latentddpm.models.autoencoder.tiling import encode, images_in_memory
    from latentddpm.models.precision import precision_of

    whole = precision_of(autoencoder) == "float32"

    def in_one_pass(images: np.ndarray) -> np.ndarray:
        moments = np.concatenate(autoencoder.encode_on_batch(images), axis=-1)
        if whole or np.isfinite(moments).all():
            return moments
        return np.concatenate(encode(autoencoder, images), axis=-1)  # goes over to float32

    return AsMemoryAllows(
        in_one_pass,
        lambda images: np.concatenate(encode(autoencoder, images), axis=-1),
        lambda images: images_in_memory(autoencoder, *images.shape[1:3]),
    )


def _stored(moments: np.ndarray, dtype: str, catalog: Catalog, rows: list[int]) -> np.ndarray:
    """Moments in the dtype of the cache.

    Raises:
        UserError: the moments of an image are not finite, or exceed `dtype`.
    """
    with np.errstate(over="ignore"):
        stored = np.asarray(moments).astype(dtype)
    for row, kept, moment in zip(rows, np.isfinite(stored), moments, strict=True):
        if kept.all():
            continue
        name = catalog.where(row)
        if not np.isfinite(moment).all():
            raise UserError(f"{name}: the autoencoder's moments of this image are not finite")
        raise UserError(f"{name}: moments up to {abs(moment).max():g} exceed {dtype}")
    return stored
