"""Checks of two sets of features, and the squared distances between all their pairs."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from latentddpm.errors import UserError

BLOCK = 1024
"""Rows of a matrix of pairs held in memory at once: memory grows with one set, not with both."""


def check_count(metric: str, count: int, least: int) -> None:
    """Refuse fewer samples than a metric is defined for.

    Args:
        metric: its name.
        count: number of samples.
        least: number of samples that it needs.

    Raises:
        UserError: naming both numbers.
    """
    if count < least:
        raise UserError(
            f"{metric} needs at least {least} images, not {count}: "
            "give a larger folder, or raise --limit"
        )


def check_features(metric: str, least: int, *sets: np.ndarray) -> list[np.ndarray]:
    """Check sets of features that a metric compares.

    Args:
        metric: its name.
        least: number of samples that each set needs.
        sets: features (N, d) each, with the same d.

    Returns:
        The sets in float64.

    Raises:
        UserError: too few samples.
        ValueError: sets of different widths, or a value that is not finite.
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
    """Squared distances ‖x_i − y_j‖², in blocks of rows.

    Args:
        x: float64 (m, d).
        y: float64 (n, d).

    Yields:
        The slice of rows i, and their squared distances, float64 (rows, n).
    """
    norms = np.square(y).sum(axis=1)
    for start in range(0, len(x), BLOCK):
        rows = slice(start, min(start + BLOCK, len(x)))
        squares = np.square(x[rows]).sum(axis=1)[:, None] + norms - 2 * x[rows] @ y.T
        yield rows, np.maximum(squares, 0.0)
