"""Closed forms for samplers: data that is one Gaussian, of which the best network is known.

For x0 ~ N(mean, std²) every x_t is Gaussian, √ᾱ mean and ᾱ std² + 1 − ᾱ, the network's best
answer is a line in x_t, and the way from noise to data can be written down.
"""

import itertools

import keras
import numpy as np


def to_numpy(values):
    return keras.ops.convert_to_numpy(values)


def normal(seed, shape):
    return np.random.default_rng(seed).standard_normal(shape).astype("float32")


def step_noise(shape):
    """`noise(step_index, draw)`, of which most samplers want the draw 0 alone."""
    return lambda step_index, draw=0: normal((7, step_index, draw), shape)


class GaussianDenoiser:
    """The exact denoiser of x0 ~ N(mean, std²), in any parametrisation.

    x_t ~ N(√ᾱ mean, v) with v = ᾱ std² + 1 − ᾱ, and E[ε | x_t] = √(1−ᾱ)(x_t − √ᾱ mean) / v.
    """

    def __init__(self, schedule, mean, std):
        self.schedule, self.mean, self.std = schedule, mean, std

    def __call__(self, noisy_latents, timesteps):
        shape = (-1, *[1] * (len(noisy_latents.shape) - 1))
        bar = alphas_cumprod_at(self.schedule, to_numpy(timesteps)).reshape(shape)
        signal, noise_rate = np.sqrt(bar).astype("float32"), np.sqrt(1 - bar).astype("float32")
        variance = (bar * self.std**2 + 1 - bar).astype("float32")
        centred = noisy_latents - signal * self.mean
        noise = noise_rate / variance * centred
        x0 = self.mean + signal * self.std**2 / variance * centred
        if self.schedule.prediction_type == "epsilon":
            return noise
        if self.schedule.prediction_type == "sample":
            return x0
        return signal * noise - noise_rate * x0


def alphas_cumprod_at(schedule, timesteps):
    """ᾱ in float64; between whole timesteps, log σ is interpolated."""
    if np.issubdtype(timesteps.dtype, np.integer):
        return schedule.alphas_cumprod[timesteps]
    bars = schedule.alphas_cumprod
    log_variance = np.log(1 / np.where(bars == 0, 2.0**-24, bars) - 1)
    between = np.interp(timesteps, np.arange(len(log_variance)), log_variance)
    return 1 / (1 + np.exp(between))


def exact_solution(latents, mean, std, level, next_level=1.0):
    """Where dx̂/dσ = ε takes `latents` from ᾱ = level to next_level: standardised, x stays."""
    spread, next_spread = (np.sqrt(bar * std**2 + 1 - bar) for bar in (level, next_level))
    return np.sqrt(next_level) * mean + next_spread / spread * (latents - np.sqrt(level) * mean)


def ddim_solution(levels, std, eta, large=False):
    """How DDIM(eta) with that denoiser maps noise to latents, in float64.

    `levels` are ᾱ of the steps and 1, a sampler's `alphas_cumprod`. Written for
    y = x − √ᾱ·mean, where each step is y' = gain·y + sigma·z. Returns the factor of the
    starting y, and the factor of each step's z. `eta` may be a list; `large` draws β, not β̃.
    """
    start, weights = 1.0, []
    etas = np.broadcast_to(eta, len(levels) - 1)
    for (bar, after), share in zip(itertools.pairwise(levels), etas, strict=True):
        sigma = share * np.sqrt((1 - after) / (1 - bar) * (1 - bar / after))
        gain = np.sqrt(bar * after) * std**2 + np.sqrt(max(1 - after - sigma**2, 0) * (1 - bar))
        gain /= bar * std**2 + 1 - bar
        drawn = share * np.sqrt(1 - bar / after) if large and after < 1 else sigma
        start, weights = start * gain, [weight * gain for weight in weights] + [drawn]
    return start, np.array(weights)


def sde_solution(levels, std):
    """The same for SDE-DPM-Solver++ 2M: a recursion of two terms, in λ = −log σ."""
    drawn = np.eye(len(levels))
    y, last = drawn[0], None  # in factors of the starting y and of each step's z
    for step, (bar, after) in enumerate(itertools.pairwise(levels), start=1):
        x0 = np.sqrt(bar) * std**2 / (bar * std**2 + 1 - bar) * y
        direction, ratio = x0, np.sqrt((1 / after - 1) / (1 / bar - 1))
        if after < 1:
            h = -np.log(ratio)
            if last is not None:
                direction = x0 + h / (2 * last[1]) * (x0 - last[0])
            last = x0, h
        y = np.sqrt((1 - after) / (1 - bar)) * ratio * y
        y = y + np.sqrt(after) * (1 - ratio**2) * direction
        y = y + np.sqrt((1 - after) * (1 - ratio**2)) * drawn[step]
    return y[0], y[1:]
