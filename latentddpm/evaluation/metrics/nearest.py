"""Memorised or made: how near generated images come to their nearest training images.

With features f and training images t, an image x has the distance

    d(x) = min_t ‖f(x) − f(t)‖

Images that were kept out of training come as near as chance has it: of generated ones, too, 5 %
should lie below the 5 % quantile of d over validation images, and a share well above it
says that the generator repeats what it has seen. (The training images have to be all, or most: a
copy of one that is not among them is not found. Held-back images should show other things: where
a drawing has twins among the training images, these hide copies.)
"""

from __future__ import annotations

import numpy as np

from latentddpm.evaluation.metrics.pairwise import check_features, squared_distances

QUANTILE = 0.05


def nearest(samples: np.ndarray, references: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest references of each sample, the nearest first.

    Args:
        samples: features (N, d).
        references: features (M, d), M ≥ k.

    Returns:
        Distances and numbers of references, (N, k) each.

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
        generated, validation: d(x) of either, (N,) and (M,).
    """
    return float(np.mean(generated < np.quantile(validation, QUANTILE)))
