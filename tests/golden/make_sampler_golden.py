"""The trajectories of diffusers' schedulers, frozen for tests that run without them.

python tests/golden/make_sampler_golden.py        (needs the `reference` extra)

tests/golden/samplers.safetensors: for every case of `CASES`, named SAMPLER/SPACING/PREDICTION/n,
the latents after each step, float32 (n, *SHAPE) in our layout, variance preserving, and under
NAME/timesteps what the network was told in the first call of each step.

The network is support/toy_denoiser.py, the starting latents are toy_noise(-1), the noise of step
i is toy_noise(i). Where a scheduler of diffusers is not used as it comes, `drive` says why.
"""

import contextlib
import itertools
import os
import sys
from pathlib import Path
from unittest import mock

os.environ["HF_HUB_OFFLINE"] = "1"

import diffusers
import numpy as np
import torch
from safetensors.numpy import save_file

TESTS = Path(__file__).parents[1]
sys.path.insert(0, str(TESTS / "support"))

from toy_denoiser import (  # noqa: E402
    SHAPE,
    toy_denoiser,
    toy_etas,
    toy_noise,
    with_variance,
)

GOLDEN = TESTS / "golden" / "samplers.safetensors"

BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
KARRAS = {"use_karras_sigmas": True}
ZERO = {"rescale_betas_zero_snr": True}
LAST = {"set_alpha_to_one": False}  # as Stable Diffusion's own files have it
SDE = {"algorithm_type": "sde-dpmsolver++"}
SPACINGS = ("leading", "trailing", "linspace")
PREDICTIONS = ("epsilon", "v_prediction")
COUNTS = (5, 10, 23, 50)
FEW = (1, 2, 4, 8)  # of lcm

# our name and options -> diffusers' class and options
SAMPLERS = {
    "ddpm": ("DDPMScheduler", {"clip_sample": False}),
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "ddim eta=1": ("DDIMScheduler", {"clip_sample": False}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {}),
    "dpmpp_2m karras": ("DPMSolverMultistepScheduler", KARRAS),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler karras": ("EulerDiscreteScheduler", KARRAS),
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "heun karras": ("HeunDiscreteScheduler", KARRAS),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True, "set_alpha_to_one": True}),
    "ddim last": ("DDIMScheduler", {"clip_sample": False, **LAST}),
    "pndm last": ("PNDMScheduler", {"skip_prk_steps": True, **LAST}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "unipc karras": ("UniPCMultistepScheduler", KARRAS),
    "ddpm zero": ("DDPMScheduler", {"clip_sample": False, **ZERO}),
    "ddim zero": ("DDIMScheduler", {"clip_sample": False, **ZERO}),
    "dpmpp_2m zero": ("DPMSolverMultistepScheduler", ZERO),
    "euler zero": ("EulerDiscreteScheduler", ZERO),
    "euler_ancestral zero": ("EulerAncestralDiscreteScheduler", ZERO),
    "unipc zero": ("UniPCMultistepScheduler", ZERO),
    "dpmpp_2m_sde": ("DPMSolverMultistepScheduler", SDE),
    "dpmpp_2m_sde karras": ("DPMSolverMultistepScheduler", {**SDE, **KARRAS}),
    "dpmpp_2m_sde zero": ("DPMSolverMultistepScheduler", {**SDE, **ZERO}),
    "ddpm large": ("DDPMScheduler", {"clip_sample": False, "variance_type": "fixed_large"}),
    "ddpm learned": ("DDPMScheduler", {"clip_sample": False, "variance_type": "learned_range"}),
    "ddpm clip": ("DDPMScheduler", {"clip_sample": True}),
    "ddim etas": ("DDIMScheduler", {"clip_sample": False}),
    "lcm": ("LCMScheduler", {}),
    "lcm 20": ("LCMScheduler", {"original_inference_steps": 20}),
    "ddim clip": ("DDIMScheduler", {"clip_sample": True}),
}
ONCE = ("large", "learned", "clip", "etas")  # options that do not meet spacing and prediction
IN_SIGMA = ("euler", "euler_ancestral", "heun")


def cases():
    """(sampler, spacing, prediction, count) of everything that is frozen."""
    for case in itertools.product(SAMPLERS, SPACINGS, PREDICTIONS, (*FEW, *COUNTS)):
        sampler, spacing, prediction, count = case
        if count not in (FEW if sampler.startswith("lcm") else COUNTS):
            continue
        if sampler.startswith("lcm") and spacing != "trailing":
            continue  # the same timesteps with any spacing
        karras_whole = sampler in ("dpmpp_2m karras", "dpmpp_2m_sde karras", "unipc karras")
        if karras_whole and spacing != "leading":
            continue  # the spacing of the timesteps plays no part
        if sampler.endswith("last") and (prediction != "epsilon" or spacing != "leading"):
            continue  # Stable Diffusion 1.x, as it comes
        if sampler.endswith("zero") and (prediction == "epsilon" or spacing != "trailing"):
            continue  # ε is refused; only "trailing" is sure to start at the last timestep
        if sampler.endswith(ONCE) and (prediction, spacing) != ("epsilon", "trailing"):
            continue
        yield case


