"""The score, and the predictor–corrector sampler that walks along it."""

import numpy as np
import pytest
from analytic import GaussianDenoiser, exact_solution, normal, step_noise, to_numpy

from latentddpm.diffusion import NoiseSchedule, samplers
from latentddpm.diffusion.schedule import PREDICTION_TYPES

SCHEDULE = NoiseSchedule()
MEAN, STD = 0.4, 0.5
MANY = (4, 64, 64, 1)  # numbers of one image: norms over them hardly differ


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_the_score_is_the_slope_of_the_log_density(prediction_type):
    """Of N(√ᾱ μ, ᾱ s² + 1 − ᾱ): (√ᾱ μ − x) / variance, whatever the network predicts."""
    schedule = NoiseSchedule(prediction_type=prediction_type)
    latents, timesteps = normal(1, (3, 2, 2, 4)), np.array([0, 500, 999])
    prediction = to_numpy(GaussianDenoiser(schedule, MEAN, STD)(latents, timesteps))
    bar = schedule.alphas_cumprod[timesteps][:, None, None, None]
    expected = (np.sqrt(bar) * MEAN - latents) / (bar * STD**2 + 1 - bar)
    for convert in (np.asarray, to_tensor):
        found = schedule.score(convert(prediction), convert(latents), convert(timesteps))
        np.testing.assert_allclose(to_numpy(found), expected, rtol=2e-4, atol=2e-4)


def to_tensor(values):
    from keras import ops

    return ops.convert_to_tensor(values)


def denoise_of(sampler, schedule=SCHEDULE):
    """`denoise` as `Sampler.sample` hands it to a step."""
    denoiser = GaussianDenoiser(schedule, MEAN, STD)

    def denoise(latents, step_index):
        prediction = denoiser(latents, sampler.timesteps[[step_index]])
        return schedule.split(prediction, latents, *sampler.rates(step_index))

    return denoise


@pytest.mark.parametrize("step_index", [0, 5, 9])
def test_langevin_steps_alone_come_to_the_density_of_their_level(step_index):
    """From anywhere to N(√ᾱ μ, v / (1 − α ρ²)), v = ᾱ s² + 1 − ᾱ: the closed form of δ = 2αρ²v."""
    sampler = samplers.get("pc")(SCHEDULE, 10, "trailing", snr=0.4)
    denoise, latents = denoise_of(sampler), 0.3 * normal(3, MANY)
    for draw in range(150):
        latents = sampler.correct(step_index, latents, denoise, normal((5, draw), MANY))
    bar, after = sampler.alphas_cumprod_at(step_index)
    variance = (bar * STD**2 + 1 - bar) / (1 - bar / after * sampler.snr**2)
    found = to_numpy(latents)
    error = 4.5 * np.sqrt(variance / found.size)
    assert found.mean() == pytest.approx(np.sqrt(bar) * MEAN, abs=error), "expected √ᾱ μ"
    assert found.var() == pytest.approx(variance, rel=4.5 * np.sqrt(2 / found.size) + 0.005), (
        "expected the variance of the closed form"
    )


def test_correctors_mend_what_ten_large_steps_leave():
    """DDPM's large variance leaves too much noise; Langevin steps at each level take it away."""
    errors = []
    for corrector_steps in (0, 1, 4):
        sampler = samplers.get("pc")(SCHEDULE, 10, corrector_steps=corrector_steps, snr=0.3)
        denoiser = GaussianDenoiser(SCHEDULE, MEAN, STD)
        at = sampler.add_noise(MEAN + STD * normal(1, MANY), normal(2, MANY), 0)
        reached = []
        sampler.sample(denoiser, at, step_noise(MANY), lambda *a, r=reached: r.append(a[2]))
        bar = sampler.alphas_cumprod[9]
        found, wanted = to_numpy(reached[8]).var(), bar * STD**2 + 1 - bar
        errors.append(abs(found / wanted - 1))
    assert errors[0] > errors[1] > errors[2], f"expected less and less error, got {errors}"


def test_without_correctors_it_is_ddpm():
    shape = (3, 2, 2, 4)
    denoiser = GaussianDenoiser(SCHEDULE, MEAN, STD)
    results = [
        to_numpy(sampler.sample(denoiser, normal(8, shape), step_noise(shape)))
        for sampler in (
            samplers.get("pc")(SCHEDULE, 13, corrector_steps=0),
            samplers.get("ddpm")(SCHEDULE, 13, variance="large"),
        )
    ]
    np.testing.assert_array_equal(*results, err_msg="expected the steps of the predictor")


@pytest.mark.parametrize("corrector_steps", [1, 3])
def test_noise_is_asked_once_for_each_draw(corrector_steps):
    """Draw 0 is the predictor's, as of every sampler; the last step only corrects."""
    asked = []

    def noise(step_index, draw=0):
        asked.append((step_index, draw))
        return normal((7, step_index, draw), (2, 4, 4, 1))

    sampler = samplers.get("pc")(SCHEDULE, 3, corrector_steps=corrector_steps)
    sampler.sample(GaussianDenoiser(SCHEDULE, MEAN, STD), normal(0, (2, 4, 4, 1)), noise)
    draws = range(corrector_steps + 1)
    assert sorted(asked) == sorted((k, d) for k in range(3) for d in draws if (k, d) != (2, 0)), (
        f"asked for {asked}"
    )


