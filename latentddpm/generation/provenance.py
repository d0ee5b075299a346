"""What a PNG made here carries of how it was made, read back to make it again.

Everything that it follows from is in its metadata. Of a picture it started from, of its mask and
of LoRA files it is the name and the SHA-256: these have to be there again, and to be the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from latentddpm.errors import UserError
from latentddpm.pipeline.init_image import InitImage
from latentddpm.pipeline.model_folder import ModelFolder, ready_models
from latentddpm.utils.files import file_digest
from latentddpm.utils.pixels import read_metadata

NUMBER = (int, float)
# Of the metadata that `--from` needs, and that it may find.
MAKING = {"prompts": list, "seed": int, "model_digest": str}
OTHER_MAKING = {
    "model": str,
    "negative_prompt": str,
    "num_steps": int,
    "sampler": str,
    "timestep_spacing": str,
    "sampler_options": dict,
    "guidance_scale": NUMBER,
    "guidance_rescale": NUMBER,
    "height": int,
    "width": int,
    "num_images": int,
    "init_image": str,
    "init_image_sha256": str,
    "strength": NUMBER,
    "mask": str,
    "mask_sha256": str,
    "loras": list,
}
SAMPLER_OPTIONS = {
    "eta": NUMBER,
    "sigma_spacing": str,
    "steps_offset": int,
    "set_alpha_to_one": bool,
}


def read_generation_metadata(source: Path) -> dict[str, Any]:
    """The metadata of a PNG that can be made again: anyone can write one.

    Raises:
        UserError: no such file, or its metadata cannot be what was written here.
    """
    metadata = read_metadata(source)
    for key in MAKING:
        if not isinstance(metadata, dict) or key not in metadata:
            raise UserError(f"{source}: its metadata has no {key}")
    for key, kind in {**MAKING, **OTHER_MAKING}.items():
        value = metadata.get(key)
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            raise UserError(f"{source}: its metadata has {key}: {value!r}")
    for key, value in (metadata.get("sampler_options") or {}).items():
        kind = SAMPLER_OPTIONS.get(key)
        if (
            kind is None
            or not isinstance(value, kind)
            or (isinstance(value, bool) != (kind is bool))
        ):
            raise UserError(f"{source}: its metadata has sampler_options {key}: {value!r}")
    return metadata


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
    """What a PNG says about the picture it started from, and its mask."""
    source_metadata = {}
    for name, path in files.items():
        if path is not None:
            source_metadata[name] = path.name
            source_metadata[f"{name}_sha256"] = file_digest(path)
    return source_metadata if start is None else {**source_metadata, "strength": start.strength}


def model_name(folder: ModelFolder) -> str:
    """How to find the model again: a ready model by its name, another by its path."""
    if folder.path.parent in ready_models():
        return folder.path.name
    return str(folder.path)


def comparison(source: Path, original: np.ndarray, pixels: np.ndarray) -> str:
    """How near a picture that was made again, uint8 (H, W, 3), comes to the one before."""
    if original.shape != pixels.shape:
        return f"another size than {source}"
    largest = int(np.abs(original.astype(int) - pixels).max())
    if largest == 0:
        return f"every pixel as in {source}"
    return f"differs from {source} by at most {largest} of 255"
