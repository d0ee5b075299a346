"""Settings of a condition: what the network is told beside text, and where the data has it."""

from __future__ import annotations

import re
from typing import Any, Literal

import pydantic
from pydantic import Field
from pydantic_core import PydanticCustomError

from latentddpm.choices import CONDITIONS
from latentddpm.config.section import Section

ALL = ("kind", "dropout")
"""Settings of every kind."""
TAKEN = (
    *("noisy_latents", "timesteps", "context", "token_ids", "guidance_scale", "text"),
    *("time", "conv_in", "conv_out", "norm_out"),
)
"""Names of other inputs and layers of a network, which no condition can have."""


def is_name(text: str) -> bool:
    """True for what a condition can be called: letters, digits and _, and not one of `TAKEN`.

    Args:
        text: any.
    """
    return re.fullmatch(r"[^\W\d]\w*", text) is not None and text not in TAKEN


def check_names(conditions: dict[str, Any]) -> dict[str, Any]:
    """Refuse a name that no condition can have.

    Args:
        conditions: by name.

    Raises:
        PydanticCustomError: naming it.
    """
    for name in conditions:
        if not is_name(name):
            text = f"{name!r:.40} cannot be the name of one; "
            text += "the network has it" if name in TAKEN else "expected letters, digits and _"
            raise PydanticCustomError("name", "{text}", {"text": text})
    return conditions


class ConditionConfig(Section):
    """Condition that the network is told; each kind takes some of the settings."""

    kind: Literal[*CONDITIONS] = Field(
        "class",
        description="class: one word; labels: any words; number: one or several numbers; maps "
        "beside the latents: picture: a second file; edges: line art of the image; "
        "low_resolution: the image reduced; inpainting: a mask, and the image around it",
    )
    column: str | list[str] = Field(
        "folder",
        description="of the metadata, that has it; folder: the name of the image's folder; of "
        "number also several columns; of picture the column with the path of the second file, "
        "where it is not found by suffix",
    )
    dropout: float = Field(
        0.05,
        ge=0,
        lt=1,
        description="share of examples that are not told this alone; training.condition_dropout "
        "is the share that is told nothing; with both at 0, and of inpainting, it is always told",
    )
    words: list[str] | None = Field(
        None, description="of class and labels, in order; null: those of the data"
    )
    combine: Literal["mean", "sum"] = Field(
        "mean", description="of labels: how the embeddings of several words are put together"
    )
    suffix: str = Field(
        ".condition.png",
        pattern=r"^[._-][^/\\]*\.[^/\\.]+$",
        description="of picture: end of the name of the second file, beside the image: "
        "cat.condition.png of cat.jpg",
    )
    through: Literal["autoencoder", "pixels"] | None = Field(
        None,
        description="of picture: its latents, or its pixels as channels; null: autoencoder, "
        "if there is one",
    )
    sigma: float = Field(1.0, gt=0, le=8, description="of edges: blur before the filter, pixels")
    low: float = Field(0.04, gt=0, lt=1, description="of edges: strength of all of a line")
    high: float = Field(0.1, gt=0, lt=1, description="of edges: strength of a part of a line")
    factor: int = Field(2, ge=2, le=8, description="of low_resolution: sides are divided by it")
    noise: float = Field(
        0.0,
        ge=0,
        le=1,
        description="of low_resolution: highest level of the noise that is added, and told",
    )
    masks: int = Field(
        4, ge=1, le=256, description="of inpainting: masks of each image in the latents cache"
    )

    @property
    def is_picture(self) -> bool:
        """True for a map beside the latents."""
        return "column" not in CONDITIONS[self.kind] or self.kind == "picture"

    @pydantic.field_validator("*")
    @classmethod
    def _only_what_the_kind_takes(cls, value: Any, info: pydantic.ValidationInfo) -> Any:
        key, kind = info.field_name, info.data.get("kind")  # the first field, checked before
        taken = kind is None or key in (*ALL, *CONDITIONS[kind])
        if not taken and value != cls.model_fields[key].default:
            known = ", ".join((*CONDITIONS[kind], "dropout"))
            text = f"not a setting of kind {kind}, which takes {known}"
            raise PydanticCustomError("kind", "{text}", {"text": text})
        return value

    @pydantic.model_serializer(mode="wrap")
    def _what_the_kind_takes(self, handler: Any) -> dict[str, Any]:
        taken = (*ALL, *CONDITIONS[self.kind])
        return {key: value for key, value in handler(self).items() if key in taken}