def test_a_network_of_zeros_is_not_corrected():
    """No score, no step: an untrained network's zeros must not become infinity."""
    shape = (2, 4, 4, 1)
    sampler = samplers.get("pc")(SCHEDULE, 5)
    found = sampler.sample(lambda x, t: 0 * x, normal(0, shape), step_noise(shape))
    assert np.isfinite(to_numpy(found)).all(), "expected finite latents"


def test_all_of_it_returns_the_data_distribution():
    sampler = samplers.get("pc")(SCHEDULE, 100, "trailing")
    denoiser = GaussianDenoiser(SCHEDULE, MEAN, STD)
    found = to_numpy(sampler.sample(denoiser, normal(5, MANY), step_noise(MANY)))
    assert found.mean() == pytest.approx(MEAN, abs=0.02), "expected the data's mean"
    assert found.var() == pytest.approx(STD**2, rel=0.06), "expected the data's variance"


# ---- beside diffusers


@pytest.mark.reference
def test_a_corrector_step_is_that_of_diffusers():
    """`ScoreSdeVeScheduler.step_correct`, of one image, where α is 1 (there it always is)."""
    diffusers = pytest.importorskip("diffusers")
    torch = pytest.importorskip("torch")
    shape, theirs = (1, 8, 8, 4), diffusers.ScoreSdeVeScheduler(snr=0.16)
    sampler = samplers.get("pc")(SCHEDULE, 1000)
    latents, noise, step = normal(1, shape), normal(2, shape), 900
    alpha = SCHEDULE.alphas[sampler.timesteps[step]]
    sampler.snr = 0.16 / np.sqrt(alpha)
    epsilon = denoise_of(sampler)(latents, step)[1]
    score = -epsilon / sampler.rates(step)[1]
    theirs.set_timesteps(10)
    module = __import__("sys").modules[type(theirs).__module__]
    drawn = torch.from_numpy(noise)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "randn_tensor", lambda *_, **__: drawn)
        expected = theirs.step_correct(
            torch.from_numpy(to_numpy(score)), torch.from_numpy(latents)
        )
    found = sampler.correct(step, latents, denoise_of(sampler), noise)
    np.testing.assert_allclose(to_numpy(found), expected.prev_sample.numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.reference
def test_a_predictor_step_is_that_of_diffusers_but_for_the_square_of_beta():
    """`ScoreSdeVpScheduler.step_pred` is Euler–Maruyama: the same to first order."""
    diffusers = pytest.importorskip("diffusers")
    torch = pytest.importorskip("torch")
    shape, theirs = (1, 8, 8, 4), diffusers.schedulers.ScoreSdeVpScheduler()
    theirs.set_timesteps(1000)
    module = __import__("sys").modules[type(theirs).__module__]
    times = theirs.timesteps.numpy().astype("float64")
    # The betas of its continuous schedule, ∫β = 0.1 t + 9.95 t², over each of its steps.
    sampler = samplers.get("pc")(SCHEDULE, 1000, corrector_steps=0)
    levels = np.exp(-0.1 * times - 9.95 * times**2)
    sampler.alphas_cumprod = np.append(levels, 1.0)
    latents, epsilon, noise = (normal(k, shape) for k in (1, 2, 3))
    for step in (0, 300, 600, 900):
        rates = sampler.rates(step)
        x0 = (latents - rates[1] * epsilon) / rates[0]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "randn_tensor", lambda *_, **__: torch.from_numpy(noise))
            expected, _ = theirs.step_pred(
                torch.from_numpy(epsilon), torch.from_numpy(latents), torch.tensor(times[step])
            )
        found, _, _ = sampler.step(
            step, latents, lambda *_, x0=x0: (x0, epsilon), lambda _: noise, None
        )
        beta = 1 - levels[step] / levels[step + 1]
        moved = np.abs(to_numpy(found) - expected.numpy()).max()
        size = (np.abs(latents) + np.abs(epsilon) / rates[1] + np.abs(noise)).max()
        assert moved < 0.6 * beta**1.5 * size, f"step {step}: {moved:.1e} for β = {beta:.1e}"


def test_exact_scores_follow_the_exact_solution():
    """The probability flow, dx̂/dσ = −σ score, small step by small step, is what DDIM solves."""
    latents = normal(2, (4, 2, 2, 4))
    x, levels = latents.astype("float64"), SCHEDULE.alphas_cumprod
    denoiser = GaussianDenoiser(SCHEDULE, MEAN, STD)
    for t in range(999, 0, -1):
        score = SCHEDULE.score(to_numpy(denoiser(x.astype("float32"), np.array(t))), x, t)
        exploding = x / np.sqrt(levels[t])
        # ∇ log p(x̂) = √ᾱ ∇ log p(x)
        slope = -SCHEDULE.sigmas[t] * np.sqrt(levels[t]) * score
        x = exploding + (SCHEDULE.sigmas[t - 1] - SCHEDULE.sigmas[t]) * slope
        x *= np.sqrt(levels[t - 1])
    expected = exact_solution(latents, MEAN, STD, levels[999], levels[0])
    np.testing.assert_allclose(x, expected, rtol=0.01, atol=0.01)
