"""Inputs that tell a network of N images: texts, and the conditions of the model.

prompts ─► text encoder ─► context ─┐
values ─► conditions ─► arrays ────►└─► Told: given, and without
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from latentddpm.clip.tokenizer import CLIPTokenizer
from latentddpm.conditions.conditions import Conditions, Values
from latentddpm.data.conditions.given import Canvas, picture_arrays
from latentddpm.diffusion.regions import REGION_WEIGHTS
from latentddpm.models.autoencoder.tiling import FirstStage, encode
from latentddpm.models.graph_networks import GraphTextEncoder
from latentddpm.models.precision import finite
from latentddpm.pipeline.start.init_image import InitImage
from latentddpm.utils.images.pixel_format import PixelFormat
from latentddpm.utils.timing import timed

if TYPE_CHECKING:
    from latentddpm.clip.text_encoder import TextEncoder


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
