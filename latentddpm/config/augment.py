"""Settings of augmentation: random changes of training images, for small sets."""

from __future__ import annotations

import pydantic
from pydantic import Field
from pydantic_core import PydanticCustomError

from latentddpm.config.section import Section

STRENGTHS = (
    *("crop", "scale", "translation", "rotation"),
    *("brightness", "contrast", "saturation", "hue"),
)
"""Settings that say how far an image may be changed."""


class AugmentConfig(Section):
    """Augmentation: random changes of training images; the UNet is told what was changed."""

    probability: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of the examples that see a changed image, each by all that follows; "
        "0 changes none, 0.5 is a good value for less than 1,000 images; the UNet is told the "
        "changes, so that drawings do not show them",
    )
    crop: float = Field(
        0.1, ge=0, le=0.5, description="share of the side that is cut off, at most"
    )
    scale: float = Field(
        0.1, ge=0, le=0.5, description="by how much it is enlarged or reduced, at most"
    )
    translation: float = Field(
        0.05, ge=0, le=0.25, description="share of the side that it is moved by, at most"
    )
    rotation: float = Field(10.0, ge=0, le=180, description="degrees to either side, at most")
    brightness: float = Field(
        0.1, ge=0, le=0.5, description="share of white that is added or taken away, at most"
    )
    contrast: float = Field(0.15, ge=0, le=1, description="its factor is 1 + this, at most")
    saturation: float = Field(
        0.3, ge=0, le=1, description="of images in colour: its factor is 1 + this, at most"
    )
    hue: float = Field(
        5.0, ge=0, le=180, description="of images in colour: degrees to either side, at most"
    )
    variants: pydantic.PositiveInt = Field(
        16, description="of train-diffusion: changed copies of each image, beside the image itself"
    )

    @pydantic.model_validator(mode="after")
    def _something_to_change(self) -> AugmentConfig:
        if self.probability > 0 and not any(getattr(self, name) for name in STRENGTHS):
            text = f"all of {', '.join(STRENGTHS)} are 0, so nothing would be changed"
            raise PydanticCustomError("augment", "{text}", {"text": text})
        return self

    @property
    def changes(self) -> bool:
        """True where some images are changed."""
        return self.probability > 0
