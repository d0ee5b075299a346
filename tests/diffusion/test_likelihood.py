"""The variational bound against closed forms: data that is one Gaussian, denoised exactly.

For x0 ~ N(0, s²) the best x̂0 is off by s² / (1 + s² snr) in square, and the bound of the best
network comes down to the entropy ½ log2(2πe s²) as the steps get finer.
"""

import numpy as np
import pytest
from analytic import GaussianDenoiser, normal
from gaussian import gaussian_bound, least_error

from latentddpm.diffusion import NoiseSchedule
from latentddpm.diffusion.likelihood import (
    level_term,
    log_normal_cdf,
    predicted_x0,
    prior_term,
    squared_errors,
    step_terms,
    timestep_bands,
)
from latentddpm.diffusion.schedule import PREDICTION_TYPES
from latentddpm.errors import UserError

STD = 0.5


def kl_of_gaussians(mean, variance, other_mean, other_variance):
    """KL(N(mean, variance) ‖ N(other_mean, other_variance)) in nats."""
    ratio = variance / other_variance
    return (ratio - 1 - np.log(ratio) + (mean - other_mean) ** 2 / other_variance) / 2


@pytest.mark.parametrize("variance", ["posterior", "beta"])
@pytest.mark.parametrize("zero_snr", [False, True])
def test_terms_are_kls_between_the_two_steps(variance, zero_snr):
    """Each term against Ho's equations 6 and 7 written out, for an x0, an x̂0 and an x_t."""
    schedule = NoiseSchedule("linear", 1e-4, 0.02, 50, "v_prediction", zero_snr)
    bars, betas = schedule.alphas_cumprod, schedule.betas
    before = np.concatenate([[1.0], bars[:-1]])
    x0, guess, x = 0.7, 0.4, -0.9
    means = [
        (np.sqrt(before) * betas * clean + np.sqrt(1 - betas) * (1 - before) * x) / (1 - bars)
        for clean in (x0, guess)
    ]
    tilde = betas * (1 - before) / (1 - bars)
    sigma2 = {"posterior": tilde, "beta": betas}[variance]
    t = slice(1, None)
    expected = kl_of_gaussians(means[0][t], tilde[t], means[1][t], sigma2[t]) / np.log(2)
    offset, slope = step_terms(schedule)[variance]
    actual = offset + slope * (x0 - guess) ** 2
    np.testing.assert_allclose(actual[1:], expected, rtol=1e-9, err_msg="expected the KL")
    density = np.exp(-((x0 - guess) ** 2) / (2 * betas[0])) / np.sqrt(2 * np.pi * betas[0])
    assert actual[0] == pytest.approx(-np.log2(density)), "L_0: expected −log2 N(x0; x̂0, β_0)"


def test_prior_is_the_kl_to_a_standard_normal():
    schedule, latents = NoiseSchedule(), 2 * normal(0, (3, 4, 4, 2))
    rate, bar = schedule.signal_rate[-1], schedule.alphas_cumprod[-1]
    expected = kl_of_gaussians(rate * latents.astype("float64"), 1 - bar, 0, 1) / np.log(2)
    actual = prior_term(schedule, latents)
    np.testing.assert_allclose(actual, expected.mean((1, 2, 3)), rtol=1e-9)
    zero = NoiseSchedule(prediction_type="v_prediction", rescale_zero_terminal_snr=True)
    assert not prior_term(zero, latents).any(), "no signal left at the end: expected no prior term"


def gaps_above_entropy(variance):
    """Finer and finer steps from the same noise: bits above the entropy of the best network."""
    gaps = []
    for steps in (1000, 4000, 16_000, 64_000):
        schedule = NoiseSchedule("linear", 0.1 / steps, 20 / steps, steps)
        bound, entropy = gaussian_bound(schedule, STD, variance)
        gaps.append(bound - entropy)
    return np.array(gaps)


def test_bound_of_the_best_network_comes_down_to_the_entropy():
    """From above, and in proportion to the length of the steps."""
    gaps = gaps_above_entropy("beta")
    assert (gaps > 0).all(), f"expected bounds above the entropy, got gaps {gaps}"
    assert gaps[-1] < 2e-3, f"expected the entropy, got {gaps} above it"
    np.testing.assert_allclose(gaps[:-1] / gaps[1:], 4, rtol=0.1, err_msg=f"gaps {gaps}")


