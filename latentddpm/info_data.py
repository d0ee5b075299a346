"""What `info` says about images packed for training: shards, a catalog, a latents cache."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from latentddpm.data.catalog.catalog import MANIFEST, open_tables, read_manifest, versions
from latentddpm.data.latents.manifest import Index, open_cache, read_index
from latentddpm.data.sources.metadata import FILE_NAME
from latentddpm.data.sources.open import KINDS, open_source
from latentddpm.data.sources.tar import Shards
from latentddpm.errors import UserError

CATALOG = "catalog"
"""Where a run or a cache keeps its catalog."""


def find_shards(place: str) -> Shards | None:
    """The shards that a file, a folder or a pattern names; None where it names none."""
    try:
        source = open_source(place)
    except UserError:
        if "{" in place or place.lower().endswith(tuple(KINDS)):
            raise
        return None
    return source if isinstance(source, Shards) else None


def is_latents_cache(path: Path) -> bool:
    """Whether a folder holds latents, or part of them."""
    return any((path / name).is_file() for name in ("index.json", "partial.json"))


def is_catalog(path: Path) -> bool:
    """Whether a folder is a catalog, or a version of one."""
    return (path / MANIFEST).is_file() or bool(versions(path))


def describe_latents(path: Path) -> Iterator[str]:
    """What a latents cache holds, whether it is whole, and what it was made from."""
    index, moments, problem = open_cache(path)
    yield f"latents    {path}"
    if moments is not None:
        shape = "×".join(map(str, moments.shape[1:]))
        yield f"moments    {moments.shape[0]} of {shape}, {moments.dtype}, {_size(moments.nbytes)}"
    else:
        yield f"moments    {problem}; encode or train-diffusion goes on with it"
        index = index or read_index(path / "partial.json")
    if isinstance(index, Index):
        yield f"images     {index.images}, contents {index.contents[:12]}"
        for name, value in index.key:
            yield f"made with  {name}: {value[:12] if name.endswith('digest') else value}"
    if is_catalog(path / CATALOG):
        yield from describe_catalog(path / CATALOG)


def describe_catalog(path: Path) -> Iterator[str]:
    """How many images a catalog knows, where they lie and how large they are.

    Raises:
        UserError: none of its versions can be read.
    """
    version = path if (path / MANIFEST).is_file() else versions(path)[0]
    try:
        manifest = read_manifest(version)
        images, _ = open_tables(version, manifest)
    except (OSError, ValueError) as error:
        raise UserError(f"{version}: {error}") from None
    whole = "" if manifest.complete else " (the scan was interrupted)"
    yield f"catalog    {version}{whole}"
    yield f"made from  {manifest.place} ({manifest.kind}, {manifest.units} files)"
    size = f", {_size(int(images['size'].sum(dtype=np.int64)))}" if manifest.images else ""
    yield f"images     {manifest.images}{size}; {manifest.unreadable} files cannot be read"
    if manifest.images:
        sides = np.minimum(images["width"], images["height"])
        low, middle, high = np.percentile(sides, [0, 50, 100]).astype(int)
        yield f"sides      {low} to {high} pixels, half below {middle} (the shorter ones)"
        yield f"alpha      {int(images['transparent'].sum())} are transparent in places"
    words = [*manifest.columns, *["NAME.txt"] * manifest.sidecars]
    yield f"columns    {', '.join(words) or 'none'}"


def describe_shards(source: Shards, quiet: bool) -> Iterator[str]:
    """What is in shards, which are read through for it.

    Raises:
        UserError: one of them is not what its name says.
    """
    found, columns = Counter(), Counter()
    first, size = "", 0
    with tempfile.TemporaryDirectory() as scratch:
        metadata = source.open_metadata(Path(scratch))
        bar = tqdm(source.units(), "read", len(source.names), unit="shard", delay=2, disable=quiet)
        for unit in bar:
            size += unit.size
            for entry in source.entries(unit, metadata):
                first = first or entry.name
                found["images"] += 1
                found["bytes"] += entry.size
                columns.update(name for name in entry.row.columns if name != FILE_NAME)
    yield f"shards     {len(source.names)} of {source.kind}, {_size(size)}, in {source.place}"
    yield f"images     {found['images']}, {_size(found['bytes'])}; the first is {first or 'none'}"
    yield f"columns    {', '.join(f'{k} ({n})' for k, n in columns.most_common()) or 'none'}"


def _size(number: int) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB"
