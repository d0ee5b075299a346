"""Metadata of generated PNG files: written here, and read back to make an image again (`--from`).

version, model and its digest      which network
the fields of GenerationSettings   how; a new field is written and read without a change here
prompts, seed, num_images, grid    what
negative_prompts                   of a grid whose rows have different ones
frames                             of a strip: its levels
precision                          of the networks; left out for float32
autoguidance                       name and digest of the weaker model, and the scale
labels                             what conditions of words and numbers were told, by name
pictures                           names and SHA-256 digests of the files that others were told
controls                           name, SHA-256 and scale of ControlNets, and their pictures
embeddings                         name and SHA-256 of textual inversions, and their words
init image, mask, LoRA files       names and SHA-256 digests, strength: the files are needed again
regions                            their prompts, and the same of their masks
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import latentddpm
from latentddpm.choices import SAMPLER_OPTIONS
from latentddpm.errors import UserError, check_type
from latentddpm.hub.address import address_of, is_address, parse_address
from latentddpm.hub.fetch import copy_of
from latentddpm.pipeline.model_folder import ModelFolder, ready_models
from latentddpm.pipeline.settings import (
    FIELDS,
    LATER_DEFAULTS,
    GenerationSettings,
    ModelFacts,
)
from latentddpm.pipeline.start.init_image import InitImage
from latentddpm.utils.files import file_digest
from latentddpm.utils.pixels import read_metadata

# Metadata beside the settings: keys that `--from` needs, and keys that it uses if present.
NEEDED = {"prompts": list, "seed": int, "model_digest": str}
OPTIONAL = {
    "model": str,
    "num_images": int,
    "negative_prompts": list,
    "init_image": str,
    "init_image_sha256": str,
    "strength": float,
    "mask": str,
    "mask_sha256": str,
    "loras": list,
    "regions": list,
    "frames": int,
    "engine": str,
    "precision": str,
    "labels": dict | list,
    "pictures": dict,
    "autoguidance": dict,
    "controls": list,
    "embeddings": list,
}


def common_metadata(
    folder: ModelFolder,
    settings: GenerationSettings,
    start: InitImage | None,
    *,
    num_images: int,
    files: Mapping[str, Path | None],
    order: Iterable[str],
) -> dict[str, Any]:
    """Metadata common to all images of a call.

    Args:
        folder: of the model.
        settings: of the images.
        start: init image as it was read; None without one.
        num_images: of each prompt.
        files: by the names "init_image" and "mask"; None for one that is not used.
        order: names of the options as they were given. It decides the order of the first keys,
            all but `num_steps`, and so the bytes of the file.
    """
    own = settings.to_json()
    first = {*own, "num_images"} - {"num_steps"}
    metadata = {
        "latentddpm": latentddpm.__version__,
        "model": model_name(folder),
        "model_digest": folder.digest,
        **dict.fromkeys(name for name in order if name in first),
        **own,
        "num_images": num_images,
    }
    for name, path in files.items():
        if path is not None:
            metadata[name] = path.name
            metadata[f"{name}_sha256"] = file_digest(path)
    return metadata if start is None else {**metadata, "strength": start.strength}


def image_metadata(
    common: Mapping[str, Any],
    loras: list[dict[str, Any]],
    prompt: str,
    negative_prompt: str | None,
    seed: int,
    labels: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Metadata of one image.

    Args:
        common: returned by `common_metadata`.
        loras: `LatentDiffusion.loras` of the model.
        prompt: of the image.
        negative_prompt: of the image; None for that of the settings.
        seed: of the image.
        labels: texts of what the conditions were told, by name.
    """
    own = {} if negative_prompt is None else {"negative_prompt": negative_prompt}
    own |= {"labels": dict(labels)} if labels else {}
    own |= {"loras": loras} if loras else {}
    return {**common, **own, "prompts": [prompt], "seed": seed, "num_images": 1}


