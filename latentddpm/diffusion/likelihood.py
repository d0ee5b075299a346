"""Variational bound on the likelihood of latents, in bits per dimension (Ho 2020, eq. 5).

A step of the reverse process goes from x_t, at ᾱ, to x', at ᾱ' (1 after the last step). The
model's step is the true one with the predicted x̂0 in place of x0 (Ho 2020, eq. 6, 7):

    −log p(x0)  ≤  KL(q(x_{T−1} | x0) ‖ N(0, I))                         prior
                +  Σ_t KL(q(x' | x_t, x0) ‖ N(μ̃(x_t, x̂0), σ_t²)),        t = T−1 .. 1
                −  log N(x0; x̂0, β_0)                                    L_0, t = 0

    prior        ½ (ᾱ (x0² − 1) − log(1 − ᾱ))                            at ᾱ_{T−1}
    KL           ½ (snr' − snr) (x0 − x̂0)²                               σ² = β̃ (Kingma 2021, §4)
                 ½ r (snr' − snr) (x0 − x̂0)² + ½ (r − 1 − log r),   r = β̃ / β      σ² = β
    L_0          ½ (log 2π β_0 + (x0 − x̂0)² / β_0)

in nats, for each dimension of x0. Every term is linear in the squared error of x̂0, so one pass
of the network gives the bound for both choices of σ² (Ho 2020, §3.2). β is the true variance for
standard normal data, β̃ for data that is a single point. Where the data is smooth and the noise
least, β̃ costs up to γ/2 nats more (γ is Euler's constant; for levels of which the n-th is n times
the first).

Latents are continuous, so L_0 is a density, where Ho et al. have the probability of one of 256
levels. The bound is one on the differential entropy of the latents. It may be negative, it changes
by log₂ of the factor when latents are scaled, and it compares only models of the same autoencoder.

Pixels are levels −1, −1 + 2δ, …, 1. For a model of pixels L_0 is the probability of the level, as
in Ho et al. (eq. 13), with δ_± = ±δ but for the outermost levels, which reach to ±∞:

    L_0          −log (Φ((x0 + δ_+ − x̂0) / √β_0) − Φ((x0 + δ_− − x̂0) / √β_0))

That bound is never negative, and compares models of pixels with each other and with codecs.

A pass of the network for each of a thousand timesteps is expensive. So the timesteps are cut into
bands, and a single timestep, drawn from its band, counts for all of them. That is unbiased for any
bands. The bands here hold equal shares of the sum for Gaussian latents of unit variance, whose
terms are ½ log(1 + snr') − ½ log(1 + snr), most of it at little noise. On a model of 64×64 emoji
the estimate from 46 such bands scatters sixty times less than that from 46 bands of equal length.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from latentddpm.diffusion.schedule import NoiseSchedule
from latentddpm.errors import UserError
from latentddpm.utils import arrays

BITS = 1 / np.log(2)
"""Bits in a nat."""


def prior_term(schedule: NoiseSchedule, latents: np.ndarray) -> np.ndarray:
    """Prior term KL(q(x_{T−1} | x0) ‖ N(0, I)) of the bound.

    Args:
        schedule: of the denoiser.
        latents: x0, (N, ...).

    Returns:
        Bits per dimension of each of the latents, float64 (N,).
    """
    bar = schedule.alphas_cumprod[-1]
    power = np.mean(np.square(latents, dtype="float64"), axis=tuple(range(1, latents.ndim)))
    return BITS * (bar * (power - 1) - np.log1p(-bar)) / 2


def step_terms(schedule: NoiseSchedule) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Terms of the bound at each timestep, as linear functions of the squared error of x̂0.

    Args:
        schedule: of the denoiser.

    Returns:
        For "posterior" (σ² = β̃) and "beta" (σ² = β): offset and slope, float64 (T,) each. The
        term at t is offset + slope · (x0 − x̂0)² bits per dimension. That at 0 is L_0, the same
        in both.
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


def level_term(
    schedule: NoiseSchedule, images: np.ndarray, predicted: np.ndarray, levels: int
) -> np.ndarray:
    """Term L_0 of pixels: −log₂ of the probability of their levels, given x̂0 at timestep 0.

    Args:
        schedule: of the denoiser.
        images: x0, (N, ...), at levels from −1 to 1.
        predicted: x̂0, (N, ...).
        levels: their number, such as 256.

    Returns:
        Bits per dimension of each image, float64 (N,).
    """
    half, sigma = 1 / (levels - 1), np.sqrt(schedule.betas[0])
    images = images.astype("float64")
    error = images - predicted
    # Φ(b) − Φ(a) = Φ(−a) − Φ(−b): where both are negative the difference is exact.
    away = -np.abs(error)
    upper, lower = (log_normal_cdf((away + side) / sigma) for side in (half, -half))
    inside = upper + np.log1p(-np.exp(lower - upper))
    lowest, highest = images < half - 1, images > 1 - half
    outside = log_normal_cdf((half + np.where(lowest, error, -error)) / sigma)
    nats = np.where(lowest | highest, outside, inside)
    return -BITS * nats.mean(axis=tuple(range(1, nats.ndim)))


def log_normal_cdf(values: np.ndarray) -> np.ndarray:
    """Logarithm of the standard normal distribution function Φ, also far below zero.

    Args:
        values: float64, of any shape.
    """
    far = np.minimum(values, -30.0)
    tail = -(far**2) / 2 - np.log(-far * np.sqrt(2 * np.pi)) + np.log1p(-(far**-2) + 3 * far**-4)
    near = np.maximum(values, -30.0)
    return np.where(values < -30, tail, np.log(_erfc(-near / np.sqrt(2)) / 2))


_erfc = np.vectorize(math.erfc, otypes=["float64"])


def timestep_bands(schedule: NoiseSchedule, count: int | None = None) -> np.ndarray:
    """Edges of bands of timesteps; timestep 0, whose term is L_0, is a band of its own.

    Args:
        schedule: of the denoiser.
        count: the most bands, at least 2; None for a band for each timestep: the exact sum.

    Returns:
        Edges, int64 (bands + 1,). Band k has the timesteps edges[k] .. edges[k + 1] − 1. There
        are fewer than `count` bands where a single timestep has more than a band's share.

    Raises:
        UserError: fewer than 2 bands.
    """
    last = schedule.num_train_timesteps
    if count is None or count >= last:
        return np.arange(last + 1)
    if count < 2:
        raise UserError(f"timesteps of the bound: {count}, expected 2 to {last}")
    share = np.log1p(schedule.snr[0]) - np.log1p(schedule.snr)  # sum over timesteps 1 .. t
    inner = np.searchsorted(share, np.linspace(0, share[-1], count)[1:-1]) + 1
    return np.unique([0, 1, *inner, last])


def predicted_x0(
    schedule: NoiseSchedule,
    denoiser: Callable[[Any, Any], Any],
    latents: np.ndarray,
    noise: np.ndarray,
    timesteps: np.ndarray,
) -> np.ndarray:
    """Predictions x̂0 of a network from noisy latents.

    Args:
        schedule: of the denoiser.
        denoiser: `denoiser(noisy_latents, timesteps) -> prediction`.
        latents, noise: x0 and ε, float32 (B, ...).
        timesteps: int32 (B,).

    Returns:
        float64 (B, ...).
    """
    noisy = schedule.add_noise(latents, noise, timesteps)
    prediction = arrays.like(denoiser(noisy, timesteps), noisy)
    prediction = prediction[..., : latents.shape[-1]]  # without a learned variance
    # In float64: at little noise x0 and x̂0 agree in most digits, and their difference counts.
    exact = noisy.astype("float64"), timesteps
    return schedule.predict_x0(prediction.astype("float64"), *exact)


def squared_errors(latents: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Squared errors (x0 − x̂0)², the mean over the dimensions of each of the latents.

    Args:
        latents: x0, float32 (B, ...).
        predicted: x̂0, float64 (B, ...).

    Returns:
        float64 (B,).
    """
    error = predicted - latents
    return np.mean(np.square(error), axis=tuple(range(1, error.ndim)))
