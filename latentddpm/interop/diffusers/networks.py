"""A piece of a checkpoint → a network of ours: judged first, built and filled after.

network = judge(piece)      configuration, names and shapes of all tensors; nothing is built
model = network.build()     memory is taken, weights are read
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import keras

from latentddpm.errors import check_choice
from latentddpm.interop.diffusers.checkpoint import CheckpointPart
from latentddpm.interop.diffusers.known_keys import AUTOENCODER, CLASSES
from latentddpm.interop.diffusers.read_config import (
    autoencoder_arguments,
    linear_projection,
    unet_arguments,
)
from latentddpm.interop.diffusers.weight_map import TensorMapping, autoencoder_rows, unet_rows
from latentddpm.interop.diffusers.weights import fill, match
from latentddpm.interop.tensors import Tensors
from latentddpm.models.autoencoder.autoencoder import Autoencoder
from latentddpm.models.layers import blank_weights
from latentddpm.models.unet import UNet

AUTOENCODER_SIZES = (
    "channels",
    "channel_multipliers",
    "num_res_blocks",
    "latent_channels",
    "image_channels",
)
UNET_SIZES = (
    "channels",
    "channel_multipliers",
    "num_res_blocks",
    "latent_channels",
    "attention_levels",
    "context_dim",
)


@dataclass(frozen=True)
class Network:
    """A network whose configuration and tensors fit together.

    Attributes:
        kind: `Autoencoder` or `UNet`.
        arguments: of its constructor.
        tensors: the weights.
        matched: the rows of its table, with the names that `tensors` has for them.
    """

    kind: type[keras.Model]
    arguments: dict[str, Any]
    tensors: Tensors
    matched: list[tuple[TensorMapping, str]]

    def build(self, quiet: bool = True) -> keras.Model:
        """The network with its weights, as float32; a progress bar unless `quiet`."""
        with blank_weights():
            model = self.kind(**self.arguments)
        label = "vae" if self.kind is Autoencoder else "unet"
        fill(model, self.matched, self.tensors, label, quiet)
        return model


def arguments_of(piece: CheckpointPart) -> dict[str, Any]:
    """The arguments of our network for a piece, from its configuration alone.

    Raises:
        UserError: something that our network is not; file and key are named.
    """
    kind = str(piece.config.get("_class_name"))
    check_choice(f"{piece.source}: _class_name", kind, CLASSES)
    read = autoencoder_arguments if kind == AUTOENCODER else unet_arguments
    return read(piece.config, piece.source)


def validate(piece: CheckpointPart) -> Network:
    """The network of a piece, before it is built.

    Raises:
        UserError: the configuration is not supported, or the tensors are not those that it
            asks for; file and key are named.
    """
    arguments = arguments_of(piece)
    kind = Autoencoder if piece.config["_class_name"] == AUTOENCODER else UNet
    linear = linear_projection(piece.config, piece.source) if kind is UNet else False
    tensors = piece.tensors()
    return Network(
        kind, arguments, tensors, match(_rows(kind, arguments, linear), tensors, piece.source)
    )


def rows_of(model: keras.Model) -> Iterator[TensorMapping]:
    """The table of a network of ours, as it is written."""
    return _rows(type(model), model.get_config())


def _rows(
    kind: type[keras.Model], arguments: Mapping[str, Any], linear: bool = False
) -> Iterator[TensorMapping]:
    if kind is Autoencoder:
        return autoencoder_rows(**{key: arguments[key] for key in AUTOENCODER_SIZES})
    return unet_rows(**{key: arguments[key] for key in UNET_SIZES}, linear=linear)
