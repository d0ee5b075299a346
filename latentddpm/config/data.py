"""Settings of the data: images, captions, and the split into training and validation."""

from __future__ import annotations

import re
from typing import Literal

import pydantic
from pydantic import Field
from pydantic_core import PydanticCustomError

from latentddpm.choices import CAPTION_RULES
from latentddpm.config.augment import AugmentConfig
from latentddpm.config.section import Section, Window


class TagsConfig(Section):
    """Tags: captions that are lists, of which a use takes the tags in another order, or some."""

    separator: str = Field(
        ",",
        min_length=1,
        description="between the tags of a caption; only used by shuffle or dropout",
    )
    shuffle: bool = Field(False, description="another order of the tags for each use of an image")
    dropout: float = Field(
        0.0, ge=0, lt=1, description="share of the tags that are left out, drawn for each use"
    )
    keep: int = Field(0, ge=0, description="first tags of each caption, which stay where they are")

    @property
    def drawn(self) -> bool:
        """True where each use of a caption is drawn anew."""
        return self.shuffle or self.dropout > 0

    def __str__(self) -> str:
        """Words for people: what each use of a caption changes."""
        parts = ["in another order for each use"] if self.shuffle else []
        parts += [f"{self.dropout:g} of them left out"] if self.dropout else []
        parts += [f"the first {self.keep} stay"] if self.keep else []
        return f"separated by {self.separator!r}: {', '.join(parts)}"


class MaskConfig(Section):
    """Masks of the loss: pictures beside the images, white where the loss counts."""

    suffix: str = Field(
        "",
        description="end of the name of a mask beside its image, such as .mask.png: cat.mask.png "
        "of cat.jpg",
    )
    column: str = Field(
        "", description="of the metadata, that names the mask; empty, as suffix: no masks"
    )
    unmasked_weight: float = Field(
        0.0, ge=0, le=1, description="weight of the loss where a mask is black; white has 1"
    )

    @pydantic.field_validator("suffix")
    @classmethod
    def _is_an_end(cls, value: str) -> str:
        if not re.fullmatch(r"([._-][^/\\]*\.[^/\\.]+)?", value):
            raise PydanticCustomError(
                "suffix", "expected the end of a name behind that of its image, such as .mask.png"
            )
        return value

    @pydantic.model_validator(mode="after")
    def _one_way(self) -> MaskConfig:
        if self.suffix and self.column:
            raise PydanticCustomError("mask", "either suffix or column says where masks are")
        return self

    @property
    def given(self) -> bool:
        """True where there are masks."""
        return bool(self.suffix or self.column)


class DataConfig(Section):
    """Data: size and preparation of images, captions, and the split into training and validation.

    `DiffusionData` adds the settings of `train-diffusion`.
    """

    resolution: pydantic.PositiveInt | None = Field(
        None,
        description="side of the square, in pixels, or length of signals; null: that of the "
        "autoencoder's training, else the data's own, at most 256 (signals 4096)",
    )
    spatial_dims: Literal[1, 2] = Field(
        2, description="2 images, 1 signals (WAV, arrays (L,) or (L, C)), which need --vae none"
    )
    channels: pydantic.PositiveInt | None = Field(
        None,
        description="1 gray, 3 RGB, 4 RGB with transparency, or those of arrays; null: those of "
        "the model it starts from, else the data's own",
    )
    bit_depth: Literal[8, 16, "float"] | None = Field(
        None,
        description="of the images, whose values are 0 … 255, 0 … 65,535 or numbers; null: "
        "as of channels",
    )
    window: Window | None = Field(
        None,
        description="[low, high]: the values that become black and white; what is outside is "
        "clipped; null: the whole range",
    )
    rate: pydantic.PositiveInt | None = Field(
        None, description="of signals: samples a second; null: that of WAV files"
    )
    background: Literal["white", "random"] = Field(
        "white", description="colour behind transparent pixels; a latents cache has white"
    )
    flip: bool = Field(False, description="mirror half of the images, drawn per use")
    augment: AugmentConfig = AugmentConfig()
    captions: Literal[*CAPTION_RULES] = Field(
        "files",
        description="of an image that has none: files: it stays without; name: words of the name "
        "of its file (red_apple_01.png: red apple); folder: the name of its folder; auto: name, "
        "folder or files, whichever says something, and the run's config.yaml keeps which",
    )
    repeats: bool = Field(
        False,
        description="folders named as 10_sks dog: their images are used so many times as often",
    )
    tags: TagsConfig = TagsConfig()
    mask: MaskConfig = MaskConfig()
    caption_templates: list[str] = Field(
        [],
        description='such as "{text}, {style} style", with columns of the metadata, or "{folder}"',
    )
    validation_fraction: float = Field(0.05, ge=0, lt=1, description="share of validation images")
    validation_by: Literal["path", "caption"] = Field(
        "path",
        description="a hash of the image's path, or of its first caption, decides; by caption all "
        "pictures of the same thing are validation images, or none",
    )


class DiffusionData(DataConfig):
    """Data settings of `train-diffusion`: those of both, aspect buckets, and the encoding."""

    aspect_buckets: bool = Field(
        False, description="crop to the nearest of several shapes with the square's area"
    )
    bucket_step: int = Field(64, gt=0, description="sides of these shapes are multiples of it")
    bucket_max_ratio: float = Field(
        2.0, ge=1, description="greatest ratio of the longer side to the shorter side"
    )
    latents_precision: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="that the autoencoder computes in while it encodes the images"
    )
