"""Description of data: a folder of pictures, shards, a catalog, a latents cache."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from latentddpm.data.catalog.catalog import MANIFEST, open_tables, read_manifest, versions
from latentddpm.data.latents.manifest import Index, open_cache, read_index
from latentddpm.data.sources.metadata import FILE_NAME
from latentddpm.data.sources.open import KINDS, open_source
from latentddpm.data.sources.packed.shards import Shards
from latentddpm.errors import UserError
from latentddpm.utils.files import size_text

CATALOG = "catalog"
"""Folder of the catalog, in a run or a latents cache."""


def find_shards(place: str) -> Shards | None:
    """Shards that a path or a pattern names; None where it names none.

    Args:
        place: a shard, a folder of shards, or a pattern such as "a-{00..99}.tar".

    Raises:
        UserError: a pattern, or the name of a shard, that matches nothing.
    """
    try:
        source = open_source(place)
    except UserError:
        if "{" in place or place.lower().endswith(tuple(KINDS)):
            raise
        return None
    return source if isinstance(source, Shards) else None


def is_catalog(path: Path) -> bool:
    """True for a folder that is a catalog, or a version of one.

    Args:
        path: of the folder.
    """
    return (path / MANIFEST).is_file() or bool(versions(path))


def describe_latents(path: Path) -> Iterator[str]:
    """Describe a latents cache: its contents, its state, and the settings it was made with.

    Args:
        path: of its folder.

    Yields:
        Lines of text.
    """
    index, moments, problem = open_cache(path)
    yield f"latents    {path}"
    if moments is not None:
        shape, size = "×".join(map(str, moments.shape[1:])), size_text(moments.nbytes)
        yield f"moments    {moments.shape[0]} of {shape}, {moments.dtype}, {size}"
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
    """Describe a catalog: number, place, sizes and columns of its images.

    Args:
        path: of its folder, or of a version of it.

    Yields:
        Lines of text.

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
    size = f", {size_text(int(images['size'].sum(dtype=np.int64)))}" if manifest.images else ""
    yield f"images     {manifest.images}{size}; {manifest.unreadable} files cannot be read"
    if manifest.images:
        sides = np.minimum(images["width"], images["height"])
        low, middle, high = np.percentile(sides, [0, 50, 100]).astype(int)
        yield f"sides      {low} to {high} pixels, half below {middle} (the shorter ones)"
        yield f"alpha      {int(images['transparent'].sum())} are transparent in places"
        kinds = Counter(zip(images["channels"].tolist(), images["bits"].tolist(), strict=True))
        found = (f"{n} of {channels}×{bits} bits" for (channels, bits), n in kinds.most_common(5))
        yield f"channels   {', '.join(found)}"
    words = [*manifest.columns, *["NAME.txt"] * manifest.sidecars]
    yield f"columns    {', '.join(words) or 'none'}"


def describe_shards(source: Shards, quiet: bool) -> Iterator[str]:
    """Describe shards, after reading all of them: images, bytes and columns.

    Args:
        source: the shards.
        quiet: show no progress.

    Yields:
        Lines of text.

    Raises:
        UserError: a shard is of another format than its name says.
    """
    found, columns = Counter(), Counter()
    first, size = "", 0
    metadata = source.open_metadata()
    bar = tqdm(source.units(), "read", len(source.names), unit="shard", delay=2, disable=quiet)
    for unit in bar:
        size += unit.size
        for entry in source.entries(unit, metadata):
            first = first or entry.name
            found["images"] += 1
            found["bytes"] += entry.size
            columns.update(name for name in entry.row.columns if name != FILE_NAME)
    yield f"shards     {len(source.names)} of {source.kind}, {size_text(size)}, in {source.place}"
    pixels = size_text(found["bytes"])
    yield f"images     {found['images']}, {pixels}; the first is {first or 'none'}"
    yield f"columns    {', '.join(f'{k} ({n})' for k, n in columns.most_common()) or 'none'}"


def describe_folder(path: Path, quiet: bool) -> Iterator[str]:
    """Describe a folder of pictures: their number, and where their captions are.

    Args:
        path: of the folder.
        quiet: show no progress.

    Yields:
        Lines of text.
    """
    source = open_source(path)
    images = sidecars = 0
    for unit in tqdm(source.units(), "list", unit="image", delay=2, disable=quiet):
        images += 1
        sidecars += bool(unit.caption_stamp)
    tables = ", ".join(str(name) for name, *_ in source.metadata_stamp())
    yield f"data       {path}"
    yield f"images     {images} (by their names; doctor reads them)"
    yield f"captions   {sidecars} in files beside them; tables: {tables or 'none'}"
    yield f"use        --data {path}; latentddpm doctor {path} looks for problems"
