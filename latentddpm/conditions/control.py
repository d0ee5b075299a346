"""Control: what a ControlNet sees of each image, a picture in pixels at full size.

    picture   a second picture of the image           edges   line art of the image itself

It is no condition of the model: a ControlNet is a network beside it, which is always told its
picture, RGB in [0, 1] as in diffusers (see `models.denoisers.control`). Line art is that of
`conditions.edges`, white on black.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from latentddpm.conditions.base import Condition, Input
from latentddpm.conditions.edges import edges_of
from latentddpm.config import ConditionConfig, ControlConfig
from latentddpm.config.control import SUFFIX

CONTROL = "control"
"""Name of the input, and the way that it enters."""
KINDS = ("picture", "edges")
CHANNELS = 3


@dataclass(frozen=True)
class ControlCondition(Condition):
    """Control of a ControlNet: where its pictures are from.

    Attributes:
        source: "picture" or "edges".
        column: of the metadata, with the path of a second picture; "" for none.
        suffix: of a second picture beside its image; "" for none.
    """

    name: str = CONTROL
    null: bool = False
    source: str = KINDS[0]
    column: str = ""
    suffix: str = ""

    kind: ClassVar[str] = CONTROL

    @classmethod
    def of(cls, settings: ControlConfig) -> Self | None:
        """Control of a configuration; None where no ControlNet is trained.

        Args:
            settings: of the run.
        """
        if not settings.trained:
            return None
        suffix = settings.suffix
        if settings.kind == "picture" and not settings.column:
            suffix = suffix or SUFFIX
        return cls(source=settings.kind, column=settings.column, suffix=suffix)

    @property
    def pair(self) -> ConditionConfig | None:
        """Settings by which second pictures are found, see `data.conditions.pairs`; or None."""
        if self.source != "picture":
            return None
        named = {"column": self.column} if self.column else {"suffix": self.suffix}
        return ConditionConfig(kind="picture", **named)

    def inputs(self) -> tuple[Input, ...]:
        return (Input(self.name, CONTROL, CHANNELS),)

    def to_json(self) -> dict[str, Any]:
        named = {key: getattr(self, key) for key in ("column", "suffix")}
        return {"kind": self.source, **{key: value for key, value in named.items() if value}}

    def describe(self) -> str:
        if self.source == "edges":
            return "line art, white on black"
        return f"a picture, {self.column or '*' + self.suffix} of the data"


def line_art(pixels: np.ndarray) -> np.ndarray:
    """Line art of an image, as a ControlNet sees it.

    Args:
        pixels: uint8 (H, W, 3).

    Returns:
        uint8 (H, W, 3): 255 on lines, 0 elsewhere.
    """
    lines = edges_of(pixels.astype(np.float32) / 127.5 - 1)
    return np.repeat(np.where(lines > 0, 255, 0).astype(np.uint8), CHANNELS, axis=-1)
