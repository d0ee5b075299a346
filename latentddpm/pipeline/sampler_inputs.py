"""Inputs of a sampler: text contexts, the guided denoiser, and the latents to start from.

prompts ─► text encoder ─► contexts ─► denoiser: the UNet with classifier-free guidance
noise [, picture ─► encoder ─► latents] ─► noisy latents at the first step
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from latentddpm.clip.tokenizer import CLIPTokenizer
from latentddpm.diffusion import samplers
from latentddpm.diffusion.guidance import ClassifierFreeGuidance
from latentddpm.diffusion.inpainting import Inpainting, repaint_weights
from latentddpm.models.autoencoder.tiling import FirstStage, encode
from latentddpm.models.graph_networks import GraphDenoiser, GraphTextEncoder, is_graph
from latentddpm.models.precision import finite
from latentddpm.pipeline.init_image import InitImage, first_step
from latentddpm.pipeline.settings import GenerationSettings
from latentddpm.utils.images.pixel_format import PixelFormat
from latentddpm.utils.timing import timed

if TYPE_CHECKING:
    from latentddpm.clip.text_encoder import TextEncoder
    from latentddpm.models.denoisers.base import Denoiser

Contexts = tuple[np.ndarray, np.ndarray]
"""Text states of prompts and of their negative prompts, float32 (N, L, d) each."""


def text_contexts(
    text_encoder: TextEncoder | GraphTextEncoder | None,
    tokenizer: CLIPTokenizer | None,
    prompts: Sequence[str],
    negative_prompts: Sequence[str],
) -> Contexts | None:
    """Contexts of N prompts; each distinct text is encoded once.

    Args:
        text_encoder, tokenizer: of the model; None for an unconditional one.
        prompts, negative_prompts: one for each image.

    Returns:
        Text states of the prompts and of the negative prompts, float32 (N, L, d) each; None
        without a text encoder.
    """
    if text_encoder is None:
        return None
    distinct = list(dict.fromkeys([*negative_prompts, *prompts]))
    token_ids = tokenizer(distinct)
    states = finite(text_encoder, "text encoder")({"token_ids": token_ids})
    states = np.asarray(states, np.float32)
    row = {text: k for k, text in enumerate(distinct)}
    return tuple(states[[row[text] for text in texts]] for texts in (prompts, negative_prompts))


def guided_denoiser(
    unet: Denoiser | GraphDenoiser, contexts: Contexts | None, settings: GenerationSettings
) -> samplers.Denoiser:
    """Denoiser of one batch, with classifier-free guidance where there are contexts.

    Args:
        unet: of the model.
        contexts: of the batch, (B, L, d) each; None for an unconditional model.
        settings: for `guidance_scale` and `guidance_rescale`.

    Returns:
        A function (noisy latents (B, h, w, c), timesteps (B,)) → prediction (B, h, w, c).
    """
    predict = finite(unet, "denoiser")

    def denoise(noisy_latents: Any, timesteps: Any, context: Any = None) -> Any:
        inputs = {"noisy_latents": noisy_latents, "timesteps": timesteps}
        if context is not None:
            inputs["context"] = context
        return predict(inputs)

    if contexts is None:
        return denoise
    contexts = tuple(on_device(unet, one) for one in contexts)
    scale, rescale = settings.guidance_scale, settings.guidance_rescale
    return ClassifierFreeGuidance(denoise, *contexts, scale, rescale)


def on_device(network: Denoiser | GraphDenoiser, values: np.ndarray) -> Any:
    """Values as the network computes with them: a tensor of its backend; NumPy's for a graph.

    Args:
        network: that will be called with them.
        values: float32.
    """
    if is_graph(network):
        return values
    import keras

    return keras.ops.convert_to_tensor(values)


def start_latents(
    autoencoder: FirstStage,
    start: InitImage | None,
    sampler: samplers.Sampler,
    noise: np.ndarray,
    tile: str | int,
    pixels: PixelFormat,
    start_step: int = 0,
) -> tuple[np.ndarray, samplers.Sampler, int]:
    """Latents to start from: the noise itself, or those of a picture with noise added.

    Args:
        autoencoder: to encode the picture.
        start: picture, mask and strength; None to start from the noise.
        sampler: of the settings.
        noise: standard normal, float32 (N, h, w, c).
        tile: see `models.autoencoder.tiling.encode`.
        pixels: format of the picture.
        start_step: first step from noise, which from 1 on is scaled as that level expects it.

    Returns:
        Noisy latents (N, h, w, c), the sampler, which with a mask keeps the rest of the picture,
        and the step that it starts at.

    Raises:
        UserError: the strength leaves no step to run, or a `start_step` beside a picture.
    """
    first = first_step(start, sampler.num_steps, start_step)
    if start is None:
        starts = sampler.add_noise(np.zeros_like(noise), noise, first) if first else noise
        return starts, sampler, first
    with timed("encoder"):
        mean, _ = encode(autoencoder, pixels.to_images(start.init_image)[None], tile)
        known = np.asarray(autoencoder.to_latents(mean))
    starts = sampler.add_noise(known, noise, first)
    if start.mask is not None:
        weights = repaint_weights(start.repaint, autoencoder.downsample_factor)
        sampler = Inpainting(sampler, known, weights)
    return starts, sampler, first
