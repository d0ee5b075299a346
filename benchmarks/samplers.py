"""How many steps each sampler needs, on a model that ships.

    python benchmarks/samplers.py [--model emoji-128] [--samplers ddim unipc] [--steps 10 20]
        [--spacings trailing leading] [--reference unipc:100] [--grid FILE.png]

Deterministic samplers all approximate the solution of one equation. From the same noise,
this measures how far the latents that n steps reach lie from those of many steps (RMS over
prompts, seeds and elements, relative to the RMS of the latents), and what they cost in calls
of the network. Prints JSON, and with `--grid` draws a row for each sampler and step count.
Sixteen pictures by 100 steps take a minute on two cores.
"""

import argparse
import itertools
import json
import sys
from pathlib import Path

import numpy as np

from latentddpm.utils.startup import import_keras

PROMPTS = [
    *("red apple", "cat face", "rocket", "sunflower", "panda", "grinning face", "dog face"),
    *("star", "snowman", "blue heart", "mushroom", "tree", "car", "house, noto style"),
    *("red heart, twemoji style", "pizza, fluent 3d style"),
]
SAMPLERS = {
    "ddim": {},
    "euler": {},
    "heun": {},
    "pndm": {},
    "dpmpp_2m": {},
    "unipc": {},
    "euler (karras)": {"sigma_spacing": "karras"},
    "heun (karras)": {"sigma_spacing": "karras"},
    "dpmpp_2m (karras)": {"sigma_spacing": "karras"},
    "unipc (karras)": {"sigma_spacing": "karras"},
}
STEPS = (5, 8, 10, 15, 20, 30)


def count_calls(sampler: object) -> int:
    """Calls of the network that a sampler makes."""
    calls = []

    def denoiser(noisy_latents: np.ndarray, timesteps: np.ndarray) -> np.ndarray:
        calls.append(timesteps)
        return noisy_latents

    sampler.sample(denoiser, np.zeros((1, 1, 1, 1), np.float32))
    return len(calls)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="emoji-128")
    parser.add_argument("--samplers", nargs="+", default=SAMPLERS, choices=SAMPLERS)
    parser.add_argument("--steps", nargs="+", type=int, default=STEPS)
    parser.add_argument("--spacings", nargs="+", default=("trailing",))
    parser.add_argument("--reference", default="unipc:100", help="SAMPLER:STEPS, trailing")
    parser.add_argument("--seeds", type=int, default=1, help="pictures of each prompt")
    parser.add_argument("--grid", type=Path)
    options = parser.parse_args()
    import_keras()
    from latentddpm.diffusion import samplers
    from latentddpm.pipeline.latent_diffusion import LatentDiffusion
    from latentddpm.utils.pixels import grid, save_png, to_pixels

    model = LatentDiffusion.load(options.model)
    common = {"num_images": options.seeds, "seed": 0, "output": "latents", "batch_size": 64}

    def latents(**how: object) -> np.ndarray:
        return np.asarray(model.generate(PROMPTS, **common, **how))

    many, count = options.reference.split(":")
    reference = latents(sampler=many, num_steps=int(count), timestep_spacing="trailing")
    found: list[dict] = []
    rows = [to_pixels(model.autoencoder.decode(reference))]
    asked = itertools.product(options.samplers, options.spacings, options.steps)
    for name, spacing, steps in asked:
        kind, extra = name.split()[0], SAMPLERS[name]
        how = {"num_steps": steps, "timestep_spacing": spacing}
        reached = latents(sampler=kind, sampler_options=extra, **how)
        error = np.sqrt(np.mean((reached - reference) ** 2) / np.mean(reference**2))
        sampler = samplers.get(kind)(model.schedule, **how, **extra)
        found.append(
            {
                "sampler": name,
                **how,
                "calls": count_calls(sampler),
                "error": round(float(error), 4),
            }
        )
        print(found[-1], file=sys.stderr)
        rows.append(to_pixels(model.autoencoder.decode(reached)))
    print(
        json.dumps(
            {
                "benchmark": "distance to the solution of many steps",
                "model": options.model,
                "reference": options.reference,
                "guidance_scale": model.defaults["guidance_scale"],
                "images": len(PROMPTS) * options.seeds,
                "results": found,
            },
            indent=2,
        )
    )
    if options.grid:
        save_png(options.grid, grid(rows))


if __name__ == "__main__":
    main()
