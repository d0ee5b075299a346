"""Nearest training images of generated images: a test for memorization.

With features f and training images t, an image x has the distance

    d(x) = min_t ‖f(x) − f(t)‖

Validation images were not trained on, so their d shows how small it is by chance. Of generated
images, too, about 5 % should lie below the 5 % quantile of d over validation images. A much larger
share says that the generator copies training images. The test needs all training images, or most:
a copy of a missing one is not found. Validation images should show other things than the training
images do: near-duplicates among them lower the quantile, and copies stay unnoticed.
"""

from __future__ import annotations

import numpy as np

from latentddpm.evaluation.metrics.pairwise import check_features, squared_distances

QUANTILE = 0.05


def nearest(samples: np.ndarray, references: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Nearest references of each sample.

    Args:
        samples: features (N, d).
        references: features (M, d), M ≥ k.
        k: how many to find.

    Returns:
        Distances, float64 (N, k), rising, and the numbers of the references, int64 (N, k).

    Raises:
        UserError: fewer references than k.
    """
    (references,) = check_features(f"{k} nearest images", k, references)
    samples, _ = check_features("nearest images", 1, samples, references)
    distances = np.empty((len(samples), k))
    numbers = np.empty((len(samples), k), np.int64)
    for rows, squares in squared_distances(samples, references):
        numbers[rows] = np.argsort(squares, axis=1, kind="stable")[:, :k]
        distances[rows] = np.sqrt(np.take_along_axis(squares, numbers[rows], axis=1))
    return distances, numbers


def share_nearer(generated: np.ndarray, validation: np.ndarray) -> float:
    """Share of generated images nearer to training images than all but 5 % of validation images.

    Args:
        generated, validation: distances d(x) of both sets, (N,) and (M,).

    Returns:
        In [0, 1]; a share well above 0.05 suggests memorization.
    """
    return float(np.mean(generated < np.quantile(validation, QUANTILE)))
