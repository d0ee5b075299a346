"""Shapes to reshape arrays to, without asking the graph for sizes that are known.

Each size that only the graph knows costs it several operations, at every place that asks for it,
and their time at every call. One unknown size in a shape needs no asking: it is -1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from keras import ops


def shape_of(array: Any) -> Sequence[Any]:
    """Shape of an array, with -1 in place of a single unknown size.

    Args:
        array: of any rank.
    """
    sides = tuple(array.shape)
    if sides.count(None) > 1:
        return ops.shape(array)
    return tuple(-1 if side is None else side for side in sides)


def positions_of(array: Any, *channels: int) -> tuple[Any, ...]:
    """Shape (B, P, *channels) of a feature map (B, …, C) as its P positions.

    Args:
        array: the feature map.
        channels: sizes after the positions, whose product is C.
    """
    batch, *sides = array.shape[:-1]
    if None in sides:
        return (ops.shape(array)[0] if batch is None else batch, -1, *channels)
    return (-1 if batch is None else batch, math.prod(sides), *channels)
