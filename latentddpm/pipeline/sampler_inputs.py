"""Inputs of a sampler: what it is told, the guided denoiser, and the latents to start from.

prompts ─► text encoder ─► contexts ─► told ─► denoiser: the UNet with classifier-free guidance
noise [, picture ─► encoder ─► latents] ─► noisy latents at the first step
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from latentddpm.clip.tokenizer import CLIPTokenizer
from latentddpm.conditions.conditions import Conditions, Values
from latentddpm.data.conditions.given import Canvas, picture_arrays
from latentddpm.diffusion import samplers
from latentddpm.diffusion.guidance import AutoGuidance, GuidanceChain, GuidanceInterval
from latentddpm.diffusion.inpainting import Inpainting, repaint_weights
from latentddpm.diffusion.options import check_guidance_scale
from latentddpm.diffusion.regions import REGION_WEIGHTS, RegionComposition
from latentddpm.errors import UserError, check_type, one_line
from latentddpm.models.autoencoder.tiling import FirstStage, encode
from latentddpm.models.graph_networks import GraphDenoiser, GraphTextEncoder, is_graph
from latentddpm.models.precision import finite
from latentddpm.pipeline.init_image import InitImage, first_step
from latentddpm.pipeline.model_facts import check_guide, prediction_facts_of
from latentddpm.pipeline.settings import GenerationSettings
from latentddpm.utils.images.pixel_format import PixelFormat
from latentddpm.utils.timing import timed

if TYPE_CHECKING:
    from latentddpm.clip.text_encoder import TextEncoder
    from latentddpm.models.denoisers.base import Denoiser
    from latentddpm.pipeline.latent_diffusion import LatentDiffusion


@dataclass(frozen=True)
class Told:
    """Inputs that tell a network of N images, beside their noisy latents and the timestep.

    Attributes:
        given: input of the network → its values, float32 (N, …), such as
            `{"context": (N, L, d)}`; empty where the network takes no such input.
        without: the same inputs as guidance leads away from them: the text states of the negative
            prompts, and of every other condition the values that tell nothing.
        conditions: condition → names of its inputs, in the model's order. The text is none.

    Example:
        >>> told = Told({"digit": np.eye(10)[[3, 7]]}, {"digit": np.zeros((2, 10))})
        >>> told[1:].given["digit"].shape
        (1, 10)
    """

    given: Mapping[str, Any] = field(default_factory=dict)
    without: Mapping[str, Any] = field(default_factory=dict)
    conditions: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.given)

    def __getitem__(self, rows: slice) -> Told:
        """Inputs of some of the images."""
        return self.map(lambda values: values[rows])

    def __or__(self, other: Told) -> Told:
        """Inputs of both, of the same images."""
        pairs = ((getattr(self, one.name), getattr(other, one.name)) for one in fields(self))
        return Told(*({**own, **more} for own, more in pairs))

    def map(self, change: Callable[[Any], Any]) -> Told:
        """Inputs of the same names, with other values.

        Args:
            change: values → values, such as those on a device.
        """
        given, without = (
            {name: change(values) for name, values in each.items()}
            for each in (self.given, self.without)
        )
        return replace(self, given=given, without=without)

    def chain(
        self, condition_scales: Mapping[str, float], guidance_scale: float
    ) -> tuple[list[Mapping[str, Any]], list[float]]:
        """Stages of guidance and their scales, see `diffusion.guidance.GuidanceChain`.

        Conditions with a scale of their own come first, one after the other. All others, the text
        among them, are the last stage.

        Args:
            condition_scales: condition → its scale.
            guidance_scale: of the last stage.

        Returns:
            Inputs of each stage, the first of which tells nothing; scales of those after it.
        """
        stages, scales, rest = [self.without], [], {*self.given} - {REGION_WEIGHTS}
        for condition, names in self.conditions.items():
            if condition in condition_scales:
                stages.append({**stages[-1], **{name: self.given[name] for name in names}})
                scales.append(condition_scales[condition])
                rest -= {*names}
        if rest:
            stages.append(self.given)
            scales.append(guidance_scale)
        return stages, scales


def told_texts(
    text_encoder: TextEncoder | GraphTextEncoder | None,
    tokenizer: CLIPTokenizer | None,
    prompts: Sequence[str],
    negative_prompts: Sequence[str],
) -> Told:
    """Inputs that tell a network of N prompts; each distinct text is encoded once.

    Args:
        text_encoder, tokenizer: of the model; None for an unconditional one.
        prompts, negative_prompts: one for each image.

    Returns:
        Text states of the prompts and of the negative prompts, float32 (N, L, d) each, as
        `context`; nothing without a text encoder.
    """
    if text_encoder is None:
        return Told()
    distinct = list(dict.fromkeys([*negative_prompts, *prompts]))
    token_ids = tokenizer(distinct)
    states = finite(text_encoder, "text encoder")({"token_ids": token_ids})
    states = np.asarray(states, np.float32)
    row = {text: k for k, text in enumerate(distinct)}
    given, without = (
        {"context": states[[row[text] for text in texts]]} for texts in (prompts, negative_prompts)
    )
    return Told(given, without)


def told_conditions(conditions: Conditions, rows: Sequence[Values], canvas: Canvas) -> Told:
    """Inputs that tell a network the conditions of N images.

    Args:
        conditions: of the model.
        rows: values of each image, returned by `Conditions.rows`.
        canvas: of the images, for pictures; see `canvas_of`.

    Raises:
        UserError: a value is missing that the network has to be told.
    """
    given = conditions.vector_arrays(rows) | picture_arrays(conditions, rows, canvas)
    names = {one.name: [entry.name for entry in one.inputs()] for one in conditions}
    return Told(given, conditions.null_arrays(given), names)


def canvas_of(
    autoencoder: FirstStage,
    size: tuple[int, ...],
    pixels: PixelFormat,
    start: InitImage | None,
    tile: str | int,
) -> Canvas:
    """Canvas of images, with the picture that is painted in.

    Args:
        autoencoder: to encode pictures.
        size: (height, width) of the output, in pixels.
        pixels: format of the model.
        start: picture, with its mask; None for none.
        tile: see `models.autoencoder.tiling.encode`.
    """
    latent_size = tuple(side // autoencoder.downsample_factor for side in size)

    def latents(images: np.ndarray) -> np.ndarray:
        with timed("encoder"):
            mean, _ = encode(autoencoder, images, tile)
        return np.asarray(autoencoder.to_latents(mean), np.float32)

    around = () if start is None or start.mask is None else (start.init_image, start.repaint)
    return Canvas(size, latent_size, pixels, latents, *around)


AUTOGUIDANCE_SCALE = 2.0
"""Default scale of autoguidance, about the best that Karras 2024 finds for classes of images."""


@dataclass(frozen=True)
class Guide:
    """Weaker network that autoguidance leads away from, and what it is told of N images.

    Attributes:
        unet: of the weaker model.
        told: the same as the guided network, in the weaker model's own text states.
        scale: w, at least 0; 1 is no guidance.
    """

    unet: Denoiser | GraphDenoiser
    told: Told
    scale: float

    def __getitem__(self, rows: slice) -> Guide:
        """Guide of some of the images."""
        return replace(self, told=self.told[rows])


def guide_scale(
    model: LatentDiffusion, guide: LatentDiffusion | None, scale: float | None
) -> float:
    """Scale of autoguidance, after a check that the weaker model predicts what the model does.

    Args:
        model: that is guided.
        guide: the weaker one; None for no autoguidance.
        scale: as given; None for the default.

    Raises:
        UserError: a scale that is none, or is given without a weaker model; or one that predicts
            something else.
    """
    name = "autoguidance_scale"
    if guide is None:
        if scale is not None:
            raise UserError(f"{name}: {scale!r} without autoguidance, the weaker model")
        return 1.0
    if getattr(guide, "unet", None) is None:
        raise UserError(f"autoguidance: {one_line(guide, 60)}, expected a model with a UNet")
    scale = check_type(name, AUTOGUIDANCE_SCALE if scale is None else scale, float)
    check_guidance_scale(scale, name)
    if guide is not model:
        check_guide(prediction_facts_of(model), prediction_facts_of(guide))
    return scale


def guided_denoiser(
    unet: Denoiser | GraphDenoiser,
    told: Told,
    settings: GenerationSettings,
    num_train_timesteps: int,
    guide: Guide | None = None,
) -> samplers.Denoiser:
    """Denoiser of one batch, with the guidance of the settings.

    Args:
        unet: of the model.
        told: of the B images of the batch; empty for an unconditional model.
        settings: for those of guidance.
        num_train_timesteps: T.
        guide: of the same images; None without autoguidance.

    Returns:
        A function (noisy latents (B, h, w, c), timesteps (B,)) → prediction (B, h, w, c).
    """
    plain, guided = _denoisers(unet, told, settings)
    if guide is not None:
        guided = AutoGuidance(guided, _denoisers(guide.unet, guide.told, settings)[1], guide.scale)
    if guided is plain or settings.guidance_interval == [0.0, 1.0]:
        return guided
    return GuidanceInterval(guided, plain, settings.guidance_interval, num_train_timesteps)


def _denoisers(
    unet: Denoiser | GraphDenoiser, told: Told, settings: GenerationSettings
) -> tuple[samplers.Denoiser, samplers.Denoiser]:
    """Denoiser that is told everything, and the same with guidance; itself where there is none."""
    predict = finite(unet, "denoiser")

    def denoise(noisy_latents: Any, timesteps: Any, inputs: Any = None) -> Any:
        return predict({"noisy_latents": noisy_latents, "timesteps": timesteps, **(inputs or {})})

    if not told:
        return denoise, denoise
    if REGION_WEIGHTS in told.given and not unet.regions:
        denoise = RegionComposition(denoise)
    told = told.map(partial(on_device, unet))
    stages, scales = told.chain(settings.condition_scales, settings.guidance_scale)
    guided = GuidanceChain(denoise, stages, scales, settings.guidance_rescale)
    plain = guided if len(guided.scales) == 1 else GuidanceChain(denoise, stages[-1:], [])
    return plain, guided


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
    trained: bool = False,
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
        trained: the network is told the mask and the rest of the picture, so that the sampler
            is taken as it is, and begins with pure noise at strength 1.

    Returns:
        Noisy latents (N, h, w, c), the sampler, which with a mask keeps the rest of the picture,
        and the step that it starts at.

    Raises:
        UserError: the strength leaves no step to run, or a `start_step` beside a picture.
    """
    first = first_step(start, sampler.num_steps, start_step)
    if start is None or (trained and start.mask is not None and not first):
        starts = sampler.add_noise(np.zeros_like(noise), noise, first) if first else noise
        return starts, sampler, first
    with timed("encoder"):
        mean, _ = encode(autoencoder, pixels.to_images(start.init_image)[None], tile)
        known = np.asarray(autoencoder.to_latents(mean))
    starts = sampler.add_noise(known, noise, first)
    if start.mask is not None and not trained:
        weights = repaint_weights(start.repaint, autoencoder.downsample_factor)
        sampler = Inpainting(sampler, known, weights)
    return starts, sampler, first
