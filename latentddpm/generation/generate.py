"""Generation from the command line: a plan, its models, and the images of this process.

Wrong options are refused while the plan is made, before Keras is imported.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from latentddpm.clip.prompts import read_count
from latentddpm.data.pictures.stored import read_stored
from latentddpm.errors import UserError
from latentddpm.generation.devices import ALONE, devices, jit_of
from latentddpm.generation.draw import How, draw, load_plan
from latentddpm.generation.plan import plan_images
from latentddpm.generation.provenance import comparison, model_name
from latentddpm.utils.console import activity, say
from latentddpm.utils.images.pixel_format import PixelFormat
from latentddpm.utils.pixels import BESIDE
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
                loaded = load_plan(plan, cache, compiles)
            share = processes.share(len(plan.prompts))
            how = How(tile, batch_size, not quiet and processes.is_chief, quiet)
            written = draw(plan, loaded, slice(share.start, share.stop), how)
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
