"""What a latents cache was made of: its index, whether its moments are whole, whether they fit.

An index names everything the moments depend on: the autoencoder's digest, the way images are
read, and of every image the SHA-256 of its bytes. See `data.latents` for the files.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
import pydantic
from tqdm import tqdm

from latentddpm.errors import UserError
from latentddpm.files import file_digest, write_json

DIGEST_LIMIT = 1 << 30  # moments of this many bytes or more are checked by their size alone
UNSETTLED_NS = 2_000_000_000  # a file this young may change again within its time stamp
WORKERS = min(32, os.cpu_count() or 1)


class _Record(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


class Key(_Record):
    """Everything but the images that decides what the moments are."""

    vae_digest: str
    resolution: int
    transform: int
    dtype: str
    mirrored: bool


class Stamp(_Record):
    """One image. Size and time alone tell that a file is unchanged; -1: too young to tell."""

    path: str
    sha256: str
    size: int
    mtime_ns: int


class Index(_Record):
    """What index.json (moments complete) and partial.json (not yet) hold."""

    format: Literal[1] = 1
    key: Key
    images: list[Stamp]
    moments_size: int = 0
    moments_sha256: str | None = None

    def contents(self) -> list[str]:
        return [stamp.sha256 for stamp in self.images]


def open_cache(cache: Path) -> tuple[Index | None, np.ndarray | None, str]:
    """The index and the moments that belong together, or what is wrong with them."""
    index = read_index(cache / "index.json")
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


def misfit(index: Index, wanted: Index) -> str:
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


def read_index(path: Path) -> Index | None:
    """None when it is missing or holds something else."""
    try:
        return Index.model_validate_json(path.read_bytes())
    except (FileNotFoundError, pydantic.ValidationError):
        return None


def write_index(path: Path, index: Index) -> None:
    write_json(path, index.model_dump())


def stamp_images(
    data: Path, paths: Sequence[str], known: dict[str, Stamp], quiet: bool
) -> list[Stamp]:
    """What every image file is now; bytes are read only where size or time are not as known."""

    def stamp(path: str) -> Stamp:
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
        return Stamp(path=path, sha256=digest, size=size, mtime_ns=changed if settled else -1)

    with ThreadPoolExecutor(WORKERS) as pool:
        try:
            found = pool.map(stamp, paths)
            bar = tqdm(found, "check images", len(paths), unit="image", delay=2, disable=quiet)
            return list(bar)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
