"""Betas: how much noise the forward process adds at each timestep.

A step of the forward process is x_t = √(1 − β_t) · x_{t−1} + √β_t · ε (Ho 2020, eq. 2), and
ᾱ_t = Π_{s ≤ t} (1 − β_s). The betas, t = 0 .. T−1 (the papers count 1 .. T):

    linear         evenly spaced from `beta_start` to `beta_end`      (Ho 2020, §4)
    scaled_linear  evenly spaced in √β; the choice of latent diffusion (Rombach 2022, its code)
    cosine         ᾱ_t = f(t) / f(0),  f(t) = cos²((t/T + 0.008) / 1.008 · π/2),
                   β_t at most 0.999                    (Nichol & Dhariwal 2021, eq. 17, §3.2)

None of them ends in pure noise: √ᾱ_{T−1} of scaled_linear is 0.068. In training that is enough to
tell the network how bright the image is; sampling starts from noise that does not. Zero terminal
SNR moves √ᾱ so that it begins where it did and ends at 0 (Lin 2023, algorithm 1):

    √ᾱ_t ← (√ᾱ_t − √ᾱ_{T−1}) · √ᾱ_0 / (√ᾱ_0 − √ᾱ_{T−1})
"""

from __future__ import annotations

import math

import numpy as np

BETA_SCHEDULES = ("linear", "scaled_linear", "cosine")


def make_betas(beta_schedule: str, beta_start: float, beta_end: float, count: int) -> np.ndarray:
    """Betas of a schedule.

    Args:
        beta_schedule: one of `BETA_SCHEDULES`.
        beta_start: β_0. Not used by "cosine".
        beta_end: β_{T−1}. Not used by "cosine".
        count: T.

    Returns:
        β_0 .. β_{T−1}, float64 (T,).
    """
    if beta_schedule == "linear":
        return np.linspace(beta_start, beta_end, count, dtype="float64")
    if beta_schedule == "scaled_linear":
        return np.linspace(beta_start**0.5, beta_end**0.5, count, dtype="float64") ** 2
    alphas_cumprod = np.cos((np.arange(count + 1) / count + 0.008) / 1.008 * math.pi / 2) ** 2
    return np.minimum(1 - alphas_cumprod[1:] / alphas_cumprod[:-1], 0.999)


def with_zero_terminal_snr(betas: np.ndarray) -> np.ndarray:
    """Betas whose ᾱ ends at exactly 0 (Lin 2023, algorithm 1).

    Args:
        betas: float64 (T,), of a schedule that ends with some signal.

    Returns:
        β_0 .. β_{T−1}, float64 (T,); the last is 1.
    """
    signal_rate = np.sqrt(np.cumprod(1 - betas))
    first, last = signal_rate[0], signal_rate[-1]
    alphas_cumprod = ((signal_rate - last) * (first / (first - last))) ** 2
    return 1 - alphas_cumprod / np.concatenate([[1.0], alphas_cumprod[:-1]])
