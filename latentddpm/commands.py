"""What `generate` and `info` do around the one call: options, files, metadata."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import latentddpm
from latentddpm.errors import UserError
from latentddpm.files import read_json_lines
from latentddpm.modelfolder import ModelFolder, find_model, read_model_folder, ready_models
from latentddpm.pictures import grid as make_grid
from latentddpm.pictures import read_metadata, save_png
from latentddpm.startup import import_keras
from latentddpm.timing import collect, timed

DEFAULT_MODEL = "emoji-64"
# Of the metadata that `--from` needs, and that it may find.
MAKING = {"prompts": list, "seed": int, "model_digest": str}
OTHER_MAKING = {
    "model": str,
    "negative_prompt": str,
    "num_steps": int,
    "sampler": str,
    "timestep_spacing": str,
    "guidance_scale": (int, float),
    "height": int,
    "width": int,
    "num_images": int,
}


def generate_images(
    prompts: tuple[str, ...],
    model: Path | None,
    source: Path | None,
    out: Path | None,
    grid: bool,
    batch_size: int,
    quiet: bool,
    timing: bool,
    steps: int | None,
    **options: Any,
) -> list[Path]:
    """Make images and write them as PNG with their making inside; returns the files.

    Args:
        source: a PNG made here; what is not given otherwise comes from its metadata.
        out: a `.png` file for one image or a grid, else a folder.
        options: of `LatentDiffusion.generate`, None where not given.
    """
    options["num_steps"] = steps
    remembered, original = {}, None
    if source:
        remembered = read_metadata(source)
        _check_metadata(source, remembered)
        with Image.open(source) as image:
            original = np.asarray(image.convert("RGB"))  # `out` may be the same file
        options = {k: remembered.get(k) if v is None else v for k, v in options.items()}
        prompts = prompts or tuple(remembered.get("prompts", ()))
        grid = grid or remembered.get("grid", False)
    prompts = prompts or ("",)
    options["negative_prompt"] = options["negative_prompt"] or ""
    options["num_images"] = 1 if options["num_images"] is None else options["num_images"]
    if options["num_images"] < 1:
        raise UserError(f"--num-images: {options['num_images']}, expected at least 1")
    _check_out(out, 1 if grid else len(prompts) * options["num_images"])

    with collect() as spent:
        folder = read_model_folder(model or remembered.get("model") or DEFAULT_MODEL)
        if remembered and folder.digest != remembered.get("model_digest"):
            raise UserError(
                f"{source}: made by model {remembered.get('model_digest')}, "
                f"{folder.path} is {folder.digest}; give its own with --model"
            )
        with timed("import Keras"):
            import_keras()
            from latentddpm.pipeline import LatentDiffusion, image_seeds
        with timed("load model"):
            pipeline = LatentDiffusion.load(folder.path)
        settings = {
            key: pipeline.defaults[key] if key in pipeline.defaults and value is None else value
            for key, value in options.items()
        }
        for key, side in zip(("height", "width"), pipeline.image_size or (), strict=False):
            settings[key] = side if settings[key] is None else settings[key]
        count = len(prompts) * settings["num_images"]
        seeds = image_seeds(settings.pop("seed"), count)
        targets = _targets(out, prompts, seeds, settings["num_images"], grid)
        images = pipeline.generate(
            list(prompts), seed=seeds, batch_size=batch_size, progress=not quiet, **settings
        )
        with timed("write"):
            made = {
                "latentddpm": latentddpm.__version__,
                "model": _model_name(folder),
                "model_digest": folder.digest,
                **settings,
            }
            if grid:
                rows = np.split(images, len(prompts))
                pictures = [make_grid(rows)]
                records = [{**made, "prompts": list(prompts), "seed": seeds[0], "grid": True}]
            else:
                pictures = list(images)
                each = [text for text in prompts for _ in range(settings["num_images"])]
                records = [
                    {**made, "prompts": [text], "seed": seed, "num_images": 1}
                    for text, seed in zip(each, seeds, strict=True)
                ]
            for target, pixels, record in zip(targets, pictures, records, strict=True):
                save_png(target, pixels, record)
    if source and not quiet:
        print(_comparison(source, original, pictures[0]), file=sys.stderr)
    if timing:
        for name, seconds in spent.items():
            print(f"{seconds:8.2f} s  {name}", file=sys.stderr)
    return targets


def _check_metadata(source: Path, metadata: Any) -> None:
    """Refuse a file whose making cannot be repeated: anyone can write a PNG."""
    for key in MAKING:
        if not isinstance(metadata, dict) or key not in metadata:
            raise UserError(f"{source}: its metadata has no {key}")
    for key, kind in {**MAKING, **OTHER_MAKING}.items():
        value = metadata.get(key)
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            raise UserError(f"{source}: its metadata has {key}: {value!r}")


def _check_out(out: Path | None, count: int) -> None:
    """Refuse a name for `count` pictures that is not a folder or one PNG."""
    if out is None or not out.suffix or out.is_dir():
        return
    if out.suffix.lower() != ".png":
        raise UserError(f"{out}: images are written as .png; name a .png file or a folder")
    if count > 1:
        raise UserError(f"{out}: one file for {count} images; name a folder, or --grid")


def _targets(
    out: Path | None, prompts: tuple[str, ...], seeds: list[int], num_images: int, grid: bool
) -> list[Path]:
    """The files to write: `out` itself, or one file per image below it."""
    each = [text for text in prompts for _ in range(num_images)]
    names = [f"{_slug(text)}-{seed}.png" for text, seed in zip(each, seeds, strict=True)]
    if grid:
        names = [f"{_slug(prompts[0])}-{seeds[0]}-grid.png"]
    if out is not None and out.suffix and not out.is_dir():
        return [out]
    return [(out or Path()) / name for name in names]


def _slug(text: str) -> str:
    return re.sub(r"\W+", "-", text.lower()).strip("-")[:48] or "image"


def _model_name(folder: ModelFolder) -> str:
    """How to find the model again: a ready model by its name, another by its path."""
    if folder.path.parent in ready_models():
        return folder.path.name
    return str(folder.path)


def _comparison(source: Path, original: np.ndarray, pixels: np.ndarray) -> str:
    if original.shape != pixels.shape:
        return f"another size than {source}"
    largest = int(np.abs(original.astype(int) - pixels).max())
    if largest == 0:
        return f"every pixel as in {source}"
    return f"differs from {source} by at most {largest} of 255"


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
    trained = [line for line in lines if "loss" in line]
    checked = [line for line in lines if "validation_loss" in line]
    yield f"run        {path}"
    if trained:
        last = trained[-1]
        yield f"step       {last['step']}, loss {last['loss']:.5g}"
        yield f"speed      {last['examples_per_second']:.4g} examples/s"
    for line in checked[-5:]:
        values = {k: v for k, v in line.items() if k.startswith("validation_")}
        yield f"validation step {line['step']}: " + ", ".join(
            f"{key.removeprefix('validation_')} {value:.5g}" for key, value in values.items()
        )
    yield f"model      {'finished' if (path / 'model').is_dir() else 'not finished'}"