def grid_metadata(
    common: Mapping[str, Any],
    loras: list[dict[str, Any]],
    prompts: list[str],
    negative_prompts: list[str] | None,
    seed: int,
    labels: Sequence[Mapping[str, str]] = (),
) -> dict[str, Any]:
    """Metadata of a grid of images.

    Args:
        common: returned by `common_metadata`.
        loras: `LatentDiffusion.loras` of the model.
        prompts: one for each row.
        negative_prompts: the same; None for that of the settings.
        seed: of the first image.
        labels: one for each row, as of `image_metadata`.
    """
    own = {"loras": loras} if loras else {}
    own |= {"labels": [dict(row) for row in labels]} if any(labels) else {}
    own |= {"negative_prompts": negative_prompts} if negative_prompts else {}
    return {**common, **own, "prompts": prompts, "seed": seed, "grid": True}


def read_generation_metadata(source: Path) -> dict[str, Any]:
    """Read the metadata of a generated PNG, and check it: anyone can write a PNG.

    Args:
        source: the PNG file.

    Returns:
        Metadata by key; the keys of `NEEDED` are present.

    Raises:
        UserError: no such file, a key is missing, or a value has the wrong type.
    """
    metadata = read_metadata(source)
    for key in NEEDED:
        if not isinstance(metadata, dict) or key not in metadata:
            raise UserError(f"{source}: its metadata has no {key}")
    _check_types(f"{source}: its metadata has", metadata, {**NEEDED, **OPTIONAL, **FIELDS})
    where, options = f"{source}: its metadata has sampler_options", metadata.get("sampler_options")
    for option, value in (options or {}).items():
        if option not in SAMPLER_OPTIONS:
            raise UserError(f"{where} {option}: {value!r:.80}, which no sampler takes")
    _check_types(where, options or {}, SAMPLER_OPTIONS)
    return metadata


def remembered_settings(metadata: dict[str, Any]) -> dict[str, Any]:
    """Generation settings in the metadata of a PNG; an earlier version may have written fewer.

    Args:
        metadata: returned by `read_generation_metadata`; empty for no PNG.
    """
    found = {name: metadata[name] for name in FIELDS if metadata.get(name) is not None}
    return {**LATER_DEFAULTS, **found} if metadata else {}


