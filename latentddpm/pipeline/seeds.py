"""Seeds and noise: image k of seed s is the image of seed s + k, whatever else is in its batch.

A counter-based generator (Philox; Salmon et al. 2011) with the key (seed, step) gives each image
its own noise at each step, the same on every backend and machine. A step that draws more than once
counts its draws in the highest word of the counter, which no draw reaches from below.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from numbers import Integral
from typing import Any

import numpy as np

from latentddpm.errors import UserError

MAX_SEED = 2**63 - 1


def image_seeds(seed: int | Sequence[int] | np.ndarray | None, count: int) -> list[int]:
    """Seeds of a number of images: seed, seed + 1, …

    Args:
        seed: of the first image; a list, tuple, range or array has the seed of each; None draws
            the first.
        count: number of images.

    Returns:
        A list of length `count`.

    Raises:
        UserError: no whole number, one outside 0 … `MAX_SEED` − `count`, or a list of another
            length.
    """
    if isinstance(seed, np.ndarray | np.generic):
        seed = seed.tolist()
    if isinstance(seed, list | tuple | range):
        if len(seed) != count:
            raise UserError(
                f"seed: {len(seed)} seeds for {count} images; expected one for each, or the first"
            )
        return [_checked(one, 1) for one in seed]
    first = secrets.randbelow(2**32) if seed is None else _checked(seed, count)
    return [first + k for k in range(count)]


def _checked(seed: Any, count: int) -> int:
    """Seed of the first of `count` images, as Python's own number."""
    if isinstance(seed, np.ndarray | np.generic):
        seed = seed.tolist()
    if not isinstance(seed, Integral) or isinstance(seed, bool):
        raise UserError(
            f"seed: expected a whole number, 0 … {MAX_SEED - count}, or a list of them, one for "
            f"each image; got {seed!r:.80}"
        )
    if not 0 <= seed <= MAX_SEED - count:
        drawn = "; leave it out to draw one" if seed < 0 else ""
        raise UserError(f"seed: {seed} is outside 0 … {MAX_SEED - count}{drawn}")
    return int(seed)


def starting_noise(
    seeds: Sequence[int], shape: tuple[int, ...], latents: np.ndarray | None = None
) -> np.ndarray:
    """Standard normal noise that each image starts from.

    Args:
        seeds: of the N images.
        shape: of one image's latents.
        latents: noise to use instead, (N, *shape); None for that of the seeds.

    Returns:
        float32 (N, *shape).

    Raises:
        UserError: `latents` that are no numbers, not finite, or of another shape.
    """
    if latents is None:
        return step_noise(seeds, shape, -1)
    try:
        latents = np.asarray(latents, np.float32)
    except (TypeError, ValueError):
        raise UserError(f"latents: expected an array, got {type(latents).__name__}") from None
    if not np.isfinite(latents).all():
        raise UserError("latents: hold numbers that are not finite")
    if latents.shape != (len(seeds), *shape):
        raise UserError(f"latents: expected {(len(seeds), *shape)}, got {latents.shape}")
    return latents


def step_noise(
    seeds: Sequence[int], shape: tuple[int, ...], step: int, draw: int = 0
) -> np.ndarray:
    """Standard normal noise that a stochastic sampler adds in a step.

    Args:
        seeds: of the N images.
        shape: of one image's latents.
        step: index of the sampler's step, 0 …
        draw: which of the draws of that step, 0 …

    Returns:
        float32 (N, *shape).
    """
    counter = [0, 0, 0, draw]
    bits = [np.random.Philox(key=[seed, step + 1], counter=counter) for seed in seeds]
    return np.stack([np.random.Generator(one).standard_normal(shape, np.float32) for one in bits])
