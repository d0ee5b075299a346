"""Values of images and signals, for `doctor`: channels, bit depths, ranges, a window that fits."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from latentddpm.data.pictures.stored import FLOAT_BITS, Facts
from latentddpm.utils.images.pixel_format import NAMES
from latentddpm.utils.pixels import as_rgb


@dataclass
class Values:
    """Values of the readable images of a place.

    Attributes:
        channels: number of images by their channels.
        bits: number of images by their bits, 32 for floating point.
        low, high: smallest and largest value of the images that are not of 8 bits.
        window: lowest and highest value that is not among the outermost 0.1 % of its image.
        rates: number of signals by their rate, 0 for none; see `stored.Facts`.
    """

    channels: Counter = field(default_factory=Counter)
    bits: Counter = field(default_factory=Counter)
    low: float = math.inf
    high: float = -math.inf
    window: tuple[float, float] = (math.inf, -math.inf)
    rates: Counter = field(default_factory=Counter)

    def add(self, facts: Facts, middle: tuple[float, float]) -> None:
        """Count an image.

        Args:
            facts: about it.
            middle: values between which all but its outermost 0.2 % are.
        """
        self.channels[facts.width if facts.signal else facts.channels] += 1
        if facts.signal:
            self.rates[facts.rate] += 1
        self.bits[facts.bits] += 1
        if facts.bits != 8:
            self.low, self.high = min(self.low, facts.low), max(self.high, facts.high)
            low, high = self.window
            self.window = min(low, middle[0]), max(high, middle[1])

    def as_json(self) -> dict[str, Any]:
        """Object for the JSON of a report."""
        known = {"channels": self.channels, "bits": self.bits}
        known |= {"rates": self.rates} if self.rates else {}
        found = {name: {str(k): n for k, n in sorted(c.items())} for name, c in known.items()}
        if self.low <= self.high:
            found |= {"range": [self.low, self.high], "window": list(self.suggested())}
        return found

    def suggested(self) -> tuple[float, float]:
        """Window that keeps all but the outermost values; whole numbers, but for small ranges."""
        low, high = self.window
        wide = high - low > 10
        return (math.floor(low), math.ceil(high)) if wide else (low, high)

    def lines(self) -> Iterator[str]:
        """Lines of a report; none where all images are of 8 bits, and gray or RGB."""
        if set(self.channels) <= {3, 1} and set(self.bits) <= {8}:
            return
        known = {} if self.rates else NAMES
        names = (f"{known.get(k, f'{k} channels')} {n:,}" for k, n in self.channels.most_common())
        depths = (
            f"{'floating point' if k == FLOAT_BITS else f'{k} bits'} {n:,}"
            for k, n in self.bits.most_common()
        )
        yield f"  kinds    {'   '.join((*names, *depths))}"
        if self.rates:
            rates = (f"{rate:,} {n:,}" for rate, n in self.rates.most_common())
            yield f"  rates    {'   '.join(rates)} (signals; samples a second, 0 for none)"
        if self.low <= self.high:
            low, high = self.suggested()
            yield f"  values   {self.low:g} to {self.high:g} (of those that are not of 8 bits)"
            if self.low >= 0 and self.high <= 1 and FLOAT_BITS in self.bits:
                return  # the whole range of floating point
            yield f"  window   data.window=[{low:g}, {high:g}] keeps 99.8 % of each image"


def visible(values: np.ndarray) -> Image.Image:
    """Image that shows values, from the smallest as black to the largest as white.

    Args:
        values: (H, W, C) of any type.
    """
    low, high = float(values.min()), float(values.max())
    scaled = (values.astype(np.float32) - low) * (255 / max(high - low, 1e-30))
    return Image.fromarray(as_rgb(np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)))
