"""Summary of a model in a few lines, as `print(model)` shows it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from latentddpm.models.autoencoder.pixel_space import PixelSpace


def describe_model(model: Any) -> str:
    """Description of a model in a few lines, as `print(model)` shows it.

    Args:
        model: a `LatentDiffusion`, whose parts may be None.
    """
    return "\n".join(_lines(model))


def _lines(model: Any) -> Iterator[str]:
    unit = "samples" if model.pixels.spatial_dims == 1 else "pixels"
    size = f"{'×'.join(map(str, model.image_size))} {unit}" if model.image_size else "any size"
    yield f"LatentDiffusion, {size}" + (f", digest {model.digest}" if model.digest else "")
    if isinstance(autoencoder := model.autoencoder, PixelSpace):
        yield f"  {unit:<13} of {autoencoder.image_channels} channels, no autoencoder"
    elif autoencoder is not None:
        facts = f"{autoencoder.downsample_factor}× smaller latents of "
        yield _row("autoencoder", autoencoder, f"{facts}{autoencoder.latent_channels} channels")
    if (unet := model.unet) is not None:
        width = unet.context_dim
        yield _row("unet", unet, "unconditional" if width is None else f"context of {width}")
    if (encoder := model.text_encoder) is not None:
        yield _row("text_encoder", encoder, f"{encoder.context_length} tokens")
    for one in model.conditions:
        yield f"  condition     {one.name} ({one.kind}): {one.describe()}"
    if (schedule := model.schedule) is not None:
        steps, kind = schedule.num_train_timesteps, schedule.prediction_type
        name = getattr(schedule, "beta_schedule", schedule.kind)
        yield f"  schedule      {name}, {steps} timesteps, predicts {kind}"
    if model.unet is not None:
        words = (f"{name} {value}" for name, value in model.defaults.items() if value is not None)
        yield f"  generates     {', '.join(words)}"
    for lora in model.loras:
        yield f"  lora          {lora['file']}, scale {lora['scale']:g}"


def _row(name: str, network: Any, facts: str) -> str:
    return f"  {name:<13} {network.count_params():,} parameters, {facts}"
