"""Seeds to noise: image k of seed s is the image of seed s + k, whatever else is in its batch.

A counter-based generator (Philox; Salmon et al. 2011) keyed by (seed, step) gives every image
its own stream a step, the same on every backend and machine.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence

import numpy as np

from latentddpm.errors import UserError

MAX_SEED = 2**63 - 1


def image_seeds(seed: int | Sequence[int] | None, count: int) -> list[int]:
    """The seeds seed, seed + 1, … of `count` images; None draws the first.

    Raises:
        UserError: a negative or too large seed, or a list of another length.
    """
    if isinstance(seed, Sequence):
        if len(seed) != count:
            raise UserError(f"seed: {len(seed)} seeds for {count} images")
        return [one for given in seed for one in image_seeds(given, 1)]
    if seed is None:
        seed = secrets.randbelow(2**32)
    if not 0 <= seed <= MAX_SEED - count:
        raise UserError(f"seed: {seed} is outside 0 … {MAX_SEED - count}")
    return [seed + k for k in range(count)]


def starting_noise(seeds: Sequence[int], shape: tuple[int, ...]) -> np.ndarray:
    """Pure noise of each image, float32 (N, *shape), from its seed alone."""
    return step_noise(seeds, shape, -1)


def step_noise(seeds: Sequence[int], shape: tuple[int, ...], step: int) -> np.ndarray:
    """The noise a stochastic sampler adds in `step`, float32 (N, *shape)."""
    return np.stack(
        [
            np.random.Generator(np.random.Philox(key=[seed, step + 1])).standard_normal(
                shape, np.float32
            )
            for seed in seeds
        ]
    )
