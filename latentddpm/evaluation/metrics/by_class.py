"""Distances of each class: generated images of one class against training images of the same.

A model may draw one class well and another not at all, which numbers of all images together hide.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from latentddpm.evaluation.metrics.frechet import Statistics, frechet_distance
from latentddpm.evaluation.metrics.kernel import kernel_distance
from latentddpm.evaluation.report import aligned, shown

LEAST = 50
"""Images of a class, generated and of training each, from which its distances are measured."""


def members(words: Sequence[str | None]) -> dict[str, np.ndarray]:
    """Numbers of the images of each class, int64, in the order of the words.

    Args:
        words: of the images; None for one without a class, which is left out.
    """
    known = sorted({word for word in words if word is not None})
    named = np.array(["" if word is None else word for word in words])
    has = np.array([word is not None for word in words], bool)
    return {word: np.flatnonzero(has & (named == word)) for word in known}


def compare_classes(
    training: np.ndarray,
    training_words: Sequence[str | None],
    features: np.ndarray,
    words: Sequence[str | None],
) -> dict[str, dict[str, Any]]:
    """Distances of the generated images of each class from the training images of this class.

    Args:
        training: features of training images, (M, d).
        training_words: their classes.
        features: of generated images, (N, d).
        words: classes that these were asked for.

    Returns:
        Word → "images" and "training_images", their numbers, and "frechet" and "kernel", None
        with fewer than `LEAST` of either.
    """
    known, found = members(training_words), {}
    for word, numbers in members(words).items():
        own = known.get(word, np.zeros(0, np.int64))
        entry = {
            "images": len(numbers),
            "training_images": len(own),
            "frechet": None,
            "kernel": None,
        }
        if min(len(numbers), len(own)) >= LEAST:
            pair = training[own], features[numbers]
            entry["frechet"] = frechet_distance(*(Statistics().add(one) for one in pair))
            entry["kernel"] = kernel_distance(*pair).value
        found[word] = entry
    return found


def class_table(name: str, classes: dict[str, dict[str, Any]]) -> str:
    """Table of the distances of each class.

    Args:
        name: of the condition.
        classes: returned by `compare_classes`.
    """
    rows = [[name, "n", "training", "Fréchet", "kernel"]]
    for word, entry in classes.items():
        distances = (
            "-" if entry[key] is None else shown(entry[key]) for key in ("frechet", "kernel")
        )
        rows.append([word, str(entry["images"]), str(entry["training_images"]), *distances])
    return f"{aligned(rows)}\n(distances from {LEAST} images of a class on)"
