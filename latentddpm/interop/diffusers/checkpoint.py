"""Checkpoint of Stable Diffusion: its parts, whatever the format that it is stored in.

A diffusers folder and a single file are both opened as a `Checkpoint`, whose configurations have
the keys of diffusers and whose tensors have its names. No tensor is read yet.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from latentddpm.clip.text_encoder import TextEncoder
from latentddpm.clip.tokenizer import CLIPTokenizer
from latentddpm.errors import UserError
from latentddpm.interop.tensors import Tensors
from latentddpm.pipeline.weight_files import PIXEL_PIPELINES

SCHEDULER = "scheduler_config.json"


@dataclass(frozen=True)
class CheckpointPart:
    """Part of a checkpoint: one network.

    Attributes:
        source: file of the configuration, for messages.
        config: with the keys of diffusers, `_class_name` among them.
        tensors: function that opens the weights, which have the names of diffusers. It is called
            after the configuration has been checked.
    """

    source: str
    config: dict[str, Any]
    tensors: Callable[[], Tensors]


@dataclass(frozen=True)
class Checkpoint:
    """Checkpoint: the parts of a model; a missing one is None.

    Attributes:
        source: folder or file, for messages.
        vae: the autoencoder.
        unet: the UNet.
        scheduler: configuration as in `scheduler_config.json`.
        scheduler_source: its file, for messages.
        text: function that reads the text encoder and its tokenizer.
        pipeline: class of the pipeline in diffusers; None where it is not known.
    """

    source: str
    vae: CheckpointPart | None = None
    unet: CheckpointPart | None = None
    scheduler: dict[str, Any] | None = None
    scheduler_source: str = "scheduler"
    text: Callable[[], tuple[TextEncoder, CLIPTokenizer]] | None = None
    pipeline: str | None = None

    @property
    def of_pixels(self) -> bool:
        """True for a pipeline without an autoencoder, whose UNet denoises pixels."""
        return self.pipeline in PIXEL_PIPELINES


def check_fit(
    checkpoint: Checkpoint, vae: Mapping[str, Any] | None, unet: Mapping[str, Any]
) -> None:
    """Check that the parts of a checkpoint fit together.

    Args:
        checkpoint: with a UNet.
        vae: arguments of its autoencoder; None for a pipeline without one.
        unet: arguments of its UNet.

    Raises:
        UserError: they do not.
    """
    if vae is not None and vae["latent_channels"] != unet["latent_channels"]:
        raise UserError(
            f"{checkpoint.unet.source}: in_channels is {unet['latent_channels']}, but the "
            f"autoencoder's latents have {vae['latent_channels']}"
        )
    if checkpoint.scheduler is None:
        raise UserError(f"{checkpoint.source}: has a UNet but no scheduler/{SCHEDULER}")
    if (unet["context_dim"] is None) != (checkpoint.text is None):
        has = "no text encoder with a tokenizer" if checkpoint.text is None else "a text encoder"
        raise UserError(
            f"{checkpoint.source}: has {has}, and its UNet is a "
            f"{checkpoint.unet.config['_class_name']}"
        )


def check_width(checkpoint: Checkpoint, context_dim: int, hidden_dim: int) -> None:
    """Check that a UNet takes the states of a text encoder.

    Args:
        checkpoint: with a UNet.
        context_dim: that the UNet takes.
        hidden_dim: width of the text encoder.

    Raises:
        UserError: they differ.
    """
    if context_dim != hidden_dim:
        raise UserError(
            f"{checkpoint.unet.source}: cross_attention_dim is {context_dim}, but the text "
            f"encoder is {hidden_dim} wide"
        )
