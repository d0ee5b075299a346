"""Metrics of the log: means of loss terms over finite values, weighted by numbers of examples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops


class FiniteMean(keras.metrics.Mean):
    """Mean of the values that are finite; NaN if there was none."""

    def update_state(self, values: Any, sample_weight: Any = 1.0) -> None:
        finite = ops.isfinite(values)
        super().update_state(ops.where(finite, values, 0.0), ops.where(finite, sample_weight, 0.0))

    def result(self) -> Any:
        return ops.where(self.count > 0, super().result(), math.nan)


class Means:
    """Running means by name, in an object that Keras's attribute tracking does not look into.

    Args:
        names: of the means.

    Attributes:
        by_name: name → `FiniteMean`.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.by_name = {name: FiniteMean(name=name) for name in names}
