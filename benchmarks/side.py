"""One side of `vs_diffusers.py`: do a job in this process, print lines of JSON.

    python benchmarks/side.py SIDE JOB FOLDER [--size page] [--batch N] [--precision float32]

SIDE is keras, keras-xla, onnx (the engine), torch or torch-channels-last. FOLDER has the models:

    prepare                   random weights, saved as our model folder and as a diffusers folder
    vae-encode, vae-decode    the autoencoder alone, on one image
    unet-forward, unet-train  the UNet alone; a training step is MSE, clipping and AdamW
    generate                  20 DDIM steps with guidance, text encoder and decoder: one image
    cold, cold-again          the same from nothing: imports, reading the model, one image; of ours
                              that is the command `latentddpm generate`
    serve                     do the jobs that stdin names, one a line, again and again

Sizes:

    page      Stable Diffusion's autoencoder on 256×256; a UNet of 25.4 M parameters, widths
              64/128/256, on 16×16×4 latents, batch 16, context 77×256; images of 128×128
    quick     an autoencoder of 2.7 M on 64×64, a UNet of 9.4 M on the same latents, batch 4
    tiny      for rehearsals: does it run?
    512, 1024 a UNet of Stable Diffusion's size, 860 M, on the latents of such an image, batch 1

The output lands in FOLDER/CELL.npy, channels last, for comparison.
"""

import argparse
import importlib
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from sides.jobs import COLD, SIZES, Action

REPEATS = 5


def repeat(action: Action, times: int) -> tuple[Any, float, float]:
    """What `action` returns the first time, its first duration, the median of the later ones."""
    start = time.perf_counter()
    result = action()
    first = time.perf_counter() - start
    spent = []
    for _ in range(times):
        start = time.perf_counter()
        action()
        spent.append(time.perf_counter() - start)
    return result, first, statistics.median(spent) if spent else first


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("side")
    parser.add_argument("job")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", default="page", choices=SIZES)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--out", type=Path, help="of the output")
    options = parser.parse_args()
    torch = options.side.startswith("torch")
    sides = importlib.import_module("sides.theirs" if torch else "sides.ours")
    if options.job == "prepare":
        print(json.dumps(sides.prepare(options.folder, options.size)))
        return
    if options.job in COLD:
        action = sides.cold(options.side, options.folder, options.size)
    else:
        actions = sides.actions(options.side, options.folder, options.size, options.precision)
        if options.job == "serve":
            serve(actions, SIZES[options.size]["batch"])
            return
        action = actions(options.job, options.batch)
    times = 0 if options.job in COLD else 1 if options.size in ("512", "1024") else REPEATS
    output, first, later = repeat(action, times)
    if options.out:
        np.save(options.out, np.asarray(output, "float32"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": later, "first": first, "peak_mib": peak}))


def serve(actions: Callable[..., Action], batch: int) -> None:
    """Do the jobs that stdin names; the answer to each is its seconds."""
    ready: dict[str, Action] = {}
    for line in sys.stdin:
        job = line.strip()
        if job not in ready:
            ready[job] = actions(job, batch if job.startswith("unet") else 1)
            ready[job]()
        start = time.perf_counter()
        ready[job]()
        print(json.dumps({"seconds": time.perf_counter() - start}), flush=True)


if __name__ == "__main__":
    main()
