"""Network of a call, and all that it is told: texts, conditions, regions, ControlNets.

texts, conditions ─► Told ─► in regions: masked attention, or a composition
                         └─► with ControlNets: their pictures
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from latentddpm.conditions.conditions import Values
from latentddpm.models.graph_networks import GraphDenoiser
from latentddpm.pipeline.regions.region import Region, weights_of
from latentddpm.pipeline.regions.told import network_in_regions, told_in_parts, told_in_regions
from latentddpm.pipeline.told.told import Told, told_texts

if TYPE_CHECKING:
    from latentddpm.models.denoisers.base import Denoiser


def network_of(
    model: Any,
    texts: tuple[Sequence[str], Sequence[str]],
    conditions: Told,
    rows: Sequence[Values],
    regions: Sequence[Region],
) -> tuple[Denoiser | GraphDenoiser, Told]:
    """Network of a model, and what it is told of N images, also in regions.

    Args:
        model: a `LatentDiffusion`.
        texts: prompts and negative prompts, one for each image.
        conditions: inputs of the conditions of the images.
        rows: values of the conditions of each image.
        regions: parts of the images that are told something else.
    """
    prompts, negatives = texts
    inside = [one.prompt for one in regions for _ in prompts]
    told = told_texts(
        model.text_encoder,
        model.tokenizer,
        [*prompts, *inside],
        list(negatives) * (1 + len(regions)),
    )
    if not regions:
        return model.unet, told | conditions
    parts = told_in_parts(told, conditions, rows, regions, model.conditions)
    weights = weights_of(regions, model.autoencoder.downsample_factor)
    composes = model.text_encoder is None or any(one.conditions for one in regions)
    told = told_in_regions(parts, weights, () if composes else ("context",))
    return model.unet if composes else network_in_regions(model.unet, told), told
