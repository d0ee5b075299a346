"""How many bits the model needs for latents: the variational bound (Ho 2020, eq. 5).

A step of the reverse process goes from x_t, at ᾱ, to x', at ᾱ' (1 behind the last step), and
the model's step is the true one with the predicted x̂0 in place of x0 (Ho 2020, eq. 6, 7):

    −log p(x0)  ≤  KL(q(x_{T−1} | x0) ‖ N(0, I))                         prior
                +  Σ_t KL(q(x' | x_t, x0) ‖ N(μ̃(x_t, x̂0), σ_t²)),        t = T−1 .. 1
                −  log N(x0; x̂0, β_0)                                    L_0, t = 0

    prior        ½ (ᾱ (x0² − 1) − log(1 − ᾱ))                            at ᾱ_{T−1}
    KL           ½ (snr' − snr) (x0 − x̂0)²                               σ² = β̃ (Kingma 2021, §4)
                 r · that + ½ (r − 1 − log r),   r = β̃ / β               σ² = β
    L_0          ½ (log 2π β_0 + (x0 − x̂0)² / β_0)

in nats, for each number of x0. Given x0, everything is a line in the squared error of x̂0: the
two choices of σ² (Ho 2020, §3.2) cost one pass of the network together. β is the true variance
for data as smooth as a Gaussian, β̃ for data that is one point; where it is smooth and noise
least, β̃ costs up to γ/2 nats more (γ Euler's constant; the n-th level is n times the first).

Latents are continuous, so L_0 is a density, where Ho et al. have the probability of one of 256
levels, and the bound is one of the differential entropy of the latents: it may be negative, it
moves by log₂ of the factor when latents are scaled, and it compares models of the same
autoencoder only.

A thousand passes for an image are many, so the timesteps are cut into bands, one is drawn of
each and counts for the whole band. That is unbiased whatever the bands; these hold equal shares
of what the sum is for Gaussian latents of unit variance, ½ log(1 + snr') − ½ log(1 + snr) a term,
most of which lies where noise is least. On a model of 64×64 emoji, 46 of them scatter
sixty times less than as many bands of equal length.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from latentddpm.diffusion.schedule import NoiseSchedule
from latentddpm.errors import UserError

BITS = 1 / np.log(2)
"""A nat in bits."""


def prior_term(schedule: NoiseSchedule, latents: np.ndarray) -> np.ndarray:
    """KL(q(x_{T−1} | x0) ‖ N(0, I)) of each of `latents` (N, ...): bits per dimension, (N,)."""
    bar = schedule.alphas_cumprod[-1]
    power = np.mean(np.square(latents, dtype="float64"), axis=tuple(range(1, latents.ndim)))
    return BITS * (bar * (power - 1) - np.log1p(-bar)) / 2


def step_terms(schedule: NoiseSchedule) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """L_0 and the KL terms as lines in the squared error of x̂0, in bits per dimension.

    Returns:
        For "posterior" (σ² = β̃) and "beta" (σ² = β): offset and slope, float64 (T,) each. The
        term at t is offset + slope · (x0 − x̂0)²; that at 0 is L_0, in both the same.
    """
    bars = schedule.alphas_cumprod
    ratio = (1 - bars[:-1]) / (1 - bars[1:])
    gain = (schedule.snr[:-1] - schedule.snr[1:]) / 2
    beta = schedule.betas[0]
    terms = {}
    for name, offset, slope in (
        ("posterior", 0 * ratio, gain),
        ("beta", (ratio - 1 - np.log(ratio)) / 2, ratio * gain),
    ):
        terms[name] = (
            BITS * np.concatenate([[np.log(2 * np.pi * beta) / 2], offset]),
            BITS * np.concatenate([[1 / (2 * beta)], slope]),
        )
    return terms


def timestep_bands(schedule: NoiseSchedule, count: int | None = None) -> np.ndarray:
    """Cut 0 .. T−1 into at most `count` bands, timestep 0 (L_0) alone in the first.

    Args:
        count: at least 2; None for one band a timestep, which is the whole sum.

    Returns:
        int64 (bands + 1,): band k holds the timesteps edges[k] .. edges[k + 1] − 1. A single
        timestep that holds more than its share makes for fewer bands than `count`.

    Raises:
        UserError: fewer than 2 bands.
    """
    last = schedule.num_train_timesteps
    if count is None or count >= last:
        return np.arange(last + 1)
    if count < 2:
        raise UserError(f"timesteps of the bound: {count}, expected 2 to {last}")
    share = np.log1p(schedule.snr[0]) - np.log1p(schedule.snr)  # of timesteps 1 .. t, ascending
    inner = np.searchsorted(share, np.linspace(0, share[-1], count)[1:-1]) + 1
    return np.unique([0, 1, *inner, last])


def squared_errors(
    schedule: NoiseSchedule,
    denoiser: Callable[[Any, Any], Any],
    latents: np.ndarray,
    noise: np.ndarray,
    timesteps: np.ndarray,
) -> np.ndarray:
    """(x0 − x̂0)², averaged over each of the latents, float64 (B,).

    Args:
        denoiser: `denoiser(noisy_latents, timesteps)`, the network's prediction.
        latents, noise: x0 and ε, float32 (B, ...).
        timesteps: int32 (B,).
    """
    noisy = schedule.add_noise(latents, noise, timesteps)
    prediction = keras.ops.convert_to_numpy(denoiser(noisy, timesteps))
    # In float64: next to no noise, where x0 and x̂0 agree in most digits, their difference counts.
    exact = noisy.astype("float64"), timesteps
    error = schedule.predict_x0(prediction.astype("float64"), *exact) - latents
    return np.mean(np.square(error), axis=tuple(range(1, error.ndim)))
