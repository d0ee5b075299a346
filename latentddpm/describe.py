"""What `info` says about a picture, a model folder or a run."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from latentddpm.files import read_json_lines
from latentddpm.modelfolder import LORA, ModelFolder, find_model, read_model_folder
from latentddpm.pictures import read_metadata


def describe(path: Path) -> str:
    """A readable account of a PNG made here, a model folder or a run."""
    if path.is_file() or path.suffix.lower() == ".png":
        return json.dumps(read_metadata(path), indent=2, ensure_ascii=False)
    if (path / "log.jsonl").is_file():
        return "\n".join(_describe_run(path))
    return "\n".join(_describe_model(read_model_folder(find_model(path))))


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
    lines = read_json_lines(path / "log.jsonl")
    trained = [line for line in lines if line.get("loss") is not None]
    checked = [line for line in lines if "validation_loss" in line]
    yield f"run        {path}"
    if trained:
        last = trained[-1]
        yield f"step       {last['step']}, loss {last['loss']:.5g}"
        yield f"speed      {last['examples_per_second']:.4g} examples/s"
    for line in checked[-5:]:
        values = {k: v for k, v in line.items() if k.startswith("validation_")}
        yield f"validation step {line['step']}: " + ", ".join(
            f"{key.removeprefix('validation_')} {value:.5g}"
            for key, value in values.items()
            if value is not None
        )
    finished = (path / "model").is_dir() or (path / LORA).is_file()
    yield f"model      {'finished' if finished else 'not finished'}"
