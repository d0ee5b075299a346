"""How many steps each sampler needs, on a model that ships.

    python benchmarks/samplers.py [--model emoji-128] [--grid FILE.png]

Deterministic samplers all approximate the solution of one equation. From the same noise,
this measures how far the latents that n steps reach lie from those of many steps (RMS over
prompts, seeds and elements, relative to the RMS of the latents), and what they cost in calls
of the network. Prints JSON, and with `--grid` draws a row for each sampler and step count.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from latentddpm.utils.startup import import_keras

PROMPTS = ["red apple", "cat face", "panda", "red heart", "grinning face", "mushroom"]
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
REFERENCE = {"sampler": "heun", "num_steps": 250}


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
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--grid", type=Path)
    options = parser.parse_args()
    import_keras()
    from latentddpm.diffusion import samplers
    from latentddpm.pipeline.latent_diffusion import LatentDiffusion
    from latentddpm.utils.pixels import grid, save_png, to_pixels

    model = LatentDiffusion.load(options.model)
    common = {"num_images": options.seeds, "seed": 0, "output": "latents", "batch_size": 64}

    def latents(**how: object) -> np.ndarray:
        return model.generate(PROMPTS, **{**common, "timestep_spacing": "trailing", **how})

    reference = latents(**REFERENCE)
    found: list[dict] = []
    rows = [to_pixels(model.autoencoder.decode(reference))]
    for name, extra in SAMPLERS.items():
        kind = name.split()[0]
        for steps in STEPS:
            reached = latents(sampler=kind, num_steps=steps, sampler_options=extra)
            error = np.sqrt(np.mean((reached - reference) ** 2) / np.mean(reference**2))
            calls = count_calls(samplers.get(kind)(model.schedule, steps, "trailing", **extra))
            found.append(
                {"sampler": name, "steps": steps, "calls": calls, "error": round(float(error), 4)}
            )
            print(found[-1], file=sys.stderr)
            rows.append(to_pixels(model.autoencoder.decode(reached)))
    print(
        json.dumps(
            {
                "benchmark": "distance to the solution of many steps",
                "model": options.model,
                "reference": REFERENCE,
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
