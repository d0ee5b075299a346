"""A network in closed form, for both sides of a comparison: NumPy only, nonlinear, exact.

It is the perfect denoiser of x0 ~ half N(m, s²), half N(−m, s²), each number by itself. With
x̂ = x / √ᾱ = x0 + σ ε, the posterior mean of x0 is, with v = s² + σ²:

    E[x0 | x̂] = s²/v · x̂ + σ²/v · m · tanh(m x̂ / v)

Its noise levels are those of scaled_linear, computed here, and at fractional timesteps
interpolated linearly in log σ.
"""

import numpy as np

SHAPE = (1, 2, 1, 4)  # (B, h, w, c)
MEAN, STD = 0.8, 0.3


def log_sigmas(rescale_zero_terminal_snr=False):
    alphas_cumprod = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    if rescale_zero_terminal_snr:  # Lin 2023, algorithm 1
        rate = np.sqrt(alphas_cumprod)
        rate = (rate - rate[-1]) * rate[0] / (rate[0] - rate[-1])
        alphas_cumprod = np.maximum(rate**2, 2.0**-24)
    return np.log(1 / alphas_cumprod - 1) / 2


def toy_denoiser(prediction_type, rescale_zero_terminal_snr=False):
    """`denoiser(x, t) -> prediction`: x float32 (B, ...) variance preserving, t a number."""
    table = log_sigmas(rescale_zero_terminal_snr)

    def denoiser(noisy_latents, timestep):
        sigma = np.exp(np.interp(float(timestep), np.arange(1000), table))
        signal_rate = 1 / np.sqrt(1 + sigma**2)
        noise_rate = sigma * signal_rate
        x = np.asarray(noisy_latents, "float64")
        exploding, variance = x / signal_rate, STD**2 + sigma**2
        x0 = STD**2 / variance * exploding
        x0 += sigma**2 / variance * MEAN * np.tanh(MEAN * exploding / variance)
        # (x̂ − x0) / σ, in a form that loses no digits where σ is large or small
        epsilon = sigma / variance * (exploding - MEAN * np.tanh(MEAN * exploding / variance))
        prediction = epsilon
        if prediction_type == "v_prediction":
            prediction = signal_rate * epsilon - noise_rate * x0
        return prediction.astype("float32")

    return denoiser


def toy_etas(count):
    """An eta for each step: from all of DDPM's noise to none, and some in the middle."""
    return [abs(1 - 2 * step / count) for step in range(count)]


def with_variance(denoiser):
    """`denoiser` with a learned variance beside it, in as many channels more."""

    def predict(noisy_latents, timestep):
        prediction = denoiser(noisy_latents, timestep)
        return np.concatenate([prediction, np.tanh(prediction)], axis=-1)

    return predict


def toy_noise(step_index, shape=SHAPE):
    """Standard normal numbers of one step; −1 for the start. float32, `shape`."""
    return np.random.default_rng([7, step_index + 1]).standard_normal(shape).astype("float32")


def flow_denoiser(prediction_type="velocity"):
    """`denoiser(x, t) -> prediction` for x = (1 − σ) x0 + σ ε of the same data, t = 1000 σ."""

    def denoiser(noisy_latents, timestep):
        noise_rate = float(timestep) / 1000
        signal_rate = 1 - noise_rate
        x = np.asarray(noisy_latents, "float64")
        variance = signal_rate**2 * STD**2 + noise_rate**2
        pull = MEAN * np.tanh(signal_rate * MEAN * x / variance)
        x0 = (signal_rate * STD**2 * x + noise_rate**2 * pull) / variance
        epsilon = noise_rate * (x - signal_rate * pull) / variance
        prediction = x0 if prediction_type == "sample" else epsilon - x0
        return prediction.astype("float32")

    return denoiser
