"""Fidelity and variety apart: precision and recall, density and coverage.

A set's manifold is the union of balls around its samples, each reaching to the sample's k-th
nearest neighbour in the set. With N real x_i, M generated y_j, B(·) such balls and 1[·] counting,

    precision = Σ_j 1[y_j in some B(x_i)] / M        recall = Σ_i 1[x_i in some B(y_j)] / N

(Kynkäänniemi et al. 2019, k = 3). A single outlier among real images opens a ball that takes in
anything, and recall needs balls around generated ones, so Naeem et al. (2020, k = 5) count

    density = Σ_ij 1[y_j in B(x_i)] / kM             coverage = Σ_i 1[some y_j in B(x_i)] / N

Density may exceed 1; equal distributions give 1, and coverage 1 − 2⁻ᵏ about.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from latentddpm.evaluation.metrics.pairwise import check_features, squared_distances


class PrecisionRecall(NamedTuple):
    """Both in [0, 1]."""

    precision: float
    recall: float


class DensityCoverage(NamedTuple):
    """Density ≥ 0, coverage in [0, 1]."""

    density: float
    coverage: float


def precision_recall(real: np.ndarray, generated: np.ndarray, k: int = 3) -> PrecisionRecall:
    """Share of generated samples that could be real, and of real ones that could be generated.

    Args:
        real: features (N, d), N > k.
        generated: features (M, d), M > k.
        k: which neighbour a ball reaches to.

    Raises:
        UserError: a set of no more than k samples.
    """
    real, generated = check_features("precision/recall", k + 1, real, generated)
    _, around_generated = _memberships(real, generated, k)
    _, around_real = _memberships(generated, real, k)
    return PrecisionRecall(float(np.mean(around_generated > 0)), float(np.mean(around_real > 0)))


def density_coverage(real: np.ndarray, generated: np.ndarray, k: int = 5) -> DensityCoverage:
    """In how many real balls a generated sample lies, and how many real balls hold any.

    Args:
        real: features (N, d), N > k.
        generated: features (M, d), M > k.
        k: which neighbour a ball reaches to.

    Raises:
        UserError: a set of no more than k samples.
    """
    real, generated = check_features("density/coverage", k + 1, real, generated)
    held, around = _memberships(real, generated, k)
    return DensityCoverage(float(around.mean() / k), float(np.mean(held > 0)))


def _memberships(
    centres: np.ndarray, samples: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The number of samples in each ball around the centres, and of balls around each sample."""
    radii = _radii(centres, k)
    held, around = np.empty(len(centres), np.int64), np.zeros(len(samples), np.int64)
    for rows, squares in squared_distances(centres, samples):
        inside = squares <= radii[rows, None]
        held[rows] = inside.sum(axis=1)
        around += inside.sum(axis=0)
    return held, around


def _radii(samples: np.ndarray, k: int) -> np.ndarray:
    """(N,), squared distance of each sample to its k-th nearest other sample."""
    radii = np.empty(len(samples))
    for rows, squares in squared_distances(samples, samples):
        # No sample is its own neighbour.
        squares[:, rows][np.diag_indices(len(squares))] = np.inf
        radii[rows] = np.partition(squares, k - 1, axis=1)[:, k - 1]
    return radii
