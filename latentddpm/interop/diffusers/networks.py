"""Networks of a checkpoint: each is validated first, then built and filled with its weights.

network = validate(part)    checks the configuration, and names and shapes of all tensors
model = network.build()     allocates memory and reads the weights
"""

from __future__ import annotations

from collections.abc import Iterator
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
from latentddpm.interop.diffusers.weight_map import TensorMapping, rows_of_class
from latentddpm.interop.diffusers.weights import fill, match
from latentddpm.interop.tensors import Tensors
from latentddpm.models.autoencoder.autoencoder import Autoencoder
from latentddpm.models.denoisers.unet import UNet
from latentddpm.utils.machine.memory import blank_weights


@dataclass(frozen=True)
class Network:
    """Network whose configuration and tensors are valid, before it is built.

    Attributes:
        kind: `Autoencoder` or `UNet`.
        arguments: of its constructor.
        tensors: the weights.
        matched: rows of its weight map, with their names in `tensors`.
    """

    kind: type[keras.Model]
    arguments: dict[str, Any]
    tensors: Tensors
    matched: list[tuple[TensorMapping, str]]

    def build(self, quiet: bool = True) -> keras.Model:
        """Build the Keras model and read its weights, as float32.

        Args:
            quiet: show no progress bar.
        """
        with blank_weights():
            model = self.kind(**self.arguments)
        label = "vae" if self.kind is Autoencoder else "unet"
        fill(model, self.matched, self.tensors, label, quiet)
        return model


def arguments_of(part: CheckpointPart) -> dict[str, Any]:
    """Arguments of the Keras model of a `part`, from its configuration alone.

    Raises:
        UserError: the configuration is not supported; the message names the file and the key.
    """
    kind = str(part.config.get("_class_name"))
    check_choice(f"{part.source}: _class_name", kind, CLASSES)
    read = autoencoder_arguments if kind == AUTOENCODER else unet_arguments
    return read(part.config, part.source)


def validate(part: CheckpointPart) -> Network:
    """Validate a `part` of a checkpoint: its configuration, and names and shapes of its tensors.

    Raises:
        UserError: the configuration is not supported, or the tensors do not match it; the message
            names the file and the key.
    """
    arguments = arguments_of(part)
    kind = Autoencoder if part.config["_class_name"] == AUTOENCODER else UNet
    linear = linear_projection(part.config, part.source) if kind is UNet else False
    tensors = part.tensors()
    rows = rows_of_class(kind.__name__, arguments, linear)
    return Network(kind, arguments, tensors, match(rows, tensors, part.source))


def rows_of(model: keras.Model) -> Iterator[TensorMapping]:
    """Weight map of a Keras `model`, as it is written."""
    return rows_of_class(type(model).__name__, model.get_config())
