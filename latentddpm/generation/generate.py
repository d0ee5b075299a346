"""Generation from the command line: a plan, one call of the model, and files with metadata.

Wrong options are refused while the plan is made, before Keras is imported.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from latentddpm.clip.prompts import read_count
from latentddpm.data.pictures.stored import read_stored
from latentddpm.errors import UserError
from latentddpm.generation.controls import (
    add_controls,
)
from latentddpm.generation.devices import ALONE, devices, jit_of
from latentddpm.generation.frames import Frames, ToWrite, decoded
from latentddpm.generation.loras import (
    load_model,
)
from latentddpm.generation.output import (
    note_of_names,
    write_picture,
)
from latentddpm.generation.plan import Plan, plan_images
from latentddpm.generation.provenance import (
    comparison,
    grid_metadata,
    image_metadata,
    model_name,
)
from latentddpm.pipeline.start.init_image import first_step
from latentddpm.utils.console import activity, say
from latentddpm.utils.images.pixel_format import PixelFormat
from latentddpm.utils.pixels import BESIDE
from latentddpm.utils.pixels import grid as make_grid
from latentddpm.utils.startup import import_keras
from latentddpm.utils.timing import collect, timed


def generate_images(
    *,
    batch_size: int,
    quiet: bool,
    timing: bool,
    tile: str = "auto",
    strategy: str = "auto",
    engine: str | None = None,
    cache: bool = True,
    jit: str | None = None,
    **options: Any,
) -> list[Path]:
    """Generate images and write them as PNG files, with metadata to make them again.

    Args:
        batch_size: images denoised together.
        quiet: say nothing.
        timing: print the time of each stage on stderr.
        tile: see `LatentDiffusion.generate`; the images do not depend on it.
        strategy: name of a strategy, see `distribution.strategy.make_strategy`. With several
            processes each generates and writes its share of the images.
        engine: see `devices.engine_of`.
        jit: see `devices.jit_of`.
        cache: see `LatentDiffusion.load`; of no effect with LoRA files or several devices.
        options: see `plan_images`.

    Returns:
        The files that this process wrote.

    Raises:
        UserError: see `plan_images`; or options that do not go with the strategy.
    """
    with collect() as spent:
        read_count("batch_size", batch_size)
        plan = plan_images({**options, "tile": tile, "engine": engine, "strategy": strategy})
        compiles = jit_of(jit, plan.engine)
        for note in plan.notes:
            say(note, quiet)
        source = options["source"]
        # Read now: the file may be replaced.
        before = _read_pixels(source, plan.pixels) if source else None
        with timed(f"import {'Keras' if plan.engine == 'keras' else 'ONNX Runtime'}"):
            if plan.engine == "keras":
                import_keras()
        with devices(plan.engine, strategy) as processes:
            together = "--grid" if plan.rows else "--animate" if plan.animate else ""
            if processes.count > 1 and (together or plan.seed is None):
                own = f"no {together}: each writes its own"
                need = own if together else "--seed, the same in all"
                raise UserError(
                    f"--strategy multi-worker: {processes.count} processes need {need}"
                )
            name = model_name(plan.folder)
            with timed("load model"), activity(f"loading {name}", quiet):
                masked = plan.regions and "text_encoder" in plan.folder.parts
                cache = cache and strategy in ALONE and not masked and not plan.controls
                how = {"cache": cache, "jit": compiles}
                words = [(one.path, one.word) for one in plan.embeddings]
                model = load_model(
                    *(plan.folder.path, plan.loras, plan.engine, plan.precision),
                    **how,
                    embeddings=words,
                )
                guided = {}
                if weaker := plan.weaker:
                    guide = load_model(weaker.folder.path, [], plan.engine, plan.precision, **how)
                    guided = {"autoguidance": guide, "autoguidance_scale": weaker.scale}
                controls = add_controls(model, plan.controls, compiles)
            share = processes.share(len(plan.prompts))
            share = slice(share.start, share.stop)
            last = model.make_sampler(plan.settings).num_steps
            steps = range(first_step(plan.start, last, plan.settings.start_step), last)
            frames = Frames(plan.frames, plan.animate, steps)
            written: dict[Path, np.ndarray] = {}
            if plan.prompts[share]:
                images = model.generate(
                    plan.prompts[share],
                    negative_prompt=plan.negative_prompts and plan.negative_prompts[share],
                    conditions=plan.told[share],
                    seed=plan.seeds[share],
                    settings=plan.settings,
                    regions=plan.regions,
                    tile=tile,
                    batch_size=batch_size,
                    callback=frames,
                    progress=not quiet and processes.is_chief,
                    **guided,
                    controls=controls,
                    **(vars(plan.start) if plan.start else {}),
                )
                if model.precision != "float32":
                    plan.metadata["precision"] = model.precision
                records = _records(plan, share, model.loras, bool(plan.rows))
                with timed("write"):
                    files = plan.targets if plan.rows else plan.targets[share]
                    pictures = [_grid(plan, images)] if plan.rows else images
                    written = _write(plan, zip(files, pictures, records, strict=True), quiet)
                if plan.frames or plan.animate:
                    several = len(plan.prompts) > 1
                    together = _records(plan, share, model.loras, several)[0]
                    with timed("frames"):
                        way = frames.pictures(partial(decoded, model, tile), quiet)
                        images = plan.pixels.to_rgb(images)
                        shown = frames.shown(way, images, list(written), records, together)
                        written |= _write(plan, shown, quiet)
            processes.barrier()
    if source and written:
        kind = source.suffix.lower()
        alike = [path for path in written if path.suffix.lower() == kind]
        again = [_read_pixels(path, plan.pixels) for path in alike]
        again.sort(key=lambda pixels: pixels.shape != before.shape)  # a strip is beside its image
        if again:
            say(comparison(source, before, again[0]), quiet)
    if timing:
        for name, seconds in spent.items():
            print(f"{seconds:8.2f} s  {name}", file=sys.stderr)
    return list(written)


def _read_pixels(path: Path, pixels: PixelFormat) -> np.ndarray:
    """Values of an image, (H, W, C), or of a signal, (L, C)."""
    if path.suffix.lower() in BESIDE:
        values = read_stored(path).values
        return values[..., 0] if pixels.spatial_dims == 1 and values.ndim == 3 else values
    with Image.open(path) as image:
        known = image.mode in ("L", "RGBA") or image.mode.startswith("I;16")
        values = np.asarray(image if known else image.convert("RGB"))
    return values if values.ndim == 3 else values[..., None]


def _grid(plan: Plan, images: np.ndarray) -> np.ndarray:
    """Picture of all images, 8-bit RGB."""
    return make_grid(np.split(plan.pixels.to_rgb(images), plan.rows))


def _records(
    plan: Plan, share: slice, loras: list[dict[str, Any]], together: bool
) -> list[dict[str, Any]]:
    """Metadata of each image of a process's share; or one, of all images `together`."""
    common, negatives = plan.metadata, plan.negative_prompts
    labels = plan.labels
    if together:
        first = slice(None, None, common["num_images"])
        rows = plan.prompts[first], negatives and negatives[first]
        return [grid_metadata(common, loras, *rows, plan.seeds[0], labels[first])]
    return [
        image_metadata(common, loras, plan.prompts[k], negatives and negatives[k], seed, labels[k])
        for k, seed in enumerate(plan.seeds)
    ][share]


def _write(plan: Plan, pictures: Iterable[ToWrite], quiet: bool) -> dict[Path, np.ndarray]:
    """Write pictures, and say which of them got another name; return the pixels by file."""
    wanted, written = [], {}
    for file, pixels, metadata in pictures:
        wanted.append(file)
        written[write_picture(file, pixels, metadata, plan.replace, plan.pixels)] = pixels
    if note := note_of_names(wanted, list(written)):
        say(note, quiet)
    return written
