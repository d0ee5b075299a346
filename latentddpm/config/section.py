"""Section of a configuration: the class of all of them, and types that they share."""

from __future__ import annotations

from typing import Annotated, Any, get_args

import pydantic
from pydantic import Field
from pydantic_core import PydanticCustomError


class Section(pydantic.BaseModel):
    """Section of a configuration; unknown keys are refused."""

    model_config = pydantic.ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False)

    @pydantic.field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, info: pydantic.ValidationInfo) -> Any:
        """Refuse YAML's `true` (also `yes`, `on`), which pydantic would accept as the number 1."""
        annotation = cls.model_fields[info.field_name].annotation
        if annotation is not bool and bool not in get_args(annotation):
            for one in value if isinstance(value, list) else [value]:
                if isinstance(one, bool):
                    raise PydanticCustomError("bool", "expected a value, not true or false")
        return value


Multipliers = Annotated[list[pydantic.PositiveInt], Field(min_length=1)]


Window = Annotated[list[float], Field(min_length=2, max_length=2)]
"""Lowest and highest of some values."""


Betas = Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)]
"""Decay of AdamW's two moments."""