def trajectory(sampler, spacing, prediction, count, as_it_comes=False):
    """The latents after each step, and the timesteps of each step's first call."""
    name, options = SAMPLERS[sampler]
    model_predicts = prediction
    as_it_comes = as_it_comes or sampler.endswith("last")
    if sampler == "pndm" and not as_it_comes:
        # PNDMScheduler combines v of different timesteps as if they were ε; the paper and the
        # code of Stable Diffusion make ε of them first.
        model_predicts = "epsilon"
    scheduler = getattr(diffusers, name)(
        **BETAS, **options, prediction_type=model_predicts, timestep_spacing=spacing
    )
    if spacing == "leading":
        scheduler.register_to_config(steps_offset=1)
    scheduler.set_timesteps(count)
    denoiser = toy_denoiser(model_predicts, "zero" in sampler)
    if "learned" in sampler:
        denoiser = with_variance(denoiser)
    etas = toy_etas(count) if "etas" in sampler else [1.0] * count if "eta" in sampler else None
    return drive(scheduler, sampler.split()[0], etas, denoiser, count, as_it_comes)


def drive(scheduler, kind, etas, denoiser, count, as_it_comes):
    """Run diffusers' loop over a scheduler that is set up."""
    heun, pndm = kind == "heun", kind == "pndm"
    in_sigma = kind in IN_SIGMA
    timesteps = scheduler.timesteps
    visited = list(dict.fromkeys(timesteps.tolist())) if pndm else timesteps.tolist()
    after = dict(zip(visited, [*visited[1:], -1], strict=True))
    start = torch.from_numpy(toy_noise(-1)).permute(0, 3, 1, 2)
    # Ours starts every sampler from x = noise, which is x̂ = √(σ² + 1) · noise.
    latents = start * (scheduler.sigmas[0] ** 2 + 1) ** 0.5 if in_sigma else start
    reached, told = [], []
    for call, t in enumerate(timesteps):
        step = (call + 1) // 2 if heun else max(call - 1, 0) if pndm else call
        scaled = scheduler.scale_model_input(latents, t)
        prediction = torch.from_numpy(
            denoiser(scaled.permute(0, 2, 3, 1).numpy(), float(t))
        ).permute(0, 3, 1, 2)
        options = {}
        if etas or kind == "dpmpp_2m_sde":
            noise = torch.from_numpy(toy_noise(step)).permute(0, 3, 1, 2)
            options = {"variance_noise": noise} | ({"eta": etas[step]} if etas else {})
        if kind in ("ddpm", "euler_ancestral", "lcm"):
            # DDPMScheduler adds noise in the last step unless that starts at t = 0: next to none
            # with "fixed_small", √β of it otherwise. Algorithm 2 of Ho 2020 adds none.
            last = scheduler.config.get("variance_type") != "fixed_small" and step == count - 1
            options = {"generator": Recorded(step, 0.0 if kind == "ddpm" and last else 1.0)}
        if kind in ("ddim", "pndm") and not as_it_comes:
            # DDIMScheduler and PNDMScheduler go T // n timesteps down, wherever the next
            # timestep is ("linspace", and "trailing" where n does not divide T). The distance
            # to the next timestep is put in place of T // n.
            here = visited[0] if pndm and call == 1 else int(t)
            scheduler.register_to_config(num_train_timesteps=here - after[here])
            scheduler.num_inference_steps = 1
        latents = scheduler.step(prediction, t, latents, **options).prev_sample
        first_half = heun and call % 2 == 0 and call + 1 < len(timesteps)
        if not heun or call % 2 == 0:
            told.append(float(t))
        if first_half or (pndm and call == 0 and count > 1):
            continue
        reached.append(latents.permute(0, 2, 3, 1).numpy().copy())
    if pndm and count > 1:
        told.pop(1)
    reached = np.stack(reached).astype("float64")
    if in_sigma:
        sigmas = scheduler.sigmas.numpy().astype("float64")
        sigmas = np.array([*dict.fromkeys(sigmas.tolist())])[1:]
        reached /= np.sqrt(sigmas**2 + 1).reshape(-1, *[1] * len(SHAPE))
    return reached.astype("float32"), np.array(told)


class Recorded:
    """Stands for a torch.Generator of which the noise of one step is drawn."""

    def __init__(self, step, scale=1.0):
        self.noise = scale * torch.from_numpy(toy_noise(step)).permute(0, 3, 1, 2)


@contextlib.contextmanager
def recorded_noise():
    """While it lasts, diffusers' schedulers draw what `Recorded` holds."""

    def draw(shape, generator, **_):
        assert tuple(shape) == tuple(generator.noise.shape), "expected the latents' shape"
        return generator.noise

    with contextlib.ExitStack() as stack:
        for name in ("ddpm", "euler_ancestral_discrete", "lcm"):
            module = getattr(diffusers.schedulers, f"scheduling_{name}")
            stack.enter_context(mock.patch.object(module, "randn_tensor", draw))
        yield


def main():
    tensors = {}
    for case in cases():
        name = "/".join(map(str, case))
        with recorded_noise():
            tensors[name], timesteps = trajectory(*case)
        tensors[f"{name}/timesteps"] = timesteps.astype("float32")
    save_file(tensors, GOLDEN, {"diffusers": diffusers.__version__})
    print(f"{GOLDEN.name}: {len(tensors) // 2} trajectories, {GOLDEN.stat().st_size} bytes")


if __name__ == "__main__":
    main()
