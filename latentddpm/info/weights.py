"""Description of weights: model folders, `.keras` archives, and files and folders of others."""

from __future__ import annotations

import json
import math
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from latentddpm.conditions.conditions import Conditions
from latentddpm.errors import UserError
from latentddpm.graphs.entries import PARTS
from latentddpm.hub.address import shown
from latentddpm.interop.lora_file import style_of
from latentddpm.pipeline.control.folder import read_control_folder
from latentddpm.pipeline.model_folder import read_model_folder
from latentddpm.pipeline.recognise import export_format, recognise
from latentddpm.pipeline.weight_files import LORA, STEMS, layout_of, read_header, variants
from latentddpm.utils.files import size_text

NETWORKS = {
    "UNet": ("model.diffusion_model.", "input_blocks.", "middle_block.", "output_blocks."),
    "averages": ("model_ema.", "ema.", "ema_model."),
    "VAE": ("first_stage_model.", "encoder.", "decoder."),
    "text": ("cond_stage_model.", "conditioner.", "text_model.", "lora_te", "text_encoder."),
}
"""Network → beginnings of the names of its tensors."""

TOLD = (
    *("base_model", "rank", "alpha", "num_steps", "ss_sd_model_name", "ss_base_model_version"),
    *("ss_network_dim", "ss_network_alpha", "ss_output_name", "modelspec.title"),
    "modelspec.architecture",
)
"""Keys of a header that say where a file is from."""


def describe_model(path: Path) -> Iterator[str]:
    """Describe a model folder: its parts, schedule and defaults.

    Args:
        path: of the folder.

    Yields:
        Lines of text.

    Raises:
        UserError: see `read_model_folder`; or it is an export.
    """
    if (kind := export_format(path)) is not None:
        yield f"export     {path}, in the format {kind}"
        yield from _use(path)
        return
    folder = read_model_folder(path)
    yield f"model      {shown(folder.path)} ({folder.digest})"
    if folder.image_size:
        name = "image size" if len(folder.image_size) > 1 else "length"
        yield f"{name:<10} {'×'.join(map(str, folder.image_size))}"
    if folder.first_stage == "none":
        yield "no vae     the UNet denoises the pixels themselves"
    if not folder.pixels.is_default:
        yield f"pixels     {folder.pixels}, written as {folder.pixels.suffix}"
    for name, part in folder.parts.items():
        yield f"{name:<10} {part['bytes'] / 1e6:.1f} MB, digest {part['digest'][:12]}"
    if graphs := [name for name in PARTS if folder.graph(name)]:
        yield f"graphs     {', '.join(graphs)}"
    yield from _describe_conditions(folder.conditions)
    for key, value in (folder.schedule or {}).items():
        yield f"schedule   {key}: {value}"
    for key, value in folder.defaults.items():
        yield f"default    {key}: {value}"
    if "unet" not in folder.parts:
        yield "use        train-diffusion --vae; export"
    elif "vae" not in folder.parts and folder.first_stage != "none":
        yield "use        convert --to diffusers"


def describe_control(path: Path) -> Iterator[str]:
    """Describe the folder of a ControlNet: its model, its pictures and its sizes.

    Args:
        path: of the folder.

    Yields:
        Lines of text.

    Raises:
        UserError: see `read_control_folder`.
    """
    folder = read_control_folder(path)
    yield f"ControlNet {folder.path}, {size_text(folder.entry['bytes'])}"
    yield f"digest     {folder.entry['digest'][:12]}"
    if folder.base_digest:
        yield f"model      {folder.base_model} ({folder.base_digest})"
    if folder.condition is not None:
        yield f"pictures   {folder.condition.get('kind', 'picture')}"
    arguments = folder.arguments()
    for name in ("channels", "channel_multipliers", "context_dim", "hint_channels"):
        yield f"argument   {name}: {arguments.get(name)!r:.100}"
    yield from _use(path)


def _describe_conditions(conditions: Conditions) -> Iterator[str]:
    for one in conditions:
        always = "" if one.null else "; always to be given"
        yield f"condition  {one.name} ({one.kind}): {one.describe()}{always}"


def describe_archive(path: Path) -> Iterator[str]:
    """Describe a `.keras` archive: its class and arguments.

    Args:
        path: of the file.

    Yields:
        Lines of text.

    Raises:
        UserError: it is no archive of Keras.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            config = json.loads(archive.read("config.json"))
            kind = config.get("registered_name") or config["class_name"]
            arguments = config.get("config") or {}
    except (zipfile.BadZipFile, ValueError, KeyError, OSError, AttributeError, TypeError) as error:
        raise UserError(f"{path}: not a .keras archive ({error})") from None
    yield f"archive    {path}, {size_text(path.stat().st_size)}, of one network"
    yield f"class      {kind}"
    for name, value in arguments.items():
        yield f"argument   {name}: {value!r:.100}"
    yield from _use(path)


def describe_weights(path: Path) -> Iterator[str]:
    """Describe a safetensors file: a LoRA, a checkpoint, or a part of one.

    Args:
        path: of the file.

    Yields:
        Lines of text.

    Raises:
        UserError: it is cut off, or something else under this name.
    """
    header = read_header(path)
    metadata = header.pop("__metadata__", {})
    layout = layout_of(header)
    what = layout.what if layout is not None else "of a kind that is not known"
    types = Counter(one["dtype"] for one in header.values())
    yield f"weights    {path}: {what}"
    kinds = ", ".join(f"{kind} ({count})" for kind, count in types.most_common())
    yield f"tensors    {len(header)}, {size_text(path.stat().st_size)}, {kinds or 'none'}"
    if layout is not None and layout.command == LORA:
        yield from _describe_lora(header)
    else:
        for network, prefixes in NETWORKS.items():
            shapes = [one["shape"] for key, one in header.items() if key.startswith(prefixes)]
            if shapes:
                yield f"{network:<10} {sum(map(math.prod, shapes)):,} numbers"
    for key in TOLD:
        if key in metadata:
            yield f"header     {key}: {metadata[key]:.80}"
    yield from _use(path)


def _describe_lora(header: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    ranks = Counter(
        one["shape"][0]
        for key, one in header.items()
        if key.rpartition(".")[0].endswith(("lora_down", "lora_A", "lora.down", ".down"))
    )
    of_text = sum("text" in key or key.startswith("lora_te") for key in header)
    shown = ", ".join(f"{rank} ({count})" for rank, count in ranks.most_common())
    yield f"rank       {shown or 'not known'} (layers with it)"
    yield f"changes    the UNet{' and the text encoder' if of_text else ''}"
    yield f"names      of {style_of(header)}"


def is_diffusers(path: Path) -> bool:
    """True for a folder of diffusers that `convert` reads.

    Args:
        path: of the folder.
    """
    thing = recognise(path)
    return thing is not None and thing.convertible


def describe_diffusers(path: Path) -> Iterator[str]:
    """Describe a diffusers folder: its parts and their variants.

    Args:
        path: of the folder.

    Yields:
        Lines of text.
    """
    yield f"checkpoint {path}"
    for part, stem in STEMS.items():
        if (path / part).is_dir():
            found = variants(path / part, stem)
            names = ", ".join(str(name or "plain") for name in found)
            yield f"{part:<10} {names or 'no .safetensors files'}"
    yield from _use(path)


def _use(path: Path) -> Iterator[str]:
    thing = recognise(path)
    if thing is not None:
        yield f"kind       {thing.what}"
        yield f"use        {thing.advice}"
