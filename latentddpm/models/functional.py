"""Base class of the networks: functional models saved as their constructor's arguments.

Keras saves a functional model as its graph of layers. Saved as the few arguments it was made from,
its archive is small and readable, and `from_config` is the constructor.
"""

from __future__ import annotations

from typing import Any

import keras

from latentddpm.utils.machine.memory import blank_weights


class FunctionalModel(keras.Model):
    """Base class of functional models whose config is the arguments of their constructor.

    Args:
        inputs, outputs: Keras tensors, or structures of them; see `keras.Model`.
        arguments: of the subclass's constructor, see `constructor_arguments`.
        kwargs: see `keras.Model`.
    """

    def __init__(
        self, inputs: Any, outputs: Any, arguments: dict[str, Any], **kwargs: Any
    ) -> None:
        super().__init__(inputs=inputs, outputs=outputs, **kwargs)
        self._arguments = arguments

    @property
    def variable_dtype(self) -> str:
        """Type of the weights, "float32" under a mixed policy."""
        return keras.dtype_policies.get(self._arguments.get("dtype")).variable_dtype

    def get_config(self) -> dict[str, Any]:
        return {**self._arguments, "name": self.name}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> keras.Model:
        return cls(**config)


def constructor_arguments(scope: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a constructor, as plain JSON types, without `self` and `name`.

    Args:
        scope: `locals()` on the first line of the constructor.
    """
    arguments = {k: v for k, v in scope.items() if k not in ("self", "__class__", "name")}
    policy = arguments.get("dtype")
    if policy is not None and not isinstance(policy, str):
        arguments["dtype"] = policy.name
    return {k: list(v) if isinstance(v, tuple) else v for k, v in arguments.items()}


def rebuild(model: keras.Model, **changes: Any) -> keras.Model:
    """Copy of a network, with the same weights.

    Args:
        model: whose `get_config` is the arguments of its constructor.
        changes: arguments that differ, such as the dtype or the dropout.
    """
    with blank_weights():
        copy = type(model).from_config({**model.get_config(), **changes})
    copy.set_weights(model.get_weights())
    return copy


def freeze(model: keras.Model) -> None:
    """Exclude all weights of a network from training.

    Unlike `trainable = False` this is not saved with the network. Checkpoints leave such weights
    out, because they keep the values that were loaded: see `is_frozen`.
    """
    for variable in model.weights:
        variable.trainable = False
        variable.frozen = True


def is_frozen(variable: keras.Variable) -> bool:
    """True for a weight of a network on which `freeze` was called."""
    return getattr(variable, "frozen", False)
