"""Settings of the denoiser: the UNet, its text encoder, and a LoRA of it."""

from __future__ import annotations

from typing import Any, Literal

import pydantic
from pydantic import Field
from pydantic_core import PydanticCustomError

from latentddpm.choices import DENOISERS
from latentddpm.config.section import Multipliers, Section


class UNetConfig(Section):
    """Kind and sizes of the UNet; the defaults (about 90 M parameters) train on one GPU."""

    kind: Literal["unet", "classic", "basic"] = Field(
        "unet",
        description="unet: residual blocks and attention; classic: Ronneberger's, takes channels "
        "and channel_multipliers; basic: six convolutions without timestep, takes no sizes; only "
        "unet takes text",
    )
    channels: int = Field(128, gt=0, description="width at the latents' resolution")
    channel_multipliers: Multipliers | None = Field(
        None,
        description="width of each level, in units of channels; null: [1, 2, 3, 4], for classic "
        "[1, 2, 4, 8, 16], or fewer where the latents are small",
    )
    num_res_blocks: int = Field(2, gt=0, description="blocks per level, one more on the way up")
    attention_levels: list[int] | None = Field(
        None,
        description="levels with attention; 0 has the latents' resolution; null: 1, 2 and 3, as "
        "far as they exist and have at most 32 positions a side",
    )
    num_heads: pydantic.PositiveInt | Multipliers = Field(
        8, description="of attention: a number, or one for each level"
    )
    norm_groups: int = Field(32, gt=0, description="of every group norm; divides all widths")
    dropout: float = Field(0.0, ge=0, lt=1, description="in the residual blocks")
    time_scale_shift: bool = Field(
        False,
        description="the timestep and the conditions multiply and shift the features of a "
        "block, instead of being added to them; diffusers' resnet_time_scale_shift",
    )
    recompute: bool = Field(
        False, description="compute blocks again in the backward pass: less memory, more time"
    )

    @pydantic.field_validator("*")
    @classmethod
    def _only_what_the_kind_takes(cls, value: Any, info: pydantic.ValidationInfo) -> Any:
        key, kind = info.field_name, info.data.get("kind")  # the first field, checked before
        taken = kind is None or key in DENOISERS[kind]
        if not taken and value != cls.model_fields[key].default:
            raise PydanticCustomError("kind", "{text}", {"text": not_taken(kind)})
        return value

    @pydantic.model_serializer(mode="wrap")
    def _what_the_kind_takes(self, handler: Any) -> dict[str, Any]:
        taken = ("kind", *DENOISERS[self.kind])
        return {key: value for key, value in handler(self).items() if key in taken}

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of the network's class."""
        return {key: getattr(self, key) for key in DENOISERS[self.kind]}


def not_taken(kind: str) -> str:
    """Message on a setting that a kind of network does not take.

    Args:
        kind: of the network.
    """
    taken = ", ".join(f"unet.{one}" for one in DENOISERS[kind]) or "no sizes"
    return f"not a setting of unet.kind={kind}, which takes {taken}"


class TextConfig(Section):
    """Text encoder: its source and, from scratch, its sizes."""

    source: Literal["auto", "none", "scratch", "clip", "preset", "init"] = Field(
        "auto",
        description="auto: scratch where the data has captions, else none; none: unconditional; "
        "scratch: trained along with the UNet; clip, preset: CLIP, of path; init: of the model "
        "that init names",
    )
    trainable: bool | None = Field(
        None, description="train it along with the UNet; null: only from scratch"
    )
    path: str = Field("", description="CLIP folder, or KerasHub preset name")
    context_length: int = Field(24, ge=3, le=77, description="tokens, for source scratch")
    dropout: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="share of examples whose text alone is dropped, beside "
        "training.condition_dropout; null: 0.05 where there are conditions, else 0",
    )
    hidden_dim: int = Field(256, gt=0, description="width, for source scratch")
    num_layers: int = Field(4, gt=0, description="transformer blocks, for source scratch")
    num_heads: int = Field(4, gt=0, description="of attention; divides hidden_dim")
    new_token: str = Field(
        "",
        description="word for a subject, such as <cat-toy>, that captions have; its vectors alone "
        "are trained (textual inversion)",
    )
    new_token_init: str = Field(
        "", description="words whose vectors those of new_token begin as, such as toy"
    )
    new_token_vectors: int = Field(
        1, gt=0, le=75, description="of new_token; more hold more, and take more of a prompt"
    )

    @property
    def trained(self) -> bool:
        """True where the text encoder trains along with the UNet."""
        return self.source == "scratch" if self.trainable is None else self.trainable


Projection = Literal[
    *("query", "key", "value", "out", "proj_in", "proj_out", "ff_in", "ff_out"),
    *("conv1", "conv2", "shortcut"),
]


class LoraConfig(Section):
    """LoRA: a low-rank change of the layers of a finished model (`init`), trained alone."""

    rank: int = Field(0, ge=0, description="of the change of each projection; 0: no LoRA")
    alpha: float = Field(
        0.0, ge=0, description="the change is multiplied by alpha / rank; 0: by 1"
    )
    targets: list[Projection] = Field(
        ["query", "key", "value", "out"],
        min_length=1,
        description="projections of attention that change; conv1, conv2, shortcut: "
        "convolutions of residual blocks",
    )
    storage: Literal["float32", "float16"] = Field(
        "float32", description="of the file; float16 halves it"
    )
