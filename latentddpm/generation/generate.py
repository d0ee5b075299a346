"""What `generate` does around the one call: options, files, and what goes into them."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import latentddpm
from latentddpm.choices import SAMPLERS
from latentddpm.distribution.processes import ONE_PROCESS, ProcessGroup
from latentddpm.errors import UserError, check_choice
from latentddpm.generation.loras import apply_loras, read_loras, remembered_loras
from latentddpm.generation.provenance import (
    comparison,
    input_file,
    model_name,
    read_generation_metadata,
    source_metadata,
)
from latentddpm.pipeline.init_image import InitImage, read_init_image
from latentddpm.pipeline.model_folder import read_model_folder
from latentddpm.pipeline.seeds import image_seeds
from latentddpm.utils.pixels import grid as make_grid
from latentddpm.utils.pixels import save_png
from latentddpm.utils.startup import import_keras
from latentddpm.utils.timing import collect, timed

DEFAULT_MODEL = "emoji-128"


def generate_images(
    prompts: tuple[str, ...],
    model: Path | None,
    source: Path | None,
    out: Path | None,
    grid: bool,
    batch_size: int,
    quiet: bool,
    timing: bool,
    init_image: Path | None,
    mask: Path | None,
    loras: tuple[str, ...],
    steps: int | None,
    eta: float | None,
    sigma_spacing: str | None,
    tile: str = "auto",
    strategy: str = "auto",
    **options: Any,
) -> list[Path]:
    """Make images and write them as PNG with their making inside; returns the files.

    Args:
        source: a PNG made here; what is not given otherwise comes from its metadata.
        out: a `.png` file for one image or a grid, else a folder.
        init_image, mask: a picture to start from, and what of it to repaint.
        loras: "FILE" or "FILE:SCALE" of LoRA files to apply.
        eta, sigma_spacing: options of samplers.
        tile: as of `LatentDiffusion.generate`; nothing of the image depends on it.
        strategy: of `distribution.strategy.make_strategy`. Of several processes each makes and
            writes its own share of the images, and returns the files of that.
        options: of `LatentDiffusion.generate`, None where not given.
    """
    options["num_steps"] = steps
    given = {"eta": eta, "sigma_spacing": sigma_spacing}
    given = {key: value for key, value in given.items() if value is not None}
    remembered, original = {}, None
    if source:
        remembered = read_generation_metadata(source)
        with Image.open(source) as image:
            original = np.asarray(image.convert("RGB"))  # `out` may be the same file
        own_sampler = options["sampler"] in (None, remembered.get("sampler"))
        options = {k: remembered.get(k) if v is None else v for k, v in options.items()}
        if own_sampler:
            options["sampler_options"] = remembered.get("sampler_options")
        prompts = prompts or tuple(remembered.get("prompts", ()))
        grid = grid or remembered.get("grid", False)
    prompts = prompts or ("",)
    options["negative_prompt"] = options["negative_prompt"] or ""
    options["num_images"] = 1 if options["num_images"] is None else options["num_images"]
    if options["num_images"] < 1:
        raise UserError(f"--num-images: {options['num_images']}, expected at least 1")
    if options["sampler"] is not None:
        check_choice("sampler", options["sampler"], SAMPLERS)
    _check_out(out, 1 if grid else len(prompts) * options["num_images"])
    files = {
        name: input_file(name, path, source, remembered)
        for name, path in (("init_image", init_image), ("mask", mask))
    }
    changes = read_loras(loras) or remembered_loras(source, remembered.get("loras") or [])

    with collect() as spent:
        folder = read_model_folder(model or remembered.get("model") or DEFAULT_MODEL)
        if remembered and folder.digest != remembered.get("model_digest"):
            raise UserError(
                f"{source}: made by model {remembered.get('model_digest')}, "
                f"{folder.path} is {folder.digest}; give its own with --model"
            )
        for key, side in zip(("height", "width"), folder.image_size or (), strict=False):
            options[key] = side if options[key] is None else options[key]
        seed = options.pop("seed")
        each = [text for text in prompts for _ in range(options["num_images"])]
        seeds = image_seeds(seed, len(each))
        targets = _targets(out, prompts, seeds, options["num_images"], grid)
        start = _start(files, options)
        with timed("import Keras"):
            import_keras()
            from latentddpm.pipeline.latent_diffusion import LatentDiffusion
        with _devices(strategy) as processes:
            if processes.count > 1 and (grid or seed is None):
                need = "no --grid: each writes its own" if grid else "--seed, the same in all"
                raise UserError(
                    f"--strategy multi-worker: {processes.count} processes need {need}"
                )
            with timed("load model"):
                pipeline = LatentDiffusion.load(folder.path)
                apply_loras(pipeline, changes)
            settings = _settings(options, given, pipeline.defaults)
            share = processes.share(len(each))
            each, seeds = (values[share.start : share.stop] for values in (each, seeds))
            images = []
            if each:
                images = pipeline.generate(
                    each,
                    seed=seeds,
                    tile=tile,
                    batch_size=batch_size,
                    progress=not quiet and processes.is_chief,
                    **{**settings, "num_images": 1},
                    **(vars(start) if start else {}),
                )
            with timed("write"):
                made = {
                    "latentddpm": latentddpm.__version__,
                    "model": model_name(folder),
                    "model_digest": folder.digest,
                    **settings,
                    **source_metadata(files, start),
                    **({"loras": pipeline.loras} if changes else {}),
                }
                if grid:
                    pictures = [make_grid(np.split(images, len(prompts)))]
                    records = [{**made, "prompts": list(prompts), "seed": seeds[0], "grid": True}]
                else:
                    pictures, targets = list(images), targets[share.start : share.stop]
                    records = [
                        {**made, "prompts": [text], "seed": seed, "num_images": 1}
                        for text, seed in zip(each, seeds, strict=True)
                    ]
                for target, pixels, record in zip(targets, pictures, records, strict=True):
                    save_png(target, pixels, record)
            processes.barrier()
    if source and pictures and not quiet:
        print(comparison(source, original, pictures[0]), file=sys.stderr)
    if timing:
        for name, seconds in spent.items():
            print(f"{seconds:8.2f} s  {name}", file=sys.stderr)
    return targets


@contextlib.contextmanager
def _devices(strategy: str) -> Iterator[ProcessGroup]:
    """Networks made in it compute on the devices of a strategy, in one process of a group."""
    import keras

    backend = keras.backend.backend()
    if backend == "tensorflow":
        from latentddpm.distribution.strategy import (
            in_scope,
            make_strategy,
            process_group,
            translate_worker_errors,
        )

        devices = make_strategy(strategy)
        with translate_worker_errors(devices), in_scope(devices):
            yield process_group(devices)
    elif strategy in ("auto", "one"):
        yield ONE_PROCESS
    else:
        raise UserError(f"--strategy {strategy}: needs KERAS_BACKEND=tensorflow, not {backend}")


def _start(files: dict[str, Path | None], options: dict[str, Any]) -> InitImage | None:
    """What to start from, read before Keras is. A model without a size refuses later."""
    size = options["height"], options["width"]
    strength = options.pop("strength")
    if None in size and files["init_image"] is not None:
        raise UserError("height and width: this model names no size of its own; give both")
    return read_init_image(files["init_image"], files["mask"], strength, size)


def _settings(
    options: dict[str, Any], given: dict[str, Any], defaults: dict[str, Any]
) -> dict[str, Any]:
    """Arguments of `generate`: what was asked for, then the model's defaults; all of it goes
    into the PNG. `given` are options of the sampler."""
    from latentddpm.diffusion.samplers.factory import default_options

    settings = {
        key: defaults.get(key) if value is None else value for key, value in options.items()
    }
    settings["guidance_rescale"] = settings["guidance_rescale"] or 0.0
    own = settings.get("sampler_options")
    if options.get("sampler_options") is None:
        own = default_options(settings["sampler"], defaults)
    return {**settings, "sampler_options": {**own, **given}}


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
