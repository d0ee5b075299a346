"""Settings of the data: images, captions, and the split into training and validation."""

from __future__ import annotations

from typing import Literal

import pydantic
from pydantic import Field

from latentddpm.config.section import Section, Window


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
