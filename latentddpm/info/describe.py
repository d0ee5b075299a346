"""Description of whatever a path is: what it is, what it holds, and which command takes it.

`KINDS` lists what is described in detail, in the order of the questions; everything else that
`pipeline.recognise` knows is named with the command that takes it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import yaml
from PIL import Image

from latentddpm.config_file import find_config, load_config, ready_configs
from latentddpm.data.images import UnreadableImage, examine_image
from latentddpm.data.pictures.stored import FLOAT_BITS
from latentddpm.data.sources.kinds import ARRAYS_READ, PICTURES_READ
from latentddpm.errors import UserError, nearest
from latentddpm.info import data, runs, weights
from latentddpm.pipeline.model_folder import is_model, ready_model, ready_names
from latentddpm.pipeline.recognise import (
    holds_pictures,
    is_control,
    is_latents_cache,
    is_run,
    is_whole_run,
    recognise,
)
from latentddpm.training.run.contract import COMMANDS
from latentddpm.utils.pixels import BESIDE, METADATA_KEY, read_metadata

Lines = Iterable[str]


def describe(path: str | Path, quiet: bool = False) -> str:
    """Describe whatever a path is.

    Args:
        path: of a file or a folder, a pattern of shards, or the name of a model that ships.
        quiet: show no progress while data are read.

    Returns:
        Lines of text; for a PNG made by latentddpm its metadata as JSON.

    Raises:
        UserError: there is nothing, it is damaged, or nothing that any command takes.
    """
    path, place = str(path), Path(path)
    if ready := ready_model(place):
        return "\n".join(weights.describe_model(ready))
    configs = ready_configs()
    if path in configs and not place.exists():
        return "\n".join(_configuration(place, quiet))
    if "{" in path or "://" in path:
        if (shards := data.find_shards(path)) is None:
            raise UserError(f"{path}: no shards there")
        return "\n".join(data.describe_shards(shards, quiet))
    if not place.exists():
        names = ready_names()
        hint = nearest(place.name, [*names, *configs])
        hint = hint or f" (ready models: {', '.join(names)})" * bool(names)
        raise UserError(f"{path}: no such file or folder{hint}")
    for is_kind, lines in FOLDERS if place.is_dir() else FILES:
        if is_kind(place):
            return "\n".join(lines(place, quiet))
    return "\n".join(_named(place))


def _named(path: Path) -> Iterator[str]:
    """Lines on a path that only its name and its first bytes are known of."""
    thing = recognise(path)
    if thing is None:
        inside = f"{sum(1 for _ in path.iterdir())} entries" if path.is_dir() else ""
        what = (
            f"a folder of {inside}" if path.is_dir() else f"a file of {path.stat().st_size} bytes"
        )
        raise UserError(
            f"{path}: {what}, that no command takes; expected a model, run, LoRA, checkpoint, "
            "picture, data, latents cache or catalog"
        )
    yield f"path       {path}"
    yield f"kind       {thing.what}"
    yield f"use        {thing.advice}"


# --- Pictures and configurations -----------------------------------------------------------

MAKERS = {"parameters": "a program with AUTOMATIC1111's notes", "workflow": "ComfyUI"}
"""Text in a picture → the program that writes it."""


def _picture(path: Path, quiet: bool) -> Lines:
    """Metadata of a picture made by latentddpm, or what a picture is."""
    try:
        with Image.open(path) as image:
            kind, size, mode = image.format, image.size, image.mode
            if kind == "PNG":
                image.load()  # text may come after the pixels
            texts = dict(image.info)
    except Exception as error:
        raise UserError(f"{path}: not a picture that can be read ({error})") from None
    if METADATA_KEY in texts:
        yield json.dumps(read_metadata(path), indent=2, ensure_ascii=False)
        return
    yield f"picture    {path}, {kind} {size[0]}×{size[1]} {mode}"
    maker = next((name for key, name in MAKERS.items() if key in texts), "another program")
    yield f"made by    {maker}: it holds no latentddpm metadata (or was saved again elsewhere)"
    yield f"use        generate --init-image {path}; its folder with --data"


def _array(path: Path, quiet: bool) -> Lines:
    """Metadata of an array made by latentddpm, or what an array is."""
    try:
        found, _ = examine_image(path.read_bytes(), str(path))
    except UnreadableImage as error:
        raise UserError(str(error)) from None
    if path.with_suffix(".json").is_file() and path.suffix.lower() in BESIDE:
        yield json.dumps(read_metadata(path), indent=2, ensure_ascii=False)
        return
    kind = "floating point" if found.bits == FLOAT_BITS else f"{found.bits} bits"
    if found.signal:
        rate = f", {found.rate:,} a second" if found.rate else ""
        yield f"signal     {path}, {found.height:,} samples{rate}, {found.width} channels, {kind}"
        use = "its folder with train-diffusion --vae none --set data.spatial_dims=1 --data"
    else:
        shape = f"{found.height}×{found.width}, {found.channels} channels"
        yield f"array      {path}, {shape}, {kind}"
        use = f"generate --init-image {path}; its folder with --data"
    yield f"values     {found.low:g} to {found.high:g}"
    yield f"use        {use}"


def _configuration(path: Path, quiet: bool) -> Lines:
    """Sections of a configuration, and the command that it is for."""
    try:
        sections = yaml.safe_load(find_config(path).read_text("utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML ({error})") from None
    problems = {}
    for command, kind in COMMANDS.items():
        try:
            load_config(kind, path)
        except UserError as error:
            problems[command] = str(error)
    commands = [command for command in COMMANDS if command not in problems]
    yield f"settings   {path}"
    if isinstance(sections, dict):
        yield f"sections   {', '.join(map(str, sections)) or 'none'}"
    for command in commands:
        yield f"use        latentddpm {command} --data DIR --config {path} --out RUN"
    if not commands:
        yield from (f"{command}: {problem}" for command, problem in problems.items())


# --- Kinds ---------------------------------------------------------------------------------


def _of(*suffixes: str) -> Callable[[Path], bool]:
    return lambda path: path.suffix.lower() in suffixes


def _is_model(path: Path) -> bool:
    return is_model(path) or is_model(path / "model")


def _shards(path: Path, quiet: bool) -> Lines:
    return data.describe_shards(data.find_shards(str(path)), quiet)


KINDS = (
    ("a run of train", is_whole_run, lambda path, quiet: runs.describe_whole_run(path)),
    ("a run", is_run, lambda path, quiet: runs.describe_run(path)),
    ("a model folder", _is_model, lambda path, quiet: weights.describe_model(path)),
    ("a ControlNet", is_control, lambda path, quiet: weights.describe_control(path)),
    ("a checkpoint", runs.is_checkpoint, lambda path, quiet: runs.describe_checkpoint(path)),
    ("a latents cache", is_latents_cache, lambda path, quiet: data.describe_latents(path)),
    ("a catalog", data.is_catalog, lambda path, quiet: data.describe_catalog(path)),
    ("shards", lambda path: data.find_shards(str(path)) is not None, _shards),
    ("a diffusers folder", weights.is_diffusers, lambda p, quiet: weights.describe_diffusers(p)),
    ("a folder of runs", runs.holds_runs, lambda path, quiet: runs.describe_runs(path)),
    ("a folder of pictures", holds_pictures, data.describe_folder),
)
"""Folders that are described in detail: name, question, description."""

FOLDERS = [(is_kind, lines) for _, is_kind, lines in KINDS]
FILES = (
    (_of(*PICTURES_READ), _picture),
    (_of(*ARRAYS_READ), _array),
    (_of(*data.KINDS), _shards),
    (_of(".safetensors"), lambda path, quiet: weights.describe_weights(path)),
    (_of(".keras"), lambda path, quiet: weights.describe_archive(path)),
    (_of(".yaml", ".yml"), _configuration),
)
