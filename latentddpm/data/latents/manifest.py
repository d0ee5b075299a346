"""Manifest of a latents cache: `index.json`, and checks that the moments are complete.

The index has everything that the moments depend on: the digest of the autoencoder, the way images
are read, and the SHA-256 of every image. See `data.latents.cache` for the files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydantic

from latentddpm.utils.files import FileEntry, file_digest, write_json
from latentddpm.utils.images.pixel_format import PixelFormat

DIGEST_LIMIT = 1 << 30  # moments of this many bytes or more are checked by their size alone


class _Record(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


class Key(_Record):
    """Key of a cache: everything that the moments depend on, except the images.

    Attributes:
        vae_digest: `weights_digest` of the autoencoder.
        resolution: side of the square that images are cropped to.
        transform: version of `read_image`.
        dtype: of the moments.
        mirrored: True if there are rows of mirrored copies.
        buckets: other shapes, (height, width), that images are cropped to.
        pixels: format that they are read in, `PixelFormat.to_json`; None for 8-bit RGB.
        precision: that the autoencoder computed in.
        pictures: what was encoded in place of the images themselves; "" for these.
    """

    vae_digest: str
    resolution: int
    transform: int
    dtype: str
    mirrored: bool
    buckets: tuple[tuple[int, int], ...] = ()
    pixels: dict[str, Any] | None = None
    precision: str = "float32"
    pictures: str = ""

    @pydantic.model_serializer(mode="wrap")
    def _images_are_not_named(self, handler: Any) -> dict[str, Any]:
        return {key: one for key, one in handler(self).items() if key != "pictures" or one}


class Index(_Record):
    """Index of a cache, the content of index.json, and of partial.json before it is complete.

    Attributes:
        key: what the moments depend on.
        images: number of images.
        contents: SHA-256 of contents.npy.
        moments_size: size of moments.npy in bytes.
        moments_sha256: SHA-256 of moments.npy; None for a file of `DIGEST_LIMIT` bytes or more.
    """

    format: Literal[2] = 2
    key: Key
    images: int
    contents: str
    moments_size: int = 0
    moments_sha256: str | None = None


def open_cache(cache: Path) -> tuple[Index | None, np.ndarray | None, str]:
    """Open the cache in a folder.

    Returns:
        The index, None if there is none; the moments, (rows, h, w, 2c), None if they are not
        complete; and what is wrong, empty if nothing is.
    """
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
    problem = FileEntry(index.moments_size, index.moments_sha256).difference(path, DIGEST_LIMIT)
    if not problem:
        try:
            moments = np.load(path, mmap_mode="r", allow_pickle=False)
        except ValueError as error:
            return index, None, f"damaged moments file ({error})"
        shape = moments.shape
        rows = index.images * (1 + index.key.mirrored)
        if len(shape) == 4 and shape[0] == rows and moments.dtype == index.key.dtype:
            return index, moments, ""
        problem = f"it holds {moments.dtype} {shape}"
    return index, None, f"damaged moments file ({problem})"


def misfit(index: Index, wanted: Index) -> str:
    """Reason why a cache with an `index` is not the `wanted` one; empty if it is."""
    has, needs = index.key, wanted.key
    if has.vae_digest != needs.vae_digest:
        return "made with another autoencoder"
    if has.pictures != needs.pictures:
        return f"made of {has.pictures or 'images'}, not {needs.pictures or 'images'}"
    if has.resolution != needs.resolution:
        return f"made at resolution {has.resolution}, not {needs.resolution}"
    if has.buckets != needs.buckets:
        return "made with other aspect-ratio buckets"
    if has.pixels != needs.pixels:
        was, now = (PixelFormat.from_json(key.pixels) for key in (has, needs))
        return f"made of images read as {was}, not {now}"
    if has.transform != needs.transform:
        return f"made with version {has.transform} of reading images, now {needs.transform}"
    if has.precision != needs.precision:
        return f"encoded in {has.precision}, not {needs.precision}"
    if has.dtype != needs.dtype:
        return f"made in {has.dtype}, not {needs.dtype}"
    if has.mirrored != needs.mirrored:
        return f"made {'with' if has.mirrored else 'without'} mirrored copies"
    same = (index.images, index.contents) == (wanted.images, wanted.contents)
    return "" if same else "images have changed"


def read_index(path: Path) -> Index | None:
    """Index in the file at `path`; None if it is missing or malformed."""
    try:
        return Index.model_validate_json(path.read_bytes())
    except (FileNotFoundError, pydantic.ValidationError):
        return None


def read_contents(cache: Path, index: Index) -> np.ndarray | None:
    """SHA-256 of every image of a `cache` with an `index`, uint8 (images, 32); None if damaged."""
    path = cache / "contents.npy"
    try:
        if file_digest(path) != index.contents:
            return None
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError):
        return None


def write_index(path: Path, index: Index) -> None:
    """Write an `index` to the file at `path`, atomically."""
    write_json(path, index.model_dump())