def remembered_labels(facts: ModelFacts, metadata: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Values of a model's conditions of words and numbers in the metadata of a PNG, row by row.

    Args:
        facts: of the model.
        metadata: returned by `read_generation_metadata`.

    Raises:
        UserError: the model has no such condition or value.
    """
    found = metadata.get("labels") or []
    rows = found if isinstance(found, list) else [found]
    return [facts.conditions.from_texts(row if isinstance(row, dict) else {}) for row in rows]


def _check_types(where: str, values: dict[str, Any], kinds: dict[str, type]) -> None:
    for key, kind in kinds.items():
        if values.get(key) is not None:
            check_type(f"{where} {key}", values[key], kind)


def picture_files(
    given: Mapping[str, str], source: Path | None, remembered: Mapping[str, Any]
) -> dict[str, Path]:
    """Files of picture conditions by name: those given, else those that a PNG names.

    Args:
        given: on the command line, by the names of the conditions.
        source: PNG to make again; None for none.
        remembered: its metadata.

    Raises:
        UserError: see `input_file`; or the metadata is malformed.
    """
    known = {}
    for name, trace in remembered.get("pictures", {}).items():
        if not isinstance(trace, dict) or not isinstance(trace.get("file"), str):
            raise UserError(f"{source}: its metadata has pictures: {trace!r:.80}")
        known |= {name: trace["file"], f"{name}_sha256": trace.get("sha256")}
    found = {}
    for name in {**remembered.get("pictures", {}), **given}:
        own = Path(given[name]) if name in given else None
        found[name] = input_file(name, own, source, known, f"--condition {name}=FILE")
    return found


def pictures_metadata(files: Mapping[str, Path]) -> dict[str, Any]:
    """Metadata of the files of picture conditions; empty without any.

    Args:
        files: returned by `picture_files`.
    """
    traces = {
        name: {"file": path.name, "sha256": file_digest(path)} for name, path in files.items()
    }
    return {"pictures": traces} if traces else {}


def regions_metadata(regions: Sequence[tuple[Path, str]]) -> dict[str, Any]:
    """Metadata of the parts of an image with prompts of their own; empty for none.

    Args:
        regions: mask and prompt of each.
    """
    found = [
        {"mask": mask.name, "mask_sha256": file_digest(mask), "prompt": prompt}
        for mask, prompt in regions
    ]
    return {"regions": found} if found else {}


def remembered_regions(source: Path | None, remembered: dict[str, Any]) -> list[tuple[Path, str]]:
    """Masks and prompts of the regions that a PNG was made with.

    Args:
        source: the PNG; None for none.
        remembered: its metadata.

    Raises:
        UserError: a mask is missing or is another one, or the metadata is malformed.
    """
    found = []
    for trace in remembered.get("regions") or []:
        whole = isinstance(trace, dict) and isinstance(trace.get("prompt"), str)
        if not whole or not isinstance(trace.get("mask"), str):
            raise UserError(f"{source}: its metadata has regions: {trace!r:.100}")
        found.append((input_file("mask", None, source, trace, "--region"), trace["prompt"]))
    return found


def input_file(
    name: str,
    given: Path | None,
    source: Path | None,
    remembered: Mapping[str, Any],
    option: str = "",
) -> Path | None:
    """File of the init image or of a mask: the one given, else the one that a PNG names.

    Args:
        name: "init_image" or "mask", or of a condition.
        given: on the command line; None if not given.
        source: PNG to make again; None for none.
        remembered: its metadata.
        option: that gives it, for messages; "" for that of its name.

    Returns:
        The file, or None where there is none.

    Raises:
        UserError: the file is missing, or is not the one that `source` was made from.
    """
    own, digest = remembered.get(name), remembered.get(f"{name}_sha256")
    if own is None:
        return given
    option = option or f"--{name.replace('_', '-')}"
    if given is None:
        own = Path(own).name  # a name, not a path: anyone can write a PNG
        given = beside(source, own)
        if given is None:
            raise UserError(
                f"{source}: was made from {own} (SHA-256 {str(digest)[:12]}), which is not "
                f"beside it; give it with {option}"
            )
    if given.is_file() and file_digest(given) != digest:
        raise UserError(
            f"{given}: is not the {own} that {source} was made from "
            f"(SHA-256 {str(digest)[:12]}); give that one with {option}"
        )
    return given


def beside(source: Path, name: str) -> Path | None:
    """File beside a picture, or else in the working directory; None where there is none.

    Args:
        source: the picture.
        name: of the file.
    """
    places = source.parent / name, Path(name)
    return next((path for path in places if path.is_file()), None)


def model_name(folder: ModelFolder) -> str:
    """Name by which `--model` finds a model again: that of a model that ships, the address and
    commit of one from the Hub, else the path.

    Args:
        folder: of the model.
    """
    if folder.path.parent in ready_models():
        return folder.path.name
    return address_of(folder.path) or str(folder.path)


def remembered_place(source: Path, name: str, option: str) -> str | Path:
    """Place of a model that a PNG names: of one from the Hub the copy on this machine.

    Anyone can write a PNG, so nothing is fetched because one says so.

    Args:
        source: the PNG.
        name: of the model, in its metadata.
        option: that names it, for messages.

    Raises:
        UserError: it is an address, of which there is no copy.
    """
    if not is_address(name):
        return name
    copy = copy_of(name)
    if copy is None:
        raise UserError(
            f"{source}: was made with {parse_address(name).short}, which was not fetched yet; "
            f"fetch it with {option} {name}"
        )
    return copy


def fetched_copy(name: str) -> Path | None:
    """Copy on this machine of a file or a folder of the Hub that a PNG names; None without one.

    Args:
        name: in its metadata, an address or another name.
    """
    return copy_of(name) if is_address(name) else None


def comparison(source: Path, original: np.ndarray, pixels: np.ndarray) -> str:
    """Message that compares a picture that was made again with the original.

    Args:
        source: file of the original.
        original, pixels: of the original and of the new picture, (H, W, C) each.
    """
    if original.shape != pixels.shape:
        return f"another size than {source}"
    largest = np.abs(original.astype(np.float64) - pixels).max()
    if largest == 0:
        return f"every pixel as in {source}"
    top = f" of {np.iinfo(pixels.dtype).max}" if pixels.dtype.kind == "u" else ""
    return f"differs from {source} by at most {largest:g}{top}"
