"""Region: a mask and what is told inside it; all that lies in none is told what the picture is.

    model.generate("a forest", regions=[("left.png", "a red apple"), ("right.png", "a cat")])
    model.generate(conditions={"digit": 3}, regions=[Region("left.png", conditions={"digit": 7})])

A mask is a picture of the size that is drawn, or of the size of the picture to start from, with
which it is scaled and cropped. White is the region, gray takes part of it. Neither Keras nor
TensorFlow is imported here, so that a command refuses a wrong file at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from latentddpm.conditions.base import VectorCondition
from latentddpm.conditions.conditions import Conditions
from latentddpm.data.pictures.given import open_given, own_size
from latentddpm.data.pictures.masks import read_mask
from latentddpm.diffusion.regions import region_weights
from latentddpm.errors import UserError
from latentddpm.pipeline.settings import ModelFacts
from latentddpm.utils.images.pictures import Picture
from latentddpm.utils.images.pixel_format import RGB, PixelFormat

BETWEEN = ";"
"""Mark between several labels of a region."""


@dataclass(frozen=True)
class Region:
    """Region of a picture, and what is told inside it.

    Args:
        mask: a file, PIL image or array (also bool), white where the region is.
        prompt: what to show there; "" for nothing in particular.
        conditions: values there by the names of the model's conditions, such as `{"digit": 7}`.
            One that is left out is as in the rest of the picture.

    Example:
        >>> left = np.zeros((128, 128), bool)
        >>> left[:, :64] = True
        >>> regions = [latentddpm.Region(left, "a red apple"), latentddpm.Region(~left, "a cat")]
        >>> regions[1].prompt
        'a cat'
    """

    mask: Picture
    prompt: str = ""
    conditions: Mapping[str, Any] = field(default_factory=dict)


def region_of_words(mask: Picture, words: str, facts: ModelFacts) -> Region:
    """Region of the option `--region`.

    Args:
        mask: of the region.
        words: a prompt; for a model without text labels, as `--label` takes them, with a
            semicolon between several.
        facts: of the model.

    Raises:
        UserError: a label that the model does not have.
    """
    if facts.has_text or not facts.conditions.vectors:
        return Region(mask, words)
    labels = [one.strip() for one in words.split(BETWEEN) if one.strip()]
    found: dict[str, Any] = {}
    for label in labels:
        try:
            (values,) = facts.conditions.parse([label])
        except UserError as error:
            raise UserError(str(error).replace("--label", f"--region {mask}", 1)) from None
        found |= values
    return Region(mask, conditions=found)


def read_regions(
    regions: Iterable[Region | tuple[Picture, str]] | None,
    facts: ModelFacts,
    size: tuple[int, ...],
    init_image: Picture | None = None,
    pixels: PixelFormat = RGB,
) -> list[Region]:
    """Regions of a call, with their masks at the output size.

    Args:
        regions: each a `Region` or (mask, prompt); None for none.
        facts: of the model.
        size: (height, width) of the output, in pixels.
        init_image: picture to start from, whose size the masks have; None for the output's.
        pixels: format of the model.

    Returns:
        The regions, with masks uint8 (H, W).

    Raises:
        UserError: something else than a region, a mask that cannot be read or has another size, or
            a model that draws signals or cannot be told what a region says.
    """
    if isinstance(regions, Region | str) or not isinstance(regions, Iterable | None):
        kind = type(regions).__name__
        raise UserError(f"regions: {kind}, expected a list of (mask, prompt)")
    regions = list(regions or ())
    names = ["region"] if len(regions) == 1 else [f"region {k + 1}" for k in range(len(regions))]
    own, of = size, "the picture that is drawn"
    if regions and init_image is not None:
        own = own_size("init_image", open_given("init_image", init_image, pixels))
        of = "the picture to start from"
    found = []
    for name, one in zip(names, regions, strict=True):
        region = _checked(name, one, facts)
        found.append(replace(region, mask=read_mask(name, region.mask, size, own, of)))
    return found


def weights_of(regions: Sequence[Region], downsample_factor: int) -> np.ndarray:
    """Weights of the rest of the picture and of its regions.

    Args:
        regions: returned by `read_regions`.
        downsample_factor: of the autoencoder.

    Returns:
        float32 (h, w, R + 1), of sum 1; see `diffusion.regions`.
    """
    return region_weights(np.stack([one.mask for one in regions]) / 255, downsample_factor)


def _checked(name: str, given: Any, facts: ModelFacts) -> Region:
    """Region of an argument, which this model can be told."""
    if isinstance(given, tuple | list) and len(given) == 2:
        given = Region(*given)
    if not isinstance(given, Region):
        raise UserError(f"{name}: {type(given).__name__}, expected (mask, prompt)")
    if not isinstance(given.prompt or "", str):
        raise UserError(f"{name}: prompt: {given.prompt!r:.80}, expected text")
    if facts.spatial_dims != 2:
        raise UserError(f"{name}: this model draws signals, which have no regions")
    if not facts.has_text and not facts.conditions.vectors:
        raise UserError(
            f"{name}: {given.prompt!r:.80}, but this model is unconditional: no part of a picture "
            "can be told anything"
        )
    if given.prompt and not facts.has_text:
        raise UserError(
            f"{name}: {given.prompt!r:.80}, but this model takes no prompt; give conditions"
        )
    return Region(given.mask, given.prompt or "", _values(name, given, facts.conditions))


def _values(name: str, region: Region, conditions: Conditions) -> dict[str, Any]:
    """Values of a region, as the model's conditions take them; None for "not told"."""
    found = {}
    for key, value in (region.conditions or {}).items():
        condition = conditions[key]
        if not isinstance(condition, VectorCondition):
            raise UserError(f"{name}: {key} is a picture, which is told to the whole image")
        if value is None and not condition.null:
            raise condition.refuse_null()
        found[key] = None if value is None else condition.check(value)
    return found
