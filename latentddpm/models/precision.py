"""Half precision without training: weights and activations in half, float32 where it overflows.

    float32              everything
    bfloat16, float16    weights and activations, in half the memory. Norms, the softmax of the
                         UNet and the autoencoder, the embedding of timesteps, the last layer,
                         schedules and the sampler's state stay float32

A network of the dtype policy "bfloat16" holds its weights as "mixed_bfloat16" would cast them at
every use, so both compute the same up to the rounding of the norms' gains and shifts. There is no
training here, which alone has a use for the float32 masters of the mixed policy.

float16 ends at 65,504. A network whose activations pass that gives numbers that are not finite,
and goes over to float32.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from latentddpm.choices import AUTO, PRECISIONS
from latentddpm.errors import check_choice
from latentddpm.models.graph_networks import GraphNetwork
from latentddpm.models.inference import compiled

if TYPE_CHECKING:
    import keras


def settle_precision(asked: str, engine: str = "keras") -> str:
    """Precision for the networks of an engine, with "auto" decided.

    Args:
        asked: one of `choices.PRECISIONS`, or "auto" for the one that is right for the device.
        engine: "keras", or another one, which computes in float32.

    Raises:
        UserError: it is not known, or the device cannot compute in it.
    """
    check_choice("precision", asked, (AUTO, *PRECISIONS))
    if asked == "float32" or engine != "keras":
        return "float32"
    from latentddpm.distribution.precision import choose_precision

    return choose_precision(asked)


def finite(network: keras.Model | GraphNetwork, what: str) -> Callable[[Any], Any]:
    """Compiled function of a network, which goes over to float32 once half precision overflows.

    From then on all calls are computed in float32, from the weights as they are held. It warns.

    Args:
        network: with weights in any precision; one in float32 is only compiled.
        what: it computes, for the warning.

    Returns:
        inputs → outputs of the network, float32.
    """
    held = precision_of(network)
    if held == "float32":
        return compiled(network)
    import keras

    current = network

    def call(inputs: Any) -> Any:
        nonlocal current
        outputs = keras.ops.cast(compiled(current)(inputs), "float32")
        if current is network and not np.isfinite(np.asarray(outputs)).all():
            warnings.warn(f"{what}: not finite in {held}; goes on in float32", stacklevel=2)
            current = hold_in(network, "float32")
            outputs = compiled(current)(inputs)
        return outputs

    return call


def precision_of(network: Any) -> str:
    """Precision in which a network holds its weights; mixed precision and other engines: float32.

    Args:
        network: a Keras model, or what stands in for one.
    """
    return getattr(network, "variable_dtype", "float32")


def hold_in(network: Any, precision: str) -> Any:
    """Network with its weights held in a precision: itself where it is so already, else a copy.

    Args:
        network: whose `get_config` is the arguments of its constructor; what is no Keras model
            is returned as it is.
        precision: one of `choices.PRECISIONS`.
    """
    if getattr(network, "variable_dtype", precision) == precision:
        return network
    from latentddpm.models.functional import rebuild

    return rebuild(network, dtype=precision)
