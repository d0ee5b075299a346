"""Source of a condition: what the data tells about an image, in batches.

    images of a batch ─► source ─► inputs of the network

Random choices come from bits that the input pipeline has drawn for each example (`data.random`).
So a batch is a pure function of its arguments.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from latentddpm.conditions.base import Condition


class ConditionSource(Protocol):
    """Source of a condition: what it tells about each image of a catalog.

    Attributes:
        condition: that it tells.
    """

    condition: Condition

    def batch(
        self, images: np.ndarray, mirrored: np.ndarray, dropped: np.ndarray, bits: np.ndarray
    ) -> list[np.ndarray]:
        """Inputs of the network for a batch of B examples, float32, in the condition's order.

        Args:
            images: rows of the catalog, int64 (B,).
            mirrored: True for those that are mirrored, bool (B,).
            dropped: True for those that are not told, bool (B,).
            bits: 32 random bits of each example, int64 (B,), for what is random.
        """

    def value(self, image: int) -> Any:
        """Value of an image, as `LatentDiffusion.generate` takes it; None for "not told".

        Args:
            image: row of the catalog.
        """
