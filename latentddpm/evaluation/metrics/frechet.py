"""Fréchet distance between two sets of features, each approximated by a Gaussian.

For Gaussians with means μ and covariances Σ (Fréchet 1957; Dowson & Landau 1982),

    d² = ‖μ_a − μ_b‖² + tr Σ_a + tr Σ_b − 2 tr (Σ_a Σ_b)^½

With the features of an Inception network this is FID (Heusel et al. 2017). The product of two
covariances is not symmetric, but Σ_a^½ Σ_b Σ_a^½ is, and has the same eigenvalues. So the trace of
the root is the sum of the roots of these eigenvalues: real, and stable where Σ is singular.

The estimate is biased: it falls as the sets grow, by a different amount for each model. Compare
only values of equal sample counts, or take the kernel distance, which has no such bias.
"""

from __future__ import annotations

import numpy as np

from latentddpm.evaluation.metrics.pairwise import check_count, check_features


class Statistics:
    """Mean and covariance of features that come in batches, in float64 (Chan et al. 1979).

    Attributes:
        count: of samples so far.
        mean: float64 (d,).
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean: np.ndarray = np.zeros(())
        self._scatter: np.ndarray = np.zeros(())

    def add(self, features: np.ndarray) -> Statistics:
        """Add a batch.

        Args:
            features: (n, d), n ≥ 1.

        Returns:
            These statistics.

        Raises:
            ValueError: another width than before, or values that are not finite.
        """
        (features,) = check_features("Fréchet distance", 1, features)
        mean, count = features.mean(axis=0), self.count + len(features)
        if self.count and mean.shape != self.mean.shape:
            raise ValueError(f"features of width {mean.size} after those of {self.mean.size}")
        centred, shift = features - mean, mean - self.mean
        between = np.outer(shift, shift) if self.count else 0.0
        self._scatter = (
            self._scatter + centred.T @ centred + between * (self.count * len(features) / count)
        )
        self.mean = self.mean + shift * (len(features) / count)
        self.count = count
        return self

    @property
    def covariance(self) -> np.ndarray:
        """Unbiased covariance, float64 (d, d).

        Raises:
            UserError: fewer than two samples.
        """
        check_count("Fréchet distance", self.count, 2)
        return self._scatter / (self.count - 1)


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """Squared Fréchet distance d² of two Gaussians, the number that FID reports.

    Args:
        a, b: statistics of the two sets of features, of the same width.

    Returns:
        At least 0.

    Raises:
        UserError: fewer than two samples in either.
        ValueError: features of different widths.
    """
    first, second = a.covariance, b.covariance
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"features of width {a.mean.size} and {b.mean.size}")
    values, vectors = np.linalg.eigh(first)
    root = (vectors * _roots(values)) @ vectors.T
    cross = _roots(np.linalg.eigvalsh(root @ second @ root)).sum()
    shift = a.mean - b.mean
    return float(max(shift @ shift + np.trace(first) + np.trace(second) - 2 * cross, 0.0))


def _roots(eigenvalues: np.ndarray) -> np.ndarray:
    """Square roots; rounding makes zeros slightly negative."""
    return np.sqrt(np.maximum(eigenvalues, 0.0))