def test_posterior_variance_costs_half_of_eulers_constant():
    """Σ_n ½ (1/n − log(1 + 1/n)): the n-th noise level is n times the first, whatever T."""
    gaps = gaps_above_entropy("posterior") - np.euler_gamma / 2 / np.log(2)
    assert (gaps > 0).all(), f"expected bounds above the entropy and γ/2, got {gaps}"
    assert gaps[-1] < 1e-2, f"expected the entropy and γ/2, got {gaps} above it"
    assert (gaps[:-1] > 2 * gaps[1:]).all(), f"expected a limit, got {gaps}"


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_errors_of_the_best_network(prediction_type):
    """Measured through the network's prediction, whatever it predicts, down to the least noise."""
    schedule = NoiseSchedule("cosine", prediction_type=prediction_type)
    denoiser = GaussianDenoiser(schedule, 0.0, STD)
    for timestep in (0, 1, 10, 500, 999):
        latents, noise = STD * normal(1, (64, 8, 8, 4)), normal(2, (64, 8, 8, 4))
        timesteps = np.full(64, timestep, "int32")
        predicted = predicted_x0(schedule, denoiser, latents, noise, timesteps)
        actual = squared_errors(latents, predicted)
        assert actual.shape == (64,)
        expected = least_error(schedule, STD)[timestep]
        assert actual.mean() == pytest.approx(expected, rel=0.03), f"at timestep {timestep}"


# ---- Levels


@pytest.mark.parametrize("guess", [-1.3, -0.998, 0.1, 0.999, 4.0])
def test_levels_share_a_probability_of_one(guess):
    schedule, levels = NoiseSchedule("linear"), 256
    images = np.linspace(-1, 1, levels, dtype="float32")[:, None, None, None]
    bits = level_term(schedule, images, np.full(images.shape, guess), levels)
    assert bits.shape == (levels,)
    assert np.isfinite(bits).all(), "expected a probability above zero, however far"
    assert (bits > -1e-9).all(), "expected none above one"
    assert np.exp2(-bits).sum() == pytest.approx(1, abs=1e-6), f"probabilities for x̂0 = {guess}"
    nearest = np.abs(images.ravel() - guess).argmin()
    assert bits.argmin() == nearest, "expected the nearest level to be the likeliest"


def test_fine_levels_have_the_density_times_their_width():
    schedule, levels = NoiseSchedule(), 1 << 16
    images = (np.array([[-30000], [0], [31000]]) / 32767.5 + 1 / 65535).astype("float64")
    predicted = images + np.array([[0.01], [-0.05], [0.12]])
    variance = schedule.betas[0]
    density = (np.log(2 * np.pi * variance) + (images - predicted) ** 2 / variance) / 2
    expected = (density - np.log(2 / (levels - 1)))[:, 0] / np.log(2)
    actual = level_term(schedule, images, predicted, levels)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_the_normal_distribution_far_from_its_middle():
    special = pytest.importorskip("scipy.special")
    values = np.concatenate([np.linspace(-250, 8, 1000), [-30.0, -29.999, -30.001]])
    expected = special.log_ndtr(values)
    np.testing.assert_allclose(log_normal_cdf(values), expected, rtol=1e-8, atol=1e-15)


# ---- Bands


def test_bands_hold_every_timestep_once():
    for schedule in (NoiseSchedule(), NoiseSchedule("cosine")):
        for count in (2, 3, 30, 999):
            edges = timestep_bands(schedule, count)
            assert [edges[0], edges[1], edges[-1]] == [0, 1, 1000], "L_0 alone, all timesteps"
            assert (np.diff(edges) > 0).all(), f"expected no empty band, got {edges}"
            assert len(edges) - 1 <= count
        np.testing.assert_array_equal(timestep_bands(schedule), np.arange(1001))
    with pytest.raises(UserError, match=r"expected 2 to 1000"):
        timestep_bands(NoiseSchedule(), 1)


def test_a_timestep_of_each_band_estimates_the_sum_without_bias():
    """In closed form: the mean of what a band's timestep counts for is the band's own sum, and
    the draws scatter less than as many timesteps drawn from all."""
    schedule = NoiseSchedule("cosine")
    offset, slope = step_terms(schedule)["posterior"]
    terms = offset + slope * least_error(schedule, STD)

    def scatter(edges):
        widths = np.diff(edges)
        parts = np.split(terms, edges[1:-1])
        total = sum(len(part) * part.mean() for part in parts)
        assert total == pytest.approx(terms.sum()), "expected the whole sum on average"
        return np.sqrt(sum(w**2 * part.var() for w, part in zip(widths, parts, strict=True)))

    edges = timestep_bands(schedule, 30)
    even = np.unique([0, *np.linspace(1, 1000, len(edges) - 1).astype(int)])
    ours, theirs = scatter(edges), scatter(even)
    assert ours < 0.2 * theirs, f"expected less scatter than of even bands: {ours}, {theirs}"
