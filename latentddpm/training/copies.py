"""Copies of training images among the drawings of a run: a warning, from its sample grids.

With small pictures p of `SIDE` × `SIDE` pixels, and the training images t₁, t₂, … in the order of
their distance to an image x, x has the ratio

    r(x) = ‖p(x) − p(t₁)‖ / mean_{k = 2 … K+1} ‖p(x) − p(t_k)‖

that is small where one training image is much nearer than the next ones (Carlini 2023, §4.2). A
distance alone would take every blurred drawing for a copy, because it is near to all images.

Images that were not trained on show how small r is by chance: validation images, or where these
are fewer than `ENOUGH` each training image among the others. `near` is the share of drawings whose
r is below that of all but 5 % of them, as in `evaluation.metrics.nearest`. A warning comes where
chance does not explain it.

Nothing of the training depends on it: the drawings are those of the sample grid.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

import numpy as np
from PIL import Image

from latentddpm.config import DiffusionRun
from latentddpm.data.catalog.split import Selection
from latentddpm.data.dataset import Dataset
from latentddpm.data.images import UnreadableImage
from latentddpm.data.prefetch import WORKERS
from latentddpm.evaluation.metrics.nearest import QUANTILE, nearest, share_nearer
from latentddpm.training.run.curves import Curve

SIDE = 16
NEIGHBOURS = 5
"""K: training images behind the nearest that its distance is compared with."""
ENOUGH = 20
"""Held-out images that show what is near by chance."""
MOST = 2000
"""Training images of a run that is looked at, at most."""
HIGH = 0.8
"""Probability of augmentation that is advised where there is some already."""
CHANCE = 1e-3
"""Probability at most, that a model which copies nothing draws as many near images."""


class Copies:
    """Comparison of drawings with the training images of a run.

    Args:
        dataset: of the run.
        config: of the run, complete.

    Attributes:
        first: step at which a warning was due for the first time; None for none.
        last: (near drawings, all drawings) of the newest validation.
    """

    def __init__(self, dataset: Dataset, config: DiffusionRun) -> None:
        self.dataset, self.config = dataset, config
        self.first: int | None = None
        self.last = (0, 0)

    @property
    def _looks(self) -> bool:
        """True for a run that is looked at: its data is small, and its drawings are its own.

        Drawings that are told a picture of the data have to be near to it.
        """
        config, count = self.config, len(self.dataset.training)
        told = config.control.trained or any(one.is_picture for one in config.conditions.values())
        return config.data.spatial_dims == 2 and not told and NEIGHBOURS + 3 <= count <= MOST

    def look(self, step: int, drawings: np.ndarray) -> float | None:
        """Share of drawings that are near to a training image, `near`.

        Args:
            step: of the validation.
            drawings: uint8 (N, H, W, 3).

        Returns:
            The share; None for a run that is not looked at, or whose images cannot be read.
        """
        if not self._looks or len(self._training) < NEIGHBOURS + 3:
            return None
        ratios = self._ratios(np.stack([_small(one) for one in drawings]))
        near = share_nearer(ratios, self._by_chance)
        self.last = round(near * len(ratios)), len(ratios)
        if self.first is None and self.last[0] >= unlikely(len(ratios)):
            self.first = step
        return near

    def warning(self, losses: Curve | None) -> str:
        """Sentence on copies, and on what helps; "" where there are none.

        Args:
            losses: of the validations so far, as logged; None for none.
        """
        near, count = self.last
        if self.first is None or near < unlikely(count):
            return ""
        augment = self.config.data.augment
        helps = ["more images", "fewer steps"]
        if not augment.changes:
            helps.insert(0, "data.augment.probability=0.5")
        elif augment.probability < HIGH:
            helps.insert(0, f"data.augment.probability={HIGH}")
        lowest = ""
        if losses is not None and losses.values.argmin() < len(losses.values) - 1:
            step = losses.steps[losses.values.argmin()]
            lowest = f"; the validation loss was lowest at step {step}"
            keeps = self.config.training.keep_best
            lowest += ", which training.keep_best=true would keep" * (not keeps)
        return (
            f"copies     {near} of {count} drawings are nearer to one training image than images "
            f"that were not trained on (first seen at step {self.first}); what helps: "
            f"{', '.join(helps)}{lowest}"
        )

    @cached_property
    def _training(self) -> np.ndarray:
        """Small training images, and with `data.flip` their mirror images."""
        small = self._read(self.dataset.training)
        if not self.config.data.flip:
            return small
        mirrored = small.reshape(-1, SIDE, SIDE, 3)[:, :, ::-1].reshape(small.shape)
        return np.concatenate([small, mirrored])

    @cached_property
    def _by_chance(self) -> np.ndarray:
        """Ratios of held-out images."""
        held_out = self._read(self.dataset.validation)
        if len(held_out) >= ENOUGH:
            return self._ratios(held_out)
        count = len(self._training) // (1 + self.config.data.flip)
        distances, numbers = nearest(self._training[:count], self._training, NEIGHBOURS + 3)
        own = numbers % count == np.arange(count)[:, None]  # itself, and its mirror image
        kept = np.argsort(own, axis=1, kind="stable")[:, : NEIGHBOURS + 1]
        return _ratio(np.take_along_axis(distances, kept, axis=1))

    def _ratios(self, small: np.ndarray) -> np.ndarray:
        return _ratio(nearest(small, self._training, NEIGHBOURS + 1)[0])

    def _read(self, images: Selection) -> np.ndarray:
        """Small pictures of images of the data, (N, SIDE² · 3)."""
        catalog, size = self.dataset.catalog, self.config.data.resolution
        pixels = self.dataset.pixels

        def read(row: int) -> list[np.ndarray]:
            try:
                return [_small(pixels.to_rgb(catalog.image(int(row), (size, size), pixels)))]
            except (UnreadableImage, OSError):  # which the run itself may not need any more
                return []

        with ThreadPoolExecutor(WORKERS) as pool:
            found = pool.map(read, images.rows(np.arange(len(images))))
            return np.array([one for some in found for one in some]).reshape(-1, 3 * SIDE**2)


def unlikely(count: int) -> int:
    """Number of near drawings, at least, that is not to be expected by chance.

    Args:
        count: of all drawings.
    """
    tail, least = 1.0, 0
    while tail > CHANCE:
        tail -= math.comb(count, least) * QUANTILE**least * (1 - QUANTILE) ** (count - least)
        least += 1
    return least


def _ratio(distances: np.ndarray) -> np.ndarray:
    """Ratios r of rising distances, (N, K + 1)."""
    return distances[:, 0] / np.maximum(distances[:, 1:].mean(axis=1), 1e-9)


def _small(picture: np.ndarray) -> np.ndarray:
    """Small picture, float64 (SIDE² · 3,), of one uint8 (H, W, 3)."""
    small = Image.fromarray(picture).resize((SIDE, SIDE), Image.Resampling.BOX)
    return np.asarray(small, np.float64).ravel()
