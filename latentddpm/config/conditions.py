"""Settings of a condition: what the network is told beside text, and where the data has it."""

from __future__ import annotations

from typing import Any, Literal

import pydantic
from pydantic import Field
from pydantic_core import PydanticCustomError

from latentddpm.choices import CONDITIONS
from latentddpm.config.section import Section

ALL = ("kind", "dropout")
"""Settings of every kind."""


class ConditionConfig(Section):
    """Condition that the network is told; each kind takes some of the settings."""

    kind: Literal[*CONDITIONS] = Field(
        "class",
        description="class: one word; labels: any words; number: one or several numbers",
    )
    column: str | list[str] = Field(
        "folder",
        description="of the metadata, that has it; folder: the name of the image's folder; of "
        "number also several columns",
    )
    dropout: float = Field(
        0.05,
        ge=0,
        lt=1,
        description="share of examples that are not told this alone; training.condition_dropout "
        "is the share that is told nothing; with both at 0 it is always told",
    )
    words: list[str] | None = Field(
        None, description="of class and labels, in order; null: those of the data"
    )
    combine: Literal["mean", "sum"] = Field(
        "mean", description="of labels: how the embeddings of several words are put together"
    )

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
