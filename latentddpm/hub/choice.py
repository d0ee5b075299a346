"""Choice of the files of a model's repository that are read; nothing else is fetched.

    pipeline.json    a model folder: its manifest, archives, graphs, tokenizer, LoRAs beside it
    control.json     a ControlNet
    a LoRA's name    that file
    model_index.json, config.json    a folder of diffusers or transformers, one variant of it
    one .safetensors that file

Pickles and code are never fetched. Where a repository holds nothing else, or an address names one,
it is refused by name.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterable

from latentddpm.errors import UserError, nearest

PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl", ".pickle", ".joblib", ".dill")
"""Suffixes of pickles."""
CODE = (".py", ".ipynb", ".sh", ".so", ".dll", ".exe", ".pyc", ".js", ".jar")
"""Suffixes of code."""
READ = (".safetensors", ".keras", ".json", ".onnx", ".txt", ".h5")
"""Suffixes of files that an address may name."""

WEIGHTS = ".safetensors"
LORAS = ("lora.safetensors", "adapter_model.safetensors", "pytorch_lora_weights.safetensors")
MODEL_FILES = r"[^/]+\.(json|keras|safetensors)|graphs/[^/]+\.onnx|tokenizer/[^/]+\.(json|txt)"
CONTROL_FILES = r"[^/]+\.(json|keras)"
PARTS = (
    "vae",
    "unet",
    "text_encoder",
    "tokenizer",
    "scheduler",
    "controlnet",
    "low_res_scheduler",
)
"""Folders of a pipeline of diffusers that are read."""
STEMS = ("diffusion_pytorch_model", "model")
SAFE = "take a repository with .safetensors, or convert it where you trust it"


def choose_files(names: Iterable[str], path: str, where: str, variant: str = "") -> list[str]:
    """Files of a repository of a model that are read.

    Args:
        names: of all its files.
        path: of a file or a folder; "" for all.
        where: the address, for messages.
        variant: of the weights, such as "fp16"; "" for the plain ones.

    Raises:
        UserError: there is none, or a pickle or code in its place; the message names it.
    """
    names = sorted(names)
    if path in names:
        check_file(path, where)
        return [path]
    folder = f"{path}/" if path else ""
    inside = [name[len(folder) :] for name in names if name.startswith(folder)]
    if not inside:
        check_file(path, where, exists=False)
        known = {name for one in names for name in (one, posixpath.dirname(one)) if name}
        raise UserError(f"{where}: no {path!r} in it{nearest(path, known)}")
    return [folder + name for name in _of_folder(inside, where, variant)]


def check_file(name: str, where: str, exists: bool = True) -> None:
    """Refuse a file that is never fetched.

    Args:
        name: of the file.
        where: the address, for messages.
        exists: False where it is not known whether there is such a file.

    Raises:
        UserError: it is a pickle, code, or of a kind that is not read.
    """
    suffix = os.path.splitext(name)[1].lower()
    if suffix in PICKLES:
        raise UserError(
            f"{where}: {name} is a pickle, which can run code and is never fetched; {SAFE}"
        )
    if suffix in CODE:
        raise UserError(f"{where}: {name} is code, which is never fetched")
    if exists and suffix not in READ:
        raise UserError(f"{where}: {name} is not read; expected a file {', '.join(READ)}")


def _of_folder(names: list[str], where: str, variant: str) -> list[str]:
    """Files that are read of a folder, whose `names` are relative to it."""
    for below in ("", "model/", "control/"):
        for manifest, pattern in (("pipeline", MODEL_FILES), ("control", CONTROL_FILES)):
            if f"{below}{manifest}.json" in names:
                return [one for one in names if re.fullmatch(f"{below}(?:{pattern})", one)]
    loras = [name for name in LORAS if name in names]
    if loras:
        configs = ("adapter_config.json",)
        return [loras[0], *(name for name in configs if name in names)]
    if found := _of_diffusers(names, where, variant):
        return found
    weights = [name for name in names if name.endswith(WEIGHTS) and "/" not in name]
    if len(weights) == 1:
        return weights
    if weights:
        raise UserError(
            f"{where}: holds several files of weights ({', '.join(weights[:5])}); add one of "
            "them to the address"
        )
    raise UserError(f"{where}: {_nothing(names)}")


def _of_diffusers(names: list[str], where: str, variant: str) -> list[str]:
    """Files that are read of a folder of diffusers or transformers; empty for another folder."""
    folders = [part for part in PARTS if any(name.startswith(f"{part}/") for name in names)]
    if "model_index.json" not in names and "config.json" not in names and not folders:
        return []
    chosen = [name for name in names if "/" not in name and name.endswith((".json", ".txt"))]
    parts = [f"{part}/" for part in folders] if folders else [""]
    for part in parts:
        inside = [name[len(part) :] for name in names if name.startswith(part)]
        if part:
            texts = (name for name in inside if re.fullmatch(r"[^/]+\.(json|txt)", name))
            chosen += [part + name for name in texts if not name.endswith(".index.json")]
        weights = _variant(inside, variant)
        pickle = next((one for one in inside if one.endswith((".bin", ".ckpt"))), None)
        if not weights and pickle is not None and "/" not in pickle:
            check_file(part + pickle, where)
        chosen += [part + name for name in weights]
    weights = [name for name in chosen if name.endswith(WEIGHTS)]
    if not weights and "model_index.json" not in names:
        return []
    return list(dict.fromkeys(chosen))


def _variant(names: list[str], variant: str) -> list[str]:
    """Weight files of one variant in a folder of one network, with the index of their shards."""
    found: dict[str, list[str]] = {}
    for name in names:
        match = re.fullmatch(
            rf"(?:{'|'.join(STEMS)})(?:\.(?P<before>[A-Za-z]\w*))?(?:-\d+-of-\d+)?"
            r"\.safetensors(?:\.index(?:\.(?P<after>\w+))?\.json)?",
            name,
        )
        if match:
            found.setdefault(match["before"] or match["after"] or "", []).append(name)
    if variant in found or not found:
        return found.get(variant, [])
    return found.get("") or found[min(found)]


def _nothing(names: list[str]) -> str:
    """Message on a folder with nothing that is read."""
    for suffixes, what in ((PICKLES, "a pickle, which can run code"), (CODE, "code")):
        for name in names:
            if name.lower().endswith(suffixes):
                return f"nothing in it that is read; {name} is {what} and is never fetched; {SAFE}"
    shown = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
    return f"nothing in it that is read (it holds {shown})"
