"""Kernel distance between two sets of features (KID), unbiased, with its standard error.

The squared maximum mean discrepancy (Gretton et al. 2012) of samples x₁ … x_m and y₁ … y_n,

    MMD² = Σ_{i≠j} k(x_i, x_j) / m(m−1) + Σ_{i≠j} k(y_i, y_j) / n(n−1) − 2 Σ_ij k(x_i, y_j) / mn,

with k(x, y) = (x·y / d + 1)³ and the features of an Inception network, is KID (Bińkowski et al.
2018). It is unbiased: if both sets come from one distribution, its mean is 0 for any set sizes,
and single values may be negative. Other tools average it over a hundred random subsets of a
thousand samples. Here each pair counts once, which has the same mean and the least variance.

If y_i was made from x_i, as a reconstruction is, the terms i = j make the distance too small.
Without them the estimate is unbiased again; the sums then run over pairs (Gretton's eq. 4).

The standard error is that of the two-sample jackknife (Arvesen 1969): the spread of MMD² when each
sample in turn is left out. If both distributions are equal it is too large by about √2, which is
the safe side (Efron & Stein 1981).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from latentddpm.evaluation.metrics.pairwise import BLOCK, check_features

LEAST = 3
"""Samples that each set needs: the jackknife leaves one out, and two make a pair."""

NORMAL_95 = 1.959964


class KernelDistance(NamedTuple):
    """Kernel distance with its error.

    Attributes:
        value: MMD²; may be negative.
        standard_error: of the jackknife.
    """

    value: float
    standard_error: float

    @property
    def interval(self) -> tuple[float, float]:
        """95 % confidence interval (low, high)."""
        half = NORMAL_95 * self.standard_error
        return self.value - half, self.value + half


def kernel_distance(x: np.ndarray, y: np.ndarray) -> KernelDistance:
    """Kernel distance MMD² of two sets of features.

    Args:
        x: (m, d), m ≥ 3.
        y: (n, d), n ≥ 3.

    Raises:
        UserError: fewer samples.
        ValueError: features of different widths, or not finite.
    """
    x, y = check_features("kernel distance", LEAST, x, y)
    m, n = len(x), len(y)
    pairs_x, pairs_y = _sums(x, x) - _own(x, x), _sums(y, y) - _own(y, y)
    crossed_x, crossed_y = _sums(x, y), _sums(y, x)
    within_x = pairs_x.sum() / (m * (m - 1))
    within_y = pairs_y.sum() / (n * (n - 1))
    value = within_x + within_y - 2 * crossed_x.mean() / n
    variance = _jackknife(pairs_x, crossed_x, n) + _jackknife(pairs_y, crossed_y, m)
    return KernelDistance(float(value), float(np.sqrt(variance)))


def paired_kernel_distance(x: np.ndarray, y: np.ndarray) -> KernelDistance:
    """Kernel distance MMD² of two sets where y_i was made from x_i, as a reconstruction is.

    Args:
        x, y: (n, d), n ≥ 3.

    Raises:
        UserError: fewer samples.
        ValueError: sets of different sizes or widths, or features that are not finite.
    """
    x, y = check_features("kernel distance", LEAST, x, y)
    if len(x) != len(y):
        raise ValueError(f"kernel distance of pairs: {len(x)} and {len(y)} samples")
    n = len(x)
    sums = _sums(x, x) + _sums(y, y) - _sums(x, y) - _sums(y, x)
    sums -= _own(x, x) + _own(y, y) - 2 * _own(x, y)
    without = (sums.sum() - 2 * sums) / ((n - 1) * (n - 2))
    error = np.sqrt((n - 1) * np.var(without))
    return KernelDistance(float(sums.sum() / (n * (n - 1))), float(error))


def _jackknife(pairs: np.ndarray, crossed: np.ndarray, others: int) -> float:
    """Jackknife variance of MMD² from leaving out each sample of one set.

    Args:
        pairs: Σ_j k(x_i, x_j) over j ≠ i, of each sample, (m,).
        crossed: Σ_j k(x_i, y_j), (m,).
        others: number of samples y_j.
    """
    m = len(pairs)
    within = (pairs.sum() - 2 * pairs) / ((m - 1) * (m - 2))
    between = (crossed.sum() - crossed) / ((m - 1) * others)
    return (m - 1) * np.var(within - 2 * between)


def _sums(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Σ_j k(x_i, y_j) for each i."""
    starts = range(0, len(x), BLOCK)
    return np.concatenate(
        [_kernel(x[start : start + BLOCK] @ y.T, x.shape[1]).sum(axis=1) for start in starts]
    )


def _own(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """k(x_i, y_i) for each i."""
    return _kernel((x * y).sum(axis=1), x.shape[1])


def _kernel(products: np.ndarray, width: int) -> np.ndarray:
    return (products / width + 1) ** 3
