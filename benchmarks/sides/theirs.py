"""Their side of `vs_diffusers.py`: diffusers on PyTorch."""

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
    STEPS,
    Action,
    arrays,
)


def cold(side: str, folder: Path, size: str) -> Action:
    """Imports, reading the model and one image."""
    return lambda: actions(side, folder, size, "float32")("generate", 1)()


def actions(side: str, folder: Path, size: str, precision: str) -> Callable[..., Action]:
    """Function (job, batch) → action, each of which loads what it needs."""
    import torch
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel

    last = side == "torch-channels-last"
    layout = torch.channels_last if last else torch.contiguous_format
    dtype = getattr(torch, precision)
    theirs = folder / "theirs"

    def tensor(value: np.ndarray) -> Any:
        value = torch.from_numpy(value)
        if value.ndim == 4:
            value = value.permute(0, 3, 1, 2).contiguous(memory_format=layout)
        return value.to(dtype) if value.is_floating_point() else value.long()

    def load(cls: Any, part: str) -> Any:
        return cls.from_pretrained(theirs / part, torch_dtype=dtype).to(memory_format=layout)

    def without_gradient(function: Action) -> Action:
        def run() -> np.ndarray:
            with torch.no_grad():
                return function().permute(0, 2, 3, 1).float().numpy()

        return run

    def generate(start: np.ndarray) -> Action:
        pipeline = StableDiffusionPipeline.from_pretrained(theirs, torch_dtype=dtype)
        pipeline.set_progress_bar_config(disable=True)
        pipeline.unet.to(memory_format=layout)
        pipeline.vae.to(memory_format=layout)
        pixels = start.shape[1] * FACTOR

        def run() -> np.ndarray:
            images = pipeline(
                [PROMPT] * len(start),
                negative_prompt=[NEGATIVE] * len(start),
                latents=tensor(start),
                num_inference_steps=STEPS,
                guidance_scale=GUIDANCE,
                height=pixels,
                width=pixels,
                output_type="np",
            ).images
            return (255 * images).round()

        return run

    def action(job: str, batch: int) -> Action:
        values = arrays(size, batch)
        if job == "generate":
            return generate(values["start"])
        if job == "vae-encode":
            vae, image = load(AutoencoderKL, "vae"), tensor(values["image"])
            return without_gradient(lambda: vae.encode(image).latent_dist.mean)
        if job == "vae-decode":
            vae, latent = load(AutoencoderKL, "vae"), tensor(values["latent"])
            scale = vae.config.scaling_factor
            return without_gradient(lambda: vae.decode(latent / scale).sample)
        unet = load(UNet2DConditionModel, "unet")
        names = ("noisy_latents", "timesteps", "context", "target")
        noisy, timesteps, context, target = (tensor(values[name]) for name in names)

        def forward() -> Any:
            return unet(noisy, timesteps, encoder_hidden_states=context).sample

        if job == "unet-forward":
            return without_gradient(forward)
        optimizer = torch.optim.AdamW(
            unet.parameters(), RATE, weight_decay=DECAY, eps=EPSILON, fused=True
        )
        unet.train()
        losses: list[float] = []

        def step() -> list[float]:
            loss = torch.nn.functional.mse_loss(forward(), target)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(unet.parameters(), CLIP)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(loss.item())
            return losses

        return step

    return action
