"""Description of a generated PNG, a model, a run or training data, as `info` prints it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from tqdm import tqdm

from latentddpm.data.catalog.catalog import MANIFEST, open_tables, read_manifest, versions
from latentddpm.data.latents.manifest import Index, open_cache, read_index
from latentddpm.data.sources.metadata import FILE_NAME
from latentddpm.data.sources.open import KINDS, open_source
from latentddpm.data.sources.shards import Shards
from latentddpm.errors import UserError
from latentddpm.pipeline.model_folder import LORA, ModelFolder, find_model, read_model_folder
from latentddpm.training.run.curves import LOG, VALIDATION, Curve, read_curves
from latentddpm.utils.pixels import read_metadata


def describe(path: str, quiet: bool = False) -> str:
    """Describe a generated PNG, a run, a model, latents, a catalog or shards.

    Args:
        path: of any of these, a pattern of shards, or the name of a model that ships.
        quiet: show no progress while shards are read.

    Returns:
        Lines of text; for a PNG its metadata as JSON.

    Raises:
        UserError: it is none of these, or damaged.
    """
    place = Path(path)
    if place.suffix.lower() == ".png" and "{" not in path:
        return json.dumps(read_metadata(place), indent=2, ensure_ascii=False)
    if (place / LOG).is_file():
        lines = _describe_run(place)
    elif is_latents_cache(place):
        lines = describe_latents(place)
    elif is_catalog(place):
        lines = describe_catalog(place)
    elif shards := find_shards(path):
        lines = describe_shards(shards, quiet)
    else:
        lines = _describe_model(read_model_folder(find_model(place)))
    return "\n".join(lines)


def _describe_model(folder: ModelFolder) -> Iterable[str]:
    yield f"model      {folder.path} ({folder.digest})"
    if folder.image_size:
        yield f"image size {folder.image_size[0]}×{folder.image_size[1]}"
    for name, part in folder.parts.items():
        yield f"{name:<10} {part['bytes'] / 1e6:.1f} MB, digest {part['digest'][:12]}"
    for key, value in (folder.schedule or {}).items():
        yield f"schedule   {key}: {value}"
    for key, value in folder.defaults.items():
        yield f"default    {key}: {value}"


def _describe_run(path: Path) -> Iterable[str]:
    curves = read_curves(path)
    yield f"run        {path}"
    if "loss" in curves:
        steps, losses = curves["loss"]
        yield f"step       {steps[-1]}, loss {losses[-1]:.5g}{_quartiles(curves)}"
    if "examples_per_second" in curves:
        yield f"speed      {curves['examples_per_second'].values[-1]:.4g} examples/s"
    for name, (steps, values) in curves.items():
        if name.startswith(VALIDATION) and "loss_q" not in name:
            what = name.removeprefix(VALIDATION)
            more = _quartiles(curves, VALIDATION) if what == "loss" else ""
            if what == "loss" and values.argmin() < len(values) - 1:
                more += f"; lowest {values.min():.5g} at step {steps[values.argmin()]}"
            yield f"validation {what} {values[-1]:.5g} at step {steps[-1]}{more}"
    for kept in sorted(path.glob("checkpoints/best/step-*"))[-1:]:
        step = int(kept.name.removeprefix("step-"))
        yield f"best       step {step}, in {kept.relative_to(path)}"
    finished = (path / "model").is_dir() or (path / LORA).is_file()
    yield f"model      {'finished' if finished else 'not finished'}"


def _quartiles(curves: Mapping[str, Curve], kind: str = "") -> str:
    """Last loss of each quarter of the timesteps, as text; "" where none was logged."""
    found = [curves.get(f"{kind}loss_q{q}") for q in (1, 2, 3, 4)]
    if not any(found):
        return ""
    values = (f"{curve.values[-1]:.3g}" if curve else "?" for curve in found)
    return f" (from little to much noise {', '.join(values)})"


# --- Data ----------------------------------------------------------------------------------


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


def is_latents_cache(path: Path) -> bool:
    """True for a folder that holds a latents cache, complete or not.

    Args:
        path: of the folder.
    """
    return any((path / name).is_file() for name in ("index.json", "partial.json"))


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
    yield f"shards     {len(source.names)} of {source.kind}, {_size(size)}, in {source.place}"
    yield f"images     {found['images']}, {_size(found['bytes'])}; the first is {first or 'none'}"
    yield f"columns    {', '.join(f'{k} ({n})' for k, n in columns.most_common()) or 'none'}"


def _size(number: int) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB"
