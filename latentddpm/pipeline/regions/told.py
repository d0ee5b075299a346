"""Inputs of a network that is told different things in different regions of a picture.

    told of the picture (N, …)    ┐
    told in region 1 … R (N, …)   ┴─►  (N, R + 1, …)  and weights (N, h, w, R + 1)

Parts that cover nothing are left out. Where a single part is left, it is everywhere, and the
network is told it as without regions: a region of the whole picture gives the picture of its
prompt, and one without a white pixel that of the main prompt, bit by bit.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from latentddpm.conditions.conditions import Conditions, Values
from latentddpm.diffusion.regions import REGION_WEIGHTS
from latentddpm.errors import UserError
from latentddpm.models.graph_networks import GraphDenoiser, is_graph
from latentddpm.pipeline.regions.region import Region
from latentddpm.pipeline.told.told import Told

if TYPE_CHECKING:
    from latentddpm.models.denoisers.base import Denoiser

_masked: weakref.WeakKeyDictionary[Denoiser, Denoiser] = weakref.WeakKeyDictionary()


def told_in_parts(
    texts: Told,
    told: Told,
    rows: Sequence[Values],
    regions: Sequence[Region],
    conditions: Conditions,
) -> list[Told]:
    """Inputs that tell a network of N images, in the rest of them and in each region.

    Args:
        texts: of the N images, and then of the N images in each region, one after the other.
        told: conditions of the images.
        rows: values of the conditions, of each image.
        regions: returned by `read_regions`.
        conditions: of the model.

    Returns:
        R + 1 of them; a region has the pictures of the image, and values of its own.
    """
    count = len(rows)
    parts = [texts[:count] | told]
    for number, region in enumerate(regions, 1):
        inside = [{**row, **region.conditions} for row in rows]
        given = {**told.given, **conditions.vector_arrays(inside)}
        own = Told(given, conditions.null_arrays(given), told.conditions)
        parts.append(texts[number * count : (number + 1) * count] | own)
    return parts


def told_in_regions(parts: Sequence[Told], weights: np.ndarray, names: Sequence[str] = ()) -> Told:
    """Inputs that tell a network all parts at once.

    Args:
        parts: of the rest and of R regions, (N, …) each.
        weights: of the same, float32 (h, w, R + 1).
        names: inputs that differ between the parts; none for all.

    Returns:
        Those inputs, (N, P, …), for the P parts that cover anything, and their
        `"region_weights"`, (N, h, w, P). Where a single part does, its own inputs.
    """
    covered = np.flatnonzero(weights.any(axis=(0, 1)))
    first, *others = (parts[k] for k in covered)
    if not others:
        return first
    names = names or [*first.given]
    given, without = (
        {**own, **{name: np.stack([own[name], *(one[name] for one in more)], 1) for name in names}}
        for own, *more in (
            [one.given for one in (first, *others)],
            [one.without for one in (first, *others)],
        )
    )
    rows = len(given[names[0]])
    shares = np.broadcast_to(weights[..., covered], (rows, *weights.shape[:-1], len(covered)))
    both = {REGION_WEIGHTS: shares}
    return Told(given | both, without | both, first.conditions)


def network_in_regions(unet: Denoiser | GraphDenoiser, told: Told) -> Denoiser | GraphDenoiser:
    """Network with masked attention, for texts that differ between regions.

    It is a copy, made once and given the weights of the network at every call. Where one text is
    told everywhere it is the network itself.

    Args:
        unet: of the model.
        told: returned by `told_in_regions`.

    Raises:
        UserError: the network is a graph.
    """
    if REGION_WEIGHTS not in told.given:
        return unet
    if is_graph(unet):
        raise UserError(
            "regions: need the networks of LatentDiffusion.load(…, engine='keras'), without cache"
        )
    from latentddpm.models.functional import rebuild

    parts = told.given[REGION_WEIGHTS].shape[-1]
    found = _masked.get(unet)
    if found is None or found.regions != parts:
        found = _masked[unet] = rebuild(unet, regions=parts)
        found.jit_compile = unet.jit_compile
    else:
        found.set_weights(unet.get_weights())
    return found
