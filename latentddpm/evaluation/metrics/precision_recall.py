"""Precision and recall, density and coverage: fidelity and diversity, measured separately.

The support of a set is estimated by balls around its samples; the ball B(·) of a sample reaches to
its k-th nearest neighbour in the set. With N real samples x_i and M generated samples y_j,

    precision = Σ_j 1[y_j in some B(x_i)] / M        recall = Σ_i 1[x_i in some B(y_j)] / N

(Kynkäänniemi et al. 2019, k = 3). A single outlier among the real samples has a large ball, which
raises precision; an outlier among the generated ones raises recall. Less sensitive to outliers
are (Naeem et al. 2020, k = 5)

    density = Σ_ij 1[y_j in B(x_i)] / kM             coverage = Σ_i 1[some y_j in B(x_i)] / N

Density may exceed 1. Equal distributions give a density of 1 and a coverage of about 1 − 2⁻ᵏ.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from latentddpm.evaluation.metrics.pairwise import check_features, squared_distances

LEAST = 6
"""Images that each set needs: density uses the fifth neighbour."""


class PrecisionRecall(NamedTuple):
    """Precision and recall.

    Attributes:
        precision: share of generated samples in the real support, in [0, 1].
        recall: share of real samples in the generated support, in [0, 1].
    """

    precision: float
    recall: float


class DensityCoverage(NamedTuple):
    """Density and coverage.

    Attributes:
        density: mean number of real balls around a generated sample, divided by k; at least 0.
        coverage: share of real balls that hold a generated sample, in [0, 1].
    """

    density: float
    coverage: float


def precision_recall(real: np.ndarray, generated: np.ndarray, k: int = 3) -> PrecisionRecall:
    """Precision and recall of generated samples.

    Args:
        real: features (N, d), N > k.
        generated: features (M, d), M > k.
        k: number of the nearest neighbour that a ball reaches to.

    Raises:
        UserError: a set of no more than k samples.
    """
    real, generated = check_features("precision/recall", k + 1, real, generated)
    _, around_generated = _memberships(real, generated, k)
    _, around_real = _memberships(generated, real, k)
    return PrecisionRecall(float(np.mean(around_generated > 0)), float(np.mean(around_real > 0)))


def density_coverage(real: np.ndarray, generated: np.ndarray, k: int = 5) -> DensityCoverage:
    """Density and coverage of generated samples.

    Args:
        real: features (N, d), N > k.
        generated: features (M, d), M > k.
        k: number of the nearest neighbour that a ball reaches to.

    Raises:
        UserError: a set of no more than k samples.
    """
    real, generated = check_features("density/coverage", k + 1, real, generated)
    held, around = _memberships(real, generated, k)
    return DensityCoverage(float(around.mean() / k), float(np.mean(held > 0)))


def _memberships(
    centres: np.ndarray, samples: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Number of samples in the ball of each centre, and of such balls around each sample."""
    radii = _radii(centres, k)
    held, around = np.empty(len(centres), np.int64), np.zeros(len(samples), np.int64)
    for rows, squares in squared_distances(centres, samples):
        inside = squares <= radii[rows, None]
        held[rows] = inside.sum(axis=1)
        around += inside.sum(axis=0)
    return held, around


def _radii(samples: np.ndarray, k: int) -> np.ndarray:
    """Squared distance of each sample to its k-th nearest neighbour, (N,)."""
    radii = np.empty(len(samples))
    for rows, squares in squared_distances(samples, samples):
        # No sample is its own neighbour.
        squares[:, rows][np.diag_indices(len(squares))] = np.inf
        radii[rows] = np.partition(squares, k - 1, axis=1)[:, k - 1]
    return radii
