"""Comparisons of two sets of features: what they ask of them, and all distances."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from latentddpm.errors import UserError

BLOCK = 1024
"""Rows of a matrix of pairs that are held at once: memory grows with one set, not with both."""


def check_count(metric: str, count: int, least: int) -> None:
    """Refuse fewer samples than `metric` is defined for.

    Raises:
        UserError: with both numbers.
    """
    if count < least:
        raise UserError(
            f"{metric} needs at least {least} images, not {count}: "
            "give a larger folder, or raise --limit"
        )


def check_features(metric: str, least: int, *sets: np.ndarray) -> list[np.ndarray]:
    """The sets in float64, each (N, d) with one d and at least `least` rows.

    Raises:
        UserError: too few rows.
        ValueError: shapes that do not belong together, or a value that is not finite.
    """
    for features in sets:
        if features.ndim != 2 or features.shape[1] != sets[0].shape[1]:
            shapes = [features.shape for features in sets]
            raise ValueError(f"{metric}: expected features (N, d) of one d, got {shapes}")
        if not np.isfinite(features).all():
            raise ValueError(f"{metric}: features are not finite")
        check_count(metric, len(features), least)
    return [np.asarray(features, np.float64) for features in sets]


def squared_distances(x: np.ndarray, y: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """The matrix ‖x_i − y_j‖² of x (m, d) and y (n, d), block by block of rows.

    Yields:
        Which rows, and their (rows, n).
    """
    norms = np.square(y).sum(axis=1)
    for start in range(0, len(x), BLOCK):
        rows = slice(start, min(start + BLOCK, len(x)))
        squares = np.square(x[rows]).sum(axis=1)[:, None] + norms - 2 * x[rows] @ y.T
        yield rows, np.maximum(squares, 0.0)
