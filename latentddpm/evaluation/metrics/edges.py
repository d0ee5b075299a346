"""Agreement of edges and of masks: precision, recall and F1 of edge pixels, and IoU.

An edge is found if it lies where one is wanted, or no further away than a tolerance of θ pixels.
With the sets F of found and W of wanted edge pixels, and the Euclidean distance d,

    precision = |{f ∈ F : d(f, W) ≤ θ}| / |F|        recall = |{w ∈ W : d(w, F) ≤ θ}| / |W|
    F1 = 2 precision · recall / (precision + recall)

This is the boundary F1 of Csurka et al. 2013, "What is a good evaluation measure for semantic
segmentation?". The benchmark of BSDS (Martin, Fowlkes & Malik 2004) pairs each found pixel with
one wanted pixel of its own; here several may share one, so thick lines cost no precision
within θ. Precision of nothing found is 1, and so is recall of nothing wanted.

IoU = |F ∩ W| / |F ∪ W|, the index of Jaccard, has no tolerance.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class EdgeScores(NamedTuple):
    """Precision, recall and F1 of edges, each float64 (N,) in [0, 1].

    Attributes:
        precision: share of found edge pixels that are wanted; 1 where none is found.
        recall: share of wanted edge pixels that are found; 1 where none is wanted.
        f1: harmonic mean of both; 0 where both are 0.
    """

    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray


def edge_scores(found: np.ndarray, wanted: np.ndarray, tolerance: float = 1) -> EdgeScores:
    """Precision, recall and F1 of the edges of each image.

    Args:
        found, wanted: True on edges, bool (N, H, W).
        tolerance: distance θ ≥ 0 in pixels, Euclidean: 1 reaches the four neighbours, 1.5 all
            eight.

    Example:
        >>> wanted = np.zeros((1, 4, 4), bool)
        >>> wanted[:, :, 1] = True
        >>> edge_scores(np.roll(wanted, 1, axis=2), wanted).f1
        array([1.])
    """
    _check(found, wanted)
    if not tolerance >= 0:
        raise ValueError(f"a tolerance of {tolerance}, expected 0 or more pixels")
    precision = _share(found & _within(wanted, tolerance), found)
    recall = _share(wanted & _within(found, tolerance), wanted)
    return EdgeScores(precision, recall, _harmonic_mean(precision, recall))


def edge_f1(found: np.ndarray, wanted: np.ndarray, tolerance: float = 1) -> np.ndarray:
    """F1 of the edges of each image.

    Args:
        found, wanted: True on edges, bool (N, H, W).
        tolerance: distance in pixels, as in `edge_scores`.

    Returns:
        float64 (N,) in [0, 1], 1 for equal edges. Its mean is the F1 of a set of images.
    """
    return edge_scores(found, wanted, tolerance).f1


def intersection_over_union(found: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Intersection over union, IoU, of the masks of each image.

    Args:
        found, wanted: bool (N, H, W).

    Returns:
        float64 (N,) in [0, 1], 1 for equal masks, two empty ones among them.
    """
    _check(found, wanted)
    return _share(found & wanted, found | wanted)


def _check(found: np.ndarray, wanted: np.ndarray) -> None:
    for array in (found, wanted):
        if array.dtype != bool or array.shape != wanted.shape or array.ndim != 3:
            raise ValueError(
                f"expected two bool arrays (N, H, W), got {found.dtype} {found.shape} and "
                f"{wanted.dtype} {wanted.shape}"
            )


def _within(edges: np.ndarray, tolerance: float) -> np.ndarray:
    """Pixels no further than the tolerance from an edge: a dilation by a disc."""
    reach = int(tolerance)
    height, width = edges.shape[1:]
    padded = np.pad(edges, ((0, 0), (reach, reach), (reach, reach)))
    near = np.zeros_like(edges)
    for y in range(-reach, reach + 1):
        for x in range(-reach, reach + 1):
            if x * x + y * y <= tolerance * tolerance:
                rows, columns = slice(reach + y, None), slice(reach + x, None)
                near |= padded[:, rows, columns][:, :height, :width]
    return near


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Number of pixels of a part by that of the whole, (N,); 1 of nothing."""
    parts, wholes = (np.count_nonzero(one, axis=(1, 2)) for one in (part, whole))
    return np.where(wholes, parts / np.maximum(wholes, 1), 1.0)


def _harmonic_mean(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    total = a + b
    return np.where(total, 2 * a * b / np.where(total, total, 1), 0.0)
