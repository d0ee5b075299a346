"""A functional Keras model that is described by its constructor's arguments.

Keras would save such a model as its graph of layers; saved as the few arguments it was made
from, its archive stays small and readable, and `from_config` is the constructor.
"""

from __future__ import annotations

from typing import Any

import keras

from latentddpm.models.layers import blank_weights


class FunctionalModel(keras.Model):
    """Base of the networks: `super().__init__(inputs, outputs, constructor_arguments(...))`."""

    def __init__(
        self, inputs: Any, outputs: Any, arguments: dict[str, Any], **kwargs: Any
    ) -> None:
        super().__init__(inputs=inputs, outputs=outputs, **kwargs)
        self._arguments = arguments

    def get_config(self) -> dict[str, Any]:
        return {**self._arguments, "name": self.name}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> keras.Model:
        return cls(**config)


def constructor_arguments(scope: dict[str, Any]) -> dict[str, Any]:
    """A constructor's own arguments (its `locals()` at entry) as plain JSON types."""
    arguments = {k: v for k, v in scope.items() if k not in ("self", "__class__", "name")}
    policy = arguments.get("dtype")
    if policy is not None and not isinstance(policy, str):
        arguments["dtype"] = policy.name
    return {k: list(v) if isinstance(v, tuple) else v for k, v in arguments.items()}


def remade(model: keras.Model, **changes: Any) -> keras.Model:
    """A copy with the same weights, made from other arguments (another dtype, dropout)."""
    with blank_weights():
        copy = type(model).from_config({**model.get_config(), **changes})
    copy.set_weights(model.get_weights())
    return copy


def freeze(model: keras.Model) -> None:
    """Let none of the weights train; unlike `trainable = False` nothing of it is saved.

    They stay what they were read as, so that checkpoints leave them out: see `is_frozen`.
    """
    for variable in model.weights:
        variable.trainable = False
        variable.frozen = True


def is_frozen(variable: keras.Variable) -> bool:
    """Whether it is a weight of a network that `freeze` was called on."""
    return getattr(variable, "frozen", False)
