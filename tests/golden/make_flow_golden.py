"""The trajectories of diffusers' schedulers of flow matching, frozen for tests without them.

python tests/golden/make_flow_golden.py        (needs the `reference` extra)

tests/golden/flow.safetensors: for every case of `CASES`, named SAMPLER/SPACING/SHIFT/n, the
latents after each step, float32 (n, *SHAPE), and under NAME/sigmas the levels, from 1 to 0.

The network is toy_denoiser.flow_denoiser, the starting latents are toy_noise(-1). The multistep
solvers are given our levels: theirs are those of "trailing" times 1 − 1/T.
"""

import itertools
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import diffusers
import numpy as np
import torch
from safetensors.numpy import save_file

TESTS = Path(__file__).parents[1]
sys.path.insert(0, str(TESTS / "support"))

from toy_denoiser import flow_denoiser, toy_noise  # noqa: E402

GOLDEN = TESTS / "golden" / "flow.safetensors"
FLOW_SIGMAS = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
SCHEDULERS = {
    "euler": "FlowMatchEulerDiscreteScheduler",
    "heun": "FlowMatchHeunDiscreteScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
}
KINDS = (
    ("euler", "linspace"),
    ("euler", "trailing"),
    ("heun", "linspace"),
    ("dpmpp_2m", "trailing"),
    ("unipc", "trailing"),
)
CASES = [
    (*kind, shift, count)
    for kind, shift, count in itertools.product(KINDS, (1.0, 3.0), (2, 8, 25))
]


def trajectory(sampler, spacing, shift, count):
    """The latents after each step, and the levels with the end."""
    make = getattr(diffusers, SCHEDULERS[sampler])
    shares = np.arange(count, 0, -1) / count
    if sampler in ("euler", "heun"):
        scheduler = make(shift=shift)
        given = {"sigmas": shares.tolist()} if spacing == "trailing" else {}
        scheduler.set_timesteps(**(given or {"num_inference_steps": count}))
        sigmas = list(dict.fromkeys(scheduler.sigmas.tolist()))
    else:
        scheduler = make(**FLOW_SIGMAS, flow_shift=shift)
        scheduler.set_timesteps(count)
        sigmas = [*(shift * shares / (1 + (shift - 1) * shares)), 0.0]
        scheduler.sigmas = torch.tensor(sigmas, dtype=torch.float32)
        scheduler.timesteps = 1000 * scheduler.sigmas[:-1]
    denoiser, latents, reached = flow_denoiser(), torch.from_numpy(toy_noise(-1)), []
    calls = len(scheduler.timesteps)
    for call, t in enumerate(scheduler.timesteps):
        if sampler not in ("euler", "heun"):
            scheduler._step_index = call  # it cannot be found from a timestep between whole ones
        prediction = torch.from_numpy(denoiser(latents.numpy(), float(t)))
        latents = scheduler.step(prediction, t, latents).prev_sample
        if sampler != "heun" or call % 2 or call + 1 == calls:
            reached.append(latents.numpy().copy())
    return np.stack(reached), np.array(sigmas)


def main():
    tensors = {}
    for case in CASES:
        name = "/".join(map(str, case))
        tensors[name], sigmas = trajectory(*case)
        tensors[f"{name}/sigmas"] = sigmas.astype("float32")
    save_file(tensors, GOLDEN, {"diffusers": diffusers.__version__})
    print(f"{GOLDEN.name}: {len(CASES)} trajectories, {GOLDEN.stat().st_size} bytes")


if __name__ == "__main__":
    main()
