"""What `info` says: of a picture, a model, a run, or what training reads."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from latentddpm.pipeline.model_folder import LORA, ModelFolder, find_model, read_model_folder
from latentddpm.training.run.curves import LOG, VALIDATION, Curve, read_curves
from latentddpm.utils.pixels import read_metadata


def describe(path: str, quiet: bool = False) -> str:
    """A readable account of a PNG made here, a run, a model, latents, a catalog, or shards.

    Args:
        quiet: show no bar while shards are read.

    Raises:
        UserError: it is none of these, or damaged.
    """
    from latentddpm import info_data as data

    place = Path(path)
    if place.suffix.lower() == ".png" and "{" not in path:
        return json.dumps(read_metadata(place), indent=2, ensure_ascii=False)
    if (place / LOG).is_file():
        lines = _describe_run(place)
    elif data.is_latents_cache(place):
        lines = data.describe_latents(place)
    elif data.is_catalog(place):
        lines = data.describe_catalog(place)
    elif shards := data.find_shards(path):
        lines = data.describe_shards(shards, quiet)
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
    """The last losses by quarters of the timesteps, where they were logged."""
    found = [curves.get(f"{kind}loss_q{q}") for q in (1, 2, 3, 4)]
    if not any(found):
        return ""
    values = (f"{curve.values[-1]:.3g}" if curve else "?" for curve in found)
    return f" (from little to much noise {', '.join(values)})"
