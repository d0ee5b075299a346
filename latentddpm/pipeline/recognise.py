"""Recognition of a path: what it is and which command takes it, for messages on wrong paths.

    recognise("sd15.safetensors") ──► a Stable Diffusion 1.x checkpoint
                                      latentddpm convert --from sd15.safetensors --out runs/sd15

A folder is told by the files in it, a file by its suffix and its first bytes. Neither weights nor
pictures are read.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from latentddpm.data.sources.kinds import (
    ARRAYS_READ,
    PICTURES_READ,
    SHARD_SUFFIXES,
    TABLES_READ,
    is_image,
    is_shard,
)
from latentddpm.pipeline.weight_files import (
    DOWNLOAD,
    LORA,
    NEVER,
    OTHER_PIPELINES,
    PIPELINES,
    READ,
    SUFFIX,
    TRUSTED,
    UNFINISHED,
    content_of,
    convert_line,
    is_pickle,
    layout_of,
    pickled_weights,
    read_header,
)

MANIFEST = "pipeline.json"
CONTROL_MANIFEST = "control.json"
PLAN = "plan.yaml"
"""Plan of a whole run, of the command `train`."""
ADAPTERS = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")
"""LoRA in the folder that PEFT or diffusers saved."""

NETWORKS = ("AutoencoderKL", "UNet2DModel", "UNet2DConditionModel", "ControlNetModel")
"""Classes of diffusers in a `config.json` that `convert` reads."""


class Thing(NamedTuple):
    """Thing that a path is.

    Attributes:
        what: with its article, such as "a LoRA".
        advice: the command that takes it, or what to do.
        convertible: True for what `convert --from` takes.
    """

    what: str
    advice: str
    convertible: bool = False


def recognise(path: str | Path) -> Thing | None:
    """Recognise what a path is, and which command takes it.

    Args:
        path: of a file or a folder that exists.

    Returns:
        None where it is nothing that is known.

    Raises:
        UserError: it is a file of weights that is damaged or was not fetched; the message says so.
    """
    path = Path(path)
    for look in _FOLDERS if path.is_dir() else _FILES:
        if (found := look(path)) is not None:
            return found
    return None


def _converted(what: str, path: Path) -> Thing:
    if path.is_dir() and (pickle := pickled_weights(path)) is not None:
        return Thing(f"{what} with a pickle, {pickle.name}", f"it {NEVER}; {TRUSTED}")
    return Thing(what, f"make a model folder of it with: {convert_line(path)}", True)


def _json(path: Path) -> dict[str, Any]:
    """JSON object in a file; empty for any other content."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


# --- Folders -------------------------------------------------------------------------------


def export_format(path: Path) -> str | None:
    """Format of an exported model; None for another folder.

    Args:
        path: of the folder.
    """
    kind = _json(path / MANIFEST).get("format")
    if isinstance(kind, str):
        return kind
    return "saved-model" if (path / "saved_model.pb").is_file() else None


def _export(path: Path) -> Thing | None:
    kind = export_format(path)
    return kind and Thing(f"an export in the format {kind}", "name the model it was made from")


def _model(path: Path) -> Thing | None:
    if not (path / MANIFEST).is_file():
        return None
    return Thing("a model folder", f"use it with --model {shlex.quote(str(path))}")


def is_control(path: Path) -> bool:
    """True for the folder of a ControlNet.

    Args:
        path: of the folder.
    """
    return (path / CONTROL_MANIFEST).is_file()


def _control(path: Path) -> Thing | None:
    if not is_control(path):
        return None
    where = shlex.quote(str(path))
    return Thing(
        "a ControlNet", f"name the model it belongs to, --control {where} and --control-image FILE"
    )


def is_run(path: Path) -> bool:
    """True for the folder of a run, also of one that was stopped before its first step.

    Args:
        path: of the folder.
    """
    if is_latents_cache(path):
        return False
    if any((path / name).exists() for name in ("log.jsonl", "config.yaml", "checkpoints")):
        return not (path / MANIFEST).is_file()
    return (path / ".lock").exists() and any(
        (path / name).is_dir() for name in ("latents", "catalog")
    )


def is_whole_run(path: Path) -> bool:
    """True for the folder of a whole run, of the command `train`.

    Args:
        path: of the folder.
    """
    return (path / PLAN).is_file()


