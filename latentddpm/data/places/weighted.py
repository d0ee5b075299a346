"""Sampling by weight: places, and folders with repeats, whose images are used more often.

Images with one weight w are a group; of n images it has the share S = w n / Σ w n of all examples.
The groups are interleaved as aspect buckets are, by Sainte-Laguë's rule (see `data.buckets`), at
every position: of the first p examples a group has p S, give or take one or so. Its own examples
0, 1, 2, … are its images in a new order every n of them. So within a group every image is used
equally often, and which image an example has is a function of the seed and its position alone: a
run resumes exactly, on any number of replicas. With equal weights there is one group, which is the
plain sampling.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator, Sequence
from fractions import Fraction

import numpy as np

from latentddpm.data.buckets import BucketSchedule
from latentddpm.data.captioning.words import repeats_of
from latentddpm.data.catalog.catalog import Catalog
from latentddpm.data.catalog.split import Label, Selection
from latentddpm.data.places.union import Union
from latentddpm.data.sources.storage import order


class WeightedSelection(Selection):
    """Selection of images of which some are used more often; numbered group after group.

    Args:
        groups: images of each weight.
        weights: of an image of each group, whole numbers above 0.

    Attributes:
        groups: those with images.
        weights: of these.
    """

    def __init__(self, groups: Sequence[Selection], weights: Sequence[int]) -> None:
        pairs = [(one, w) for one, w in zip(groups, weights, strict=True) if len(one)]
        self.groups = [one for one, _ in pairs]
        self.weights = [weight for _, weight in pairs]
        self.sizes = [len(group) for group in self.groups]
        self.starts = np.cumsum([0, *self.sizes])
        self.schedule = BucketSchedule(
            [size * weight for size, weight in zip(self.sizes, self.weights, strict=True)] or [1]
        )

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def amount(self) -> int:
        return sum(size * weight for size, weight in zip(self.sizes, self.weights, strict=True))

    def rows(self, numbers: np.ndarray) -> np.ndarray:
        numbers = np.asarray(numbers, np.int64)
        group = np.searchsorted(self.starts, numbers, "right") - 1
        found = np.empty_like(numbers)
        for place, one in enumerate(self.groups):
            mine = group == place
            if mine.any():
                found[mine] = one.rows(numbers[mine] - self.starts[place])
        return found

    def parts(self, label: Label, number: int) -> list[Selection]:
        if number == 1:
            return [self]
        parts = [group.parts(label, number) for group in self.groups]
        return [
            WeightedSelection([of_group[one] for of_group in parts], self.weights)
            for one in range(number)
        ]

    def turn(self, position: int) -> tuple[int, int]:
        """Group of the example at a position, and the number of its examples before.

        Args:
            position: of the example.
        """
        before = self.schedule.before(position)
        group = self.schedule.next(before)
        return group, before[group]


def weighted(selection: Selection, catalog: Catalog, repeats: bool = False) -> Selection:
    """Selection whose images are used by weight; the same one where all weights are equal.

    Args:
        selection: of images of the catalog.
        catalog: of them.
        repeats: take those in the names of folders for weights.
    """
    if not repeats and not isinstance(catalog.source, Union):
        return selection
    weights, labels = weights_of(catalog, repeats)
    if len(weights) < 2:
        return selection
    parts = selection.parts(lambda start, stop: labels[start:stop], len(weights))
    if sum(len(part) > 0 for part in parts) < 2:
        return selection
    scale = math.lcm(*(weight.denominator for weight in weights))
    return WeightedSelection(parts, [int(weight * scale) for weight in weights])


def weights_of(catalog: Catalog, repeats: bool = False) -> tuple[list[Fraction], np.ndarray]:
    """Different weights of the images of a catalog, and the number of each image's among them.

    Args:
        catalog: of the images.
        repeats: take those in the names of folders for weights, as factors.

    Returns:
        Weights, increasing, and int32 (N,).
    """
    places = place_weights(catalog)
    if not repeats:
        found = sorted({weight for _, weight, _ in places})
        labels = [np.full(rows, found.index(weight), np.int32) for _, weight, rows in places]
        return found, np.concatenate(labels)
    each = [weight for _, weight, rows in places for _ in range(rows)]
    for row in range(len(each)):
        named = map(repeats_of, catalog.name(row).split("/")[:-1])
        each[row] *= next((one.count for one in reversed([*named]) if one), 1)
    found = sorted(set(each))
    numbers = {weight: number for number, weight in enumerate(found)}
    return found, np.array([numbers[weight] for weight in each], np.int32)


def place_weights(catalog: Catalog) -> list[tuple[str, Fraction, int]]:
    """Label, weight and number of images of each place, in the order of the images.

    Args:
        catalog: of the images.
    """
    source = catalog.source
    if not isinstance(source, Union):
        return [("", Fraction(1), len(catalog))]
    units = catalog.units

    class Names(Sequence):
        """Names of the units as sort keys, read when a search looks at them."""

        def __len__(self) -> int:
            return len(units)

        def __getitem__(self, unit: int) -> bytes:
            return units.text("name", unit)

    ends, found, start = units["end"], [], 0
    for label in source.parts:
        # "/" is followed by "0": the first name behind all those of this place
        unit = bisect.bisect_left(Names(), order(f"{label}0"))
        stop = int(ends[unit - 1]) if unit else 0
        found.append((label, source.weights[label], stop - start))
        start = stop
    return found


def weights_fact(catalog: Catalog) -> dict[str, str]:
    """Weights of places, as a fact that a resumed run has to agree with; empty for one place.

    Args:
        catalog: of the images.
    """
    if not isinstance(catalog.source, Union):
        return {}
    weights = (f"{label}:{float(w):g}" for label, w in catalog.source.weights.items())
    return {"weights of places": ", ".join(sorted(weights))}


def weight_lines(training: Selection, catalog: Catalog) -> Iterator[str]:
    """Lines for people: images and weight of each place, and its share of the examples.

    Args:
        training: images to train on, by weight.
        catalog: of all images.
    """
    places = place_weights(catalog)
    if len(places) > 1:
        total = sum(weight * rows for _, weight, rows in places)
        for label, weight, rows in places:
            share = float(weight * rows / total) if total else 0.0
            yield (
                f"place      {label}: {rows:,} images, weight {float(weight):g}, "
                f"{share:.1%} of the examples"
            )
        if both := in_several(catalog):
            first, second = both[0]
            yield (
                f"place      {len(both):,} images lie in several places, such as {first} and "
                f"{second}: each counts once in each"
            )
    elif isinstance(training, WeightedSelection):
        lowest, highest = (float(one) for one in (min(training.weights), max(training.weights)))
        yield f"repeats    of folders: {lowest:g} to {highest:g} (data.repeats)"


def in_several(catalog: Catalog) -> list[tuple[str, str]]:
    """Names of equal images in different places, in pairs: each with the first of its kind.

    Args:
        catalog: of the images of several places.
    """
    ends = np.cumsum([rows for _, _, rows in place_weights(catalog)])
    digests = np.ascontiguousarray(catalog.images["sha256"]).view("S32").ravel()
    order_of = np.argsort(digests, kind="stable")
    same = np.flatnonzero(digests[order_of][1:] == digests[order_of][:-1]) + 1
    firsts = order_of.copy()
    for place in same.tolist():
        firsts[place] = firsts[place - 1]
    found = ((int(firsts[one]), int(order_of[one])) for one in same)
    part = lambda row: int(np.searchsorted(ends, row, "right"))  # noqa: E731
    return [
        (catalog.where(first), catalog.where(row))
        for first, row in found
        if part(first) != part(row)
    ]
