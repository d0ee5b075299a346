"""Vectors of an optimizer: short variables strung together, long ones by themselves.

A network has many variables with few numbers and few with nearly all of them. To work on each is
many graph operations, and to copy all of them into one vector is much traffic of memory. So the
short ones are strung together and the long ones stay where they lie. What a checkpoint holds does
not depend on where that border is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

BUCKET_SIZE = 64 * 2**20
"""Greatest length of a vector, unless a single variable is longer: 256 MiB in float32."""

LONG = 2**16
"""Length from which a float32 variable is updated by itself: 256 KiB."""


@dataclass
class Bucket:
    """Variables updated as one: a long one, or several as a vector; with their state.

    Attributes:
        indices: positions in the list of variables, in the vector's order: first those with
            weight decay.
        num_decayed: how many of them have weight decay.
        alone: True for a long variable.
        weights: the long variable itself, or a vector for the values of several while they are
            updated, which is no state.
        momentum: m, a float32 variable of the shape of `weights`.
        velocity: v, likewise.
        average: θ̄, likewise, or None without EMA.
    """

    indices: list[int]
    num_decayed: int
    alone: bool
    weights: Any
    momentum: Any
    velocity: Any
    average: Any = None

    def slots(self) -> list[Any]:
        """State of the variables: m, v and, with EMA, θ̄."""
        return [self.momentum, self.velocity, *[self.average] * (self.average is not None)]


class StoredVector:
    """Vector of a checkpoint: one slot of the variables of some buckets, in a fixed order.

    What a checkpoint holds does not depend on which variables are updated by themselves.

    Args:
        slots: a variable of each bucket.
        indices: positions of each bucket's variables.
        lengths: position → how many numbers a variable has, in the order of the vector.

    Attributes:
        shape: of the vector.
    """

    def __init__(
        self, slots: Sequence[Any], indices: Sequence[list[int]], lengths: Mapping[int, int]
    ) -> None:
        self._slots, self._indices, self._lengths = slots, indices, lengths
        self.shape = (sum(lengths.values()),)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        parts = {}
        for slot, indices in zip(self._slots, self._indices, strict=True):
            ends = np.cumsum([self._lengths[i] for i in indices])
            parts |= zip(indices, np.split(np.ravel(slot), ends[:-1]), strict=True)
        return np.concatenate([parts[i] for i in self._lengths]).astype(dtype or "float32")

    def assign(self, values: np.ndarray) -> None:
        """Set the slots from the vector's numbers."""
        ends = np.cumsum(list(self._lengths.values()))
        parts = dict(zip(self._lengths, np.split(values, ends[:-1]), strict=True))
        for slot, indices in zip(self._slots, self._indices, strict=True):
            slot.assign(np.concatenate([parts[i] for i in indices]).reshape(slot.shape))


def fill(variables: Sequence[keras.Variable]) -> list[list[int]]:
    """Positions of the variables, in order, in groups of at most `BUCKET_SIZE` numbers.

    Args:
        variables: to be trained.
    """
    groups: list[list[int]] = []
    room = 0
    for index in range(len(variables)):
        length = length_of(variables, [index])
        if not groups or length > room:
            groups.append([])
            room = BUCKET_SIZE
        groups[-1].append(index)
        room -= length
    return groups


def is_long(variable: keras.Variable) -> bool:
    """True for a variable that is updated by itself.

    Args:
        variable: to be trained.
    """
    return variable.dtype == "float32" and length_of([variable], [0]) >= LONG


def length_of(variables: Sequence[Any], indices: Sequence[int]) -> int:
    """Numbers that some of the variables have together.

    Args:
        variables: of any shapes.
        indices: positions in `variables`.
    """
    return sum(int(tf.TensorShape(variables[i].shape).num_elements()) for i in indices)


def string(tensors: Sequence[Any]) -> Any:
    """Float32 vector from tensors of any shapes, one after the other.

    Args:
        tensors: at least one.
    """
    return tf.concat([tf.cast(_shaped(tensor, (-1,)), "float32") for tensor in tensors], axis=0)


def cut(vector: Any, variables: Sequence[Any]) -> list[Any]:
    """Parts of a vector, in the shapes of the variables.

    Args:
        vector: with as many numbers as they.
        variables: of any shapes.
    """
    lengths = [length_of(variables, [i]) for i in range(len(variables))]
    parts = tf.split(_shaped(vector, (-1,)), lengths)
    return [_shaped(part, each.shape) for part, each in zip(parts, variables, strict=True)]


def _shaped(tensor: Any, shape: tuple[int, ...]) -> Any:
    """Tensor of a shape; one that is a vector needs no operation."""
    tensor = tf.convert_to_tensor(tensor)
    return tensor if tensor.shape.rank == len(shape) == 1 else tf.reshape(tensor, shape)