def _whole_run(path: Path) -> Thing | None:
    if not is_whole_run(path):
        return None
    where = shlex.quote(str(path))
    if (path / "model").is_dir():
        return Thing("a finished run of train", f"use it with --model {where}")
    return Thing(
        "a run of train that is not finished", f"latentddpm train --out {where} --resume goes on"
    )


def _run(path: Path) -> Thing | None:
    if not is_run(path):
        return None
    if (path / "lora.safetensors").is_file():
        where = shlex.quote(str(path))
        return Thing(
            "a run that trained a LoRA", f"name the model it belongs to, and --lora {where}"
        )
    if is_control(path / "control"):
        where = shlex.quote(str(path))
        return Thing(
            "a run that trained a ControlNet",
            f"name the model it belongs to, --control {where} and --control-image FILE",
        )
    if (path / "model").is_dir():
        return Thing("a finished run", f"use it with --model {shlex.quote(str(path))}")
    return Thing(
        "a run that is not finished",
        "finish it with the command that began it and --resume; info shows how far it is",
    )


def is_checkpoint(path: Path) -> bool:
    """True for the folder of a checkpoint of a training.

    Args:
        path: of the folder.
    """
    return all((path / name).is_file() for name in ("manifest.json", "state.safetensors"))


def _checkpoint(path: Path) -> Thing | None:
    if not is_checkpoint(path):
        return None
    return Thing(
        "a checkpoint of a training",
        "its run goes on from it with --resume; once the run is finished, "
        f"{convert_line(path)} makes a model of it",
    )


def is_latents_cache(path: Path) -> bool:
    """True for the folder of a latents cache, also of one that is not finished.

    Args:
        path: of the folder.
    """
    return any((path / name).is_file() for name in ("index.json", "partial.json"))


def _cache(path: Path) -> Thing | None:
    if is_latents_cache(path):
        return Thing("a latents cache", "train-diffusion takes it with --latents")
    if (path / "catalog.json").is_file() or any(path.glob("version-??????")):
        return Thing("a catalog of images", "commands that read data take it with --catalog")
    return None


def _diffusers(path: Path) -> Thing | None:
    kind = _json(path / "model_index.json").get("_class_name")
    if kind is not None and kind not in PIPELINES:
        reason = OTHER_PIPELINES.get(str(kind))
        advice = "it is not supported" + (f": {reason}" if reason else "")
        return Thing(f"a diffusers folder ({kind!s:.60})", advice)
    if kind is not None or any(
        (path / part / "config.json").is_file() for part in ("vae", "unet")
    ):
        return _converted(f"a diffusers folder ({kind or 'without model_index.json'})", path)
    inner = path / "text_encoder"
    config = _json((inner if inner.is_dir() else path) / "config.json")
    kind = config.get("_class_name")
    if kind in NETWORKS:
        return _converted(f"one network of a diffusers folder ({kind})", path)
    if kind is not None:
        return Thing(f"a {kind!s:.60} of diffusers", "it is not supported")
    if config.get("model_type") in ("clip", "clip_text_model"):
        where = f"--set text.source=clip --set text.path={shlex.quote(str(path))}"
        return Thing("a CLIP folder of Hugging Face", f"train-diffusion uses it with {where}")
    if config:
        kind = config.get("model_type") or ", ".join(map(str, config.get("architectures") or ()))
        return Thing(
            f"a folder of transformers ({kind or 'a config.json'})", "no command takes it"
        )
    return None


def _adapter(path: Path) -> Thing | None:
    for name in ADAPTERS:
        if (path / name).is_file():
            return Thing(
                "a folder with a LoRA", f"use it with --lora {shlex.quote(str(path / name))}"
            )
    return None


def _hub(path: Path) -> Thing | None:
    """Cache of the Hugging Face Hub: the files are links in snapshots/COMMIT."""
    found = sorted(path.glob("snapshots/*/"))
    if not found:
        return None
    inner = recognise(found[-1]) or Thing("what is not known", f"look into {found[-1]}")
    return Thing(f"a cache of the Hugging Face Hub with {inner.what}", inner.advice)


