"""Settings of a ControlNet: the pictures that a finished model learns to follow."""

from __future__ import annotations

from typing import Literal

import pydantic
from pydantic import Field
from pydantic_core import PydanticCustomError

from latentddpm.config.conditions import ConditionConfig
from latentddpm.config.section import Section

SUFFIX = ConditionConfig.model_fields["suffix"].default


class ControlConfig(Section):
    """ControlNet of a finished model (`init`), trained alone; the model stays as it is."""

    kind: Literal["none", "picture", "edges"] | None = Field(
        None,
        description="picture: a second picture of each image, of column or suffix; edges: line "
        "art made from the image itself; null: picture where column or suffix is set, else none",
    )
    column: str = Field(
        "", description="of the metadata, with the path of the picture, relative to the data"
    )
    suffix: str = Field(
        "",
        pattern=r"^([._-][^/\\]*\.[^/\\.]+)?$",
        description=f"of the picture beside its image: {SUFFIX} finds NAME{SUFFIX} beside "
        "NAME.png, and is the default of kind picture",
    )
    storage: Literal["float32", "float16"] = Field(
        "float32", description="of the file; float16 halves it"
    )

    @pydantic.model_validator(mode="after")
    def _one_way_to_the_picture(self) -> ControlConfig:
        named = [key for key in ("column", "suffix") if getattr(self, key)]
        if len(named) > 1:
            raise PydanticCustomError("control", "column or suffix, not both")
        if named and self.kind in ("none", "edges"):
            text = f"{named[0]} is a setting of kind picture, and kind is {self.kind}"
            raise PydanticCustomError("control", "{text}", {"text": text})
        if self.kind is None:
            self.kind = "picture" if named else "none"
            self.model_fields_set.discard("kind")
        return self

    @property
    def trained(self) -> bool:
        """True where the run trains a ControlNet."""
        return self.kind != "none"
