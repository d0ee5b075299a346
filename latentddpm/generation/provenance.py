"""Metadata of a PNG made here: everything that it follows from, read back to make it again.

Its settings are exactly the fields of `GenerationSettings`. Of a picture it started from, of its
mask and of LoRA files it is the name and the SHA-256: these have to be there again, and to be the
same.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from latentddpm.choices import SAMPLER_OPTIONS
from latentddpm.errors import UserError, check_type
from latentddpm.pipeline.init_image import InitImage
from latentddpm.pipeline.model_folder import ModelFolder, ready_models
from latentddpm.pipeline.settings import FIELDS
from latentddpm.utils.files import file_digest
from latentddpm.utils.pixels import read_metadata

# Of the metadata beside the settings: what `--from` needs, and what it may find.
NEEDED = {"prompts": list, "seed": int, "model_digest": str}
OPTIONAL = {
    "model": str,
    "num_images": int,
    "init_image": str,
    "init_image_sha256": str,
    "strength": float,
    "mask": str,
    "mask_sha256": str,
    "loras": list,
}


def read_generation_metadata(source: Path) -> dict[str, Any]:
    """The metadata of a PNG that can be made again: anyone can write one.

    Raises:
        UserError: no such file, or its metadata cannot be what was written here.
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
    """The settings that a PNG was made with; an earlier version may have known fewer of them."""
    return {name: metadata[name] for name in FIELDS if metadata.get(name) is not None}


def _check_types(where: str, values: dict[str, Any], kinds: dict[str, type]) -> None:
    for key, kind in kinds.items():
        if values.get(key) is not None:
            check_type(f"{where} {key}", values[key], kind)


def input_file(
    name: str, given: Path | None, source: Path | None, remembered: dict[str, Any]
) -> Path | None:
    """The picture to start from, or its mask: the one given, or the one `source` remembers.

    Args:
        name: "init_image" or "mask".

    Raises:
        UserError: it is gone, or is not the one that `source` was made from.
    """
    own, digest = remembered.get(name), remembered.get(f"{name}_sha256")
    if own is None:
        return given
    option = f"--{name.replace('_', '-')}"
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
    """A file of that name beside a picture, or in the working folder."""
    places = source.parent / name, Path(name)
    return next((path for path in places if path.is_file()), None)


def source_metadata(files: dict[str, Path | None], start: InitImage | None) -> dict[str, Any]:
    """Metadata about the picture that a PNG started from, and its mask."""
    source_metadata = {}
    for name, path in files.items():
        if path is not None:
            source_metadata[name] = path.name
            source_metadata[f"{name}_sha256"] = file_digest(path)
    return source_metadata if start is None else {**source_metadata, "strength": start.strength}


def model_name(folder: ModelFolder) -> str:
    """Name by which a model is found again: a ready model by its name, another by its path."""
    if folder.path.parent in ready_models():
        return folder.path.name
    return str(folder.path)


def comparison(source: Path, original: np.ndarray, pixels: np.ndarray) -> str:
    """Line that says how near a picture made again, uint8 (H, W, 3), comes to the first."""
    if original.shape != pixels.shape:
        return f"another size than {source}"
    largest = int(np.abs(original.astype(int) - pixels).max())
    if largest == 0:
        return f"every pixel as in {source}"
    return f"differs from {source} by at most {largest} of 255"
