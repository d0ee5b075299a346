"""Training step and `generate` on one GPU: Keras on JAX beside diffusers with torch.compile.

    pip install ".[reference]" "jax[cuda12]"
    python benchmarks/gpu.py [--size 512] [--batch 4] [--out FILE.json]     under ten minutes
    python benchmarks/gpu.py --size tiny --steps 2 --limit 600              a rehearsal on a CPU

Both sides have the same weights and inputs, compile, and compute in bfloat16. A training step is
mean squared error, clipping and AdamW with weights in float32; `generate` is DDIM with guidance,
text encoder and decoder, one image. Each side and job is a process of its own, which says how
long it compiled, the median and best of its later calls, and the peak of the GPU's memory where
the backend counts it. Losses and pictures of the two are compared. Sizes are those of `side.py`.

It never ran on a GPU. On a CPU, in size tiny, the training step of Keras on JAX was rehearsed;
the rest of it never ran.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from sides.jobs import (
    CLIP,
    DECAY,
    EPSILON,
    FACTOR,
    GUIDANCE,
    NEGATIVE,
    PROMPT,
    RATE,
    SIZES,
    arrays,
)

JOBS = ("train", "generate")
PACKAGES = {"jax": ("jax", "keras"), "torch": ("torch", "diffusers")}
Action = Callable[[], Any]


def prepare(folder: Path, size: str) -> None:
    """Random weights as a diffusers folder, made on the CPU."""
    from sides.ours import random_model

    from latentddpm.interop import save_diffusers

    save_diffusers(random_model(size), folder / "theirs")


# --- Keras on JAX --------------------------------------------------------------------------


def ours(job: str, folder: Path, size: str, batch: int, steps: int) -> tuple[Action, Action]:
    """The job, and a function that gives the peak of memory in bytes."""
    import jax
    import keras

    from latentddpm.interop import load_diffusers

    keras.config.set_dtype_policy("mixed_bfloat16")
    model, values = load_diffusers(folder / "theirs"), arrays(size, batch)

    def peak() -> int:
        return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)

    if job == "generate":
        return lambda: model.generate(
            PROMPT,
            negative_prompt=NEGATIVE,
            latents=values["start"][:1],
            num_steps=steps,
            sampler="ddim",
            timestep_spacing="trailing",
            guidance_scale=GUIDANCE,
        ), peak
    optimizer = keras.optimizers.AdamW(
        RATE, weight_decay=DECAY, global_clipnorm=CLIP, epsilon=EPSILON
    )
    model.unet.compile(optimizer, loss="mse", jit_compile=True)
    inputs = {name: values[name] for name in ("noisy_latents", "timesteps", "context")}
    inputs = {name: jax.numpy.asarray(value) for name, value in inputs.items()}
    target, losses = jax.numpy.asarray(values["target"]), []

    def step() -> list[float]:
        model.unet.reset_metrics()
        losses.append(float(model.unet.train_on_batch(inputs, target)))
        return losses

    return step, peak


# --- diffusers on PyTorch ------------------------------------------------------------------


def theirs(job: str, folder: Path, size: str, batch: int, steps: int) -> tuple[Action, Action]:
    """The job, and a function that gives the peak of memory in bytes."""
    import torch
    from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    device = "cuda" if torch.cuda.is_available() else "cpu"
    values = arrays(size, batch)

    def tensor(name: str, count: int = batch) -> Any:
        value = torch.from_numpy(values[name][:count])
        if value.ndim == 4:
            value = value.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
        return value.to(device)

    def peak() -> int:
        return torch.cuda.max_memory_allocated() if device == "cuda" else 0

    place = {"device": device, "memory_format": torch.channels_last}
    if job == "generate":
        pipeline = StableDiffusionPipeline.from_pretrained(
            folder / "theirs", torch_dtype=torch.bfloat16
        )
        pipeline.to(device)
        pipeline.set_progress_bar_config(disable=True)
        pipeline.scheduler = DDIMScheduler.from_config(
            pipeline.scheduler.config, timestep_spacing="trailing"
        )
        pipeline.unet = torch.compile(pipeline.unet.to(**place))
        pipeline.vae.decode = torch.compile(pipeline.vae.to(**place).decode)
        side = values["start"].shape[1] * FACTOR

        def generate() -> np.ndarray:
            images = pipeline(
                PROMPT,
                negative_prompt=NEGATIVE,
                latents=tensor("start", 1).bfloat16(),
                num_inference_steps=steps,
                guidance_scale=GUIDANCE,
                height=side,
                width=side,
                output_type="np",
            ).images
            return (255 * images).round()

        return generate, peak
    unet = UNet2DConditionModel.from_pretrained(folder / "theirs" / "unet").to(**place)
    unet.train()
    compiled = torch.compile(unet)
    optimizer = torch.optim.AdamW(
        unet.parameters(), RATE, weight_decay=DECAY, eps=EPSILON, fused=True
    )
    noisy, timesteps, context = (
        tensor(name) for name in ("noisy_latents", "timesteps", "context")
    )
    target, losses = tensor("target"), []

    def step() -> list[float]:
        with torch.autocast(device, torch.bfloat16):
            found = compiled(noisy, timesteps.long(), encoder_hidden_states=context).sample
        loss = torch.nn.functional.mse_loss(found.float(), target)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        return losses

    return step, peak


def device_of(side: str) -> str:
    """Name of the device that a side computes on."""
    if side == "jax":
        import jax

        return jax.devices()[0].device_kind
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def work(options: argparse.Namespace) -> None:
    """One side of one job in this process; prints a line of JSON."""
    if options.side == "prepare":
        prepare(options.folder, options.size)
        return
    side = {"jax": ours, "torch": theirs}[options.side]
    start = time.perf_counter()
    action, peak = side(options.job, options.folder, options.size, options.batch, options.steps)
    loaded = time.perf_counter()
    output = np.array(action(), "float32")
    first, spent = time.perf_counter() - loaded, []
    while len(spent) < options.repeats and time.perf_counter() - start < options.limit * 0.8:
        begun = time.perf_counter()
        action()
        spent.append(time.perf_counter() - begun)
    spent = spent or [first]
    np.save(options.folder / f"{options.job}-{options.side}.npy", output)
    line = {
        "device": device_of(options.side),
        "load": round(loaded - start, 2),
        "first_call": round(first, 2),
        "seconds": statistics.median(spent),
        "best": min(spent),
        "peak_mib": peak() // 2**20,
    }
    print(json.dumps(line))


def start(side: str, job: str, folder: str, options: argparse.Namespace) -> dict[str, Any]:
    """What a process of its own reports, or why it could not."""
    for package in PACKAGES.get(side, ()):
        found = subprocess.run(
            [sys.executable, "-c", f"import {package}"], capture_output=True, check=False
        )
        if found.returncode:
            return {"failed": f"{package} is not installed"}
    names = ("size", "batch", "steps", "repeats", "limit")
    more = [f"--{name}={getattr(options, name)}" for name in names]
    command = [sys.executable, __file__, "--side", side, "--job", job, "--folder", folder, *more]
    own = {"HF_HUB_OFFLINE": "1", "KERAS_BACKEND": "tensorflow" if side == "prepare" else "jax"}
    if side == "prepare":
        own["CUDA_VISIBLE_DEVICES"] = ""
    try:
        done = subprocess.run(
            command,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2", **own},
            capture_output=True,
            text=True,
            timeout=options.limit,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"took more than {options.limit} s"}
    if done.returncode:
        return {"failed": done.stderr.strip()[-2000:]}
    return json.loads(done.stdout.splitlines()[-1]) if done.stdout.strip() else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="512", choices=SIZES)
    parser.add_argument("--batch", type=int, default=4, help="of the training step")
    parser.add_argument("--steps", type=int, default=20, help="of DDIM")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--limit", type=int, default=130, help="seconds of each of four processes")
    parser.add_argument("--jobs", nargs="+", default=JOBS, choices=JOBS)
    parser.add_argument("--out", type=Path)
    for name in ("side", "job", "folder"):
        kind = Path if name == "folder" else str
        parser.add_argument(f"--{name}", type=kind, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        work(options)
        return
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        made = start("prepare", "", folder, options)
        if "failed" in made:
            sys.exit(made["failed"])
        for job in options.jobs:
            sides = {side: start(side, job, folder, options) for side in PACKAGES}
            print(job, json.dumps(sides), file=sys.stderr, flush=True)
            if not any("failed" in values for values in sides.values()):
                one, other = (np.load(Path(folder, f"{job}-{side}.npy")) for side in sides)
                sides["ratio"] = sides["jax"]["seconds"] / sides["torch"]["seconds"]
                sides["difference"] = float(np.abs(one - other).max())
            found[job] = sides
    text = json.dumps({"size": options.size, "batch": options.batch, "jobs": found}, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()
