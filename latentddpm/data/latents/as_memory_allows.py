"""Function of a batch that is computed in smaller parts where memory is short."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np

Function = Callable[[np.ndarray], np.ndarray]


class AsMemoryAllows:
    """Function of a batch of images, computed in parts that fit into memory.

    The first part has the size that `fitting` says. It is halved whenever memory runs out, and
    stays so; a warning says it. All parts have the same size, the last one filled up, so that a
    network is compiled once for each size.

    Args:
        function: images (B, H, W, 3) → results (B, …), row by row.
        alone: the same for a single image that does not fit into memory in one pass.
        fitting: images → number of such images that fit; None where it is not known.

    Attributes:
        size: images of a part, 0 for one by one with `alone`; None before the first batch.
    """

    def __init__(
        self, function: Function, alone: Function, fitting: Callable[[np.ndarray], int | None]
    ) -> None:
        self.function, self.alone, self.fitting = function, alone, fitting
        self.size: int | None = None

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Results of a batch.

        Args:
            images: (B, H, W, 3).

        Returns:
            (B, …).
        """
        from latentddpm.utils.machine.memory import is_out_of_memory

        if self.size is None:
            fits = self.fitting(images)
            self.size = len(images) if fits is None else min(fits, len(images))
            if self.size < len(images):
                self._say(f"memory for {self.size} of {len(images)} images", self.size)
        while self.size:
            try:
                return self._in_parts(images, min(self.size, len(images)))
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
            self._say(f"out of memory with {self.size} images", self.size // 2)
            self.size //= 2
        return np.concatenate([self.alone(one[None]) for one in images])

    def _in_parts(self, images: np.ndarray, size: int) -> np.ndarray:
        results = []
        for start in range(0, len(images), size):
            part = images[start : start + size]
            filling = np.repeat(part[-1:], size - len(part), axis=0)
            whole = np.concatenate([part, filling]) if len(filling) else part
            results.append(self.function(whole)[: len(part)])
        return results[0] if len(results) == 1 else np.concatenate(results)

    @staticmethod
    def _say(why: str, size: int) -> None:
        how = f"{size} at a time" if size else "each alone, in strips"
        warnings.warn(f"{why}; encoding {how}", stacklevel=4)
