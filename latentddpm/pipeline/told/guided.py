"""Guided denoisers of a batch: guidance by what is told, in an interval, away from a weaker model.

network ─► chain of guidance ─► away from the weaker network ─► in an interval of timesteps
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from latentddpm.diffusion import samplers
from latentddpm.diffusion.guidance import AutoGuidance, GuidanceChain, GuidanceInterval
from latentddpm.diffusion.options import check_guidance_scale
from latentddpm.diffusion.regions import REGION_WEIGHTS, RegionComposition
from latentddpm.errors import UserError, check_type, one_line
from latentddpm.models.graph_networks import GraphDenoiser, is_graph
from latentddpm.models.precision import finite
from latentddpm.pipeline.model_facts import check_guide, prediction_facts_of
from latentddpm.pipeline.settings import GenerationSettings
from latentddpm.pipeline.told.told import Told

if TYPE_CHECKING:
    from latentddpm.models.denoisers.base import Denoiser

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


def guide_scale(model: Any, guide: Any, scale: float | None) -> float:
    """Scale of autoguidance, after a check that the weaker model predicts what the model does.

    Args:
        model: a `LatentDiffusion` that is guided.
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