def holds_pictures(path: Path) -> bool:
    """True for a folder with a table of captions or a picture, at most three folders deep.

    Args:
        path: of the folder.
    """
    if any((path / name).is_file() for name in TABLES_READ):
        return True
    found = (one for depth in ("*", "*/*", "*/*/*") for one in path.glob(depth))
    return any(is_image(one.name) for one in found)


def _data(path: Path) -> Thing | None:
    what = "pictures" if holds_pictures(path) else ""
    if any(is_shard(one.name) for one in path.iterdir()):
        what = "shards"
    return (
        Thing(f"a folder of {what}", f"name it with --data {shlex.quote(str(path))}")
        if what
        else None
    )


def _several(path: Path) -> Thing | None:
    """Folder of models or runs, or with one file of weights."""
    for kind, look in (("models", _model), ("runs", _run)):
        names = sorted(one.name for one in path.iterdir() if one.is_dir() and look(one))
        if names:
            shown = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
            return Thing(f"a folder of {kind}", f"name one of them: {shown}")
    weights = sorted(path.glob(f"*{SUFFIX}"))
    if len(weights) == 1:
        inner = recognise(weights[0])
        return inner and Thing(f"a folder with {inner.what} ({weights[0].name})", inner.advice)
    return None


_FOLDERS: tuple[Callable[[Path], Thing | None], ...] = (
    *(_export, _model, _control, _whole_run, _run, _checkpoint, _cache, _diffusers, _adapter),
    *(_hub, _several, _data),
)


# --- Files ---------------------------------------------------------------------------------


def _unfinished(path: Path) -> Thing | None:
    if path.suffix in UNFINISHED:
        return Thing("a download that is not finished", DOWNLOAD)
    return None


def _weights(path: Path) -> Thing | None:
    if path.suffix != SUFFIX:
        return None
    layout = layout_of(read_header(path))
    if layout is None:
        return Thing("a safetensors file of a kind that is not known", "no command takes it")
    if layout.command == READ:
        return _converted(layout.what, path)
    if layout.command == LORA:
        where = shlex.quote(str(path))
        return Thing(
            layout.what,
            f"use it with --model MODEL --lora {where}, or write it into a model with: "
            f"latentddpm merge --model MODEL --lora {where} --out OUT",
        )
    return Thing(layout.what, layout.advice)


def _pickle(path: Path) -> Thing | None:
    if not is_pickle(path):
        return None
    return Thing("a pickle", f"it {NEVER}; {TRUSTED}")


def _archive(path: Path) -> Thing | None:
    if path.suffix != ".keras":
        return None
    beside = (path.parent / MANIFEST).is_file()
    advice = f"name its folder, {path.parent}" if beside else f"name a folder with its {MANIFEST}"
    return Thing("a .keras archive, one network", advice)


NO_MODEL = "name the model that it was made from"
SUFFIXES = {
    ".gguf": ("GGUF, quantised weights, which are not read", "take its .safetensors version"),
    ".onnx": ("a network for ONNX", NO_MODEL),
    ".tflite": ("a network for LiteRT", NO_MODEL),
    ".h5": ("weights in HDF5", "--perceptual and --extractor of evaluate take those of VGG16"),
    ".yaml": ("a configuration", "train-vae and train-diffusion take it with --config"),
    ".yml": ("a configuration", "train-vae and train-diffusion take it with --config"),
    ".jsonl": ("a table of captions, or a log", "name its folder"),
    ".csv": ("a table of captions", "name its folder with --data"),
    ".txt": ("a caption, or other text", "name its folder with --data"),
    **dict.fromkeys(ARRAYS_READ, ("a NumPy array", "name its folder")),
    **dict.fromkeys(SHARD_SUFFIXES, ("a shard of pictures", "name it with --data")),
    **dict.fromkeys(PICTURES_READ, ("a picture", "generate takes it with --init-image")),
}
"""Suffix of a file → what it is, and what takes it."""


def _by_suffix(path: Path) -> Thing | None:
    found = SUFFIXES.get(path.suffix.lower())
    return found and Thing(*found)


def _by_content(path: Path) -> Thing | None:
    found = content_of(path)
    return found and Thing(*found)


_FILES: tuple[Callable[[Path], Thing | None], ...] = (
    *(_unfinished, _weights, _pickle, _archive, _by_suffix),
    _by_content,
)
