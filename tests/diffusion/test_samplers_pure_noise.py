"""Schedules that end in pure noise: every sampler starts well, also with a network that errs."""

import warnings

import numpy as np
import pytest
from analytic import (
    GaussianDenoiser,
    ddim_solution,
    exact_solution,
    normal,
    sde_solution,
    step_noise,
    to_numpy,
)

from latentddpm.diffusion import NoiseSchedule, samplers
from latentddpm.diffusion.samplers import TIMESTEP_SPACINGS
from latentddpm.diffusion.samplers.spacing import PURE_NOISE, USUAL_SIGMAS

MEAN, STD = 0.4, 0.5
COSINE = {"beta_schedule": "cosine"}
ZERO = {"rescale_zero_terminal_snr": True}
ENDING_IN_NOISE = {
    "cosine epsilon": {**COSINE, "prediction_type": "epsilon"},
    "cosine v": {**COSINE, "prediction_type": "v_prediction"},
    "cosine sample": {**COSINE, "prediction_type": "sample"},
    "zero v": {**ZERO, "prediction_type": "v_prediction"},
    "zero cosine sample": {**COSINE, **ZERO, "prediction_type": "sample"},
}
ENDING_WITH_SIGNAL = {
    "scaled_linear": {},
    "linear": {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
}
DETERMINISTIC = ("ddim", "dpmpp_2m", "euler", "heun", "pndm", "unipc")
STOCHASTIC = ("ddpm", "dpmpp_2m_sde", "euler_ancestral")  # pc: test_samplers_score.py
KARRAS = {"sigma_spacing": "karras"}
TOLERANCE = {5: 0.35, 20: 0.1}  # of methods of first order; the data's deviation is 0.5
started_lower = pytest.mark.filterwarnings("ignore:starting at timestep:UserWarning")


def options_of(name):
    return ({}, KARRAS) if issubclass(samplers.get(name), samplers.SigmaSampler) else ({},)


def erring(denoiser, error):
    """A denoiser whose predictions are off by `error`, another way in each call."""
    calls = []

    def predict(noisy_latents, timesteps):
        calls.append(None)
        return denoiser(noisy_latents, timesteps) + error * normal(
            (9, len(calls)), tuple(noisy_latents.shape)
        )

    return predict


def runs(name):
    """Every spacing and choice of levels at 5 steps, where errors are largest; trailing at 20."""
    for options in options_of(name):
        yield from ((5, spacing, options) for spacing in TIMESTEP_SPACINGS)
        yield 20, "trailing", options


@started_lower
@pytest.mark.parametrize("kind", ENDING_IN_NOISE)
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_a_network_that_errs_a_little_leads_to_nearly_the_exact_solution(name, kind):
    schedule = NoiseSchedule(**ENDING_IN_NOISE[kind])
    denoiser, latents = GaussianDenoiser(schedule, MEAN, STD), normal(2, (64, 1, 1, 1))
    for count, spacing, options in runs(name):
        sampler = samplers.get(name)(schedule, count, spacing, **options)
        result = to_numpy(sampler.sample(erring(denoiser, 0.003), latents))
        exact = exact_solution(latents, MEAN, STD, sampler.alphas_cumprod[0])
        distance = np.sqrt(np.mean((result - exact) ** 2))
        assert distance < TOLERANCE[count], (
            f"{count} {spacing} steps, {options}: expected the exact solution to "
            f"{TOLERANCE[count]}, got {distance:.3f}"
        )


@started_lower
@pytest.mark.parametrize("kind", ENDING_IN_NOISE)
@pytest.mark.parametrize("name", STOCHASTIC)
def test_random_samplers_have_the_mean_and_the_closed_form_of_the_variance(name, kind):
    schedule, shape = NoiseSchedule(**ENDING_IN_NOISE[kind]), (4096, 1, 1, 1)
    denoiser, latents = GaussianDenoiser(schedule, MEAN, STD), normal(3, shape)
    for count, spacing, options in runs(name):
        sampler = samplers.get(name)(schedule, count, spacing, **options)
        result = to_numpy(sampler.sample(erring(denoiser, 0.003), latents, step_noise(shape)))
        levels = sampler.alphas_cumprod
        solution = sde_solution(levels, STD) if "sde" in name else ddim_solution(levels, STD, 1.0)
        start, weights = solution
        expected = np.sqrt(start**2 + (weights**2).sum())
        case = f"{count} {spacing} steps, {options}"
        assert result.mean() == pytest.approx(MEAN, abs=0.05), f"{case}: expected the data's mean"
        assert result.std() == pytest.approx(expected, rel=0.06), f"{case}: expected its form"


@started_lower
@pytest.mark.parametrize("kind", ENDING_IN_NOISE)
@pytest.mark.parametrize("name", samplers.NAMES)
def test_every_count_gives_falling_levels(name, kind):
    schedule = NoiseSchedule(**ENDING_IN_NOISE[kind])
    for count in (1, 2, 5, 499, 999, 1000):
        for spacing in TIMESTEP_SPACINGS:
            for options in options_of(name):
                sampler = samplers.get(name)(schedule, count, spacing, **options)
                case = f"{count} {spacing} steps, {options}"
                assert count - 1 <= sampler.num_steps <= count, f"{case}: {sampler.num_steps}"
                levels = sampler.alphas_cumprod
                assert (np.diff(levels) > 0).all(), f"{case}: expected falling noise"
                assert len(levels) == len(sampler.timesteps) + 1, f"{case}: a level each, an end"
    short = NoiseSchedule(**ENDING_IN_NOISE[kind], num_train_timesteps=3)
    short = samplers.get(name)(short, 3)
    assert short.num_steps == 3, "expected no step to be left out of a short schedule"


@pytest.mark.parametrize(("count", "expected"), [(5, 958), (10, 973), (20, 986), (50, 993)])
@pytest.mark.parametrize("name", [name for name in samplers.NAMES if name != "lcm"])
def test_a_model_of_epsilon_starts_where_epsilon_tells_something(name, count, expected):
    schedule = NoiseSchedule("cosine")
    sampler = samplers.get(name)(schedule, count, "trailing")
    assert sampler.timesteps[0] == expected, "expected σ of at most 16, or 4 times the next one"
    assert sampler.alphas_cumprod[0] == pytest.approx(schedule.alphas_cumprod[expected])
    assert len(sampler.timesteps) == count, "expected as many steps"
    denoiser, noise = GaussianDenoiser(schedule, MEAN, STD), step_noise((1, 1, 1, 1))
    with pytest.warns(UserWarning, match=f"starting at timestep {expected} instead of 999"):
        sampler.sample(denoiser, normal(0, (1, 1, 1, 1)), noise)
    with warnings.catch_warnings():  # the first step is not taken
        warnings.simplefilter("error")
        sampler.sample(denoiser, normal(0, (1, 1, 1, 1)), noise, first_step=1)


@pytest.mark.parametrize("kind", [kind for kind in ENDING_IN_NOISE if "epsilon" not in kind])
@pytest.mark.parametrize("name", samplers.NAMES)
def test_others_start_at_the_last_timestep(name, kind):
    schedule = NoiseSchedule(**ENDING_IN_NOISE[kind])
    for options in options_of(name):
        assert samplers.get(name)(schedule, 20, "trailing", **options).timesteps[0] == 999


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("kind", ENDING_WITH_SIGNAL)
@pytest.mark.parametrize("name", samplers.NAMES)
def test_ordinary_schedules_are_walked_as_ever(name, kind, prediction_type):
    """No other start, no other levels, no other form of a step: all is that of diffusers."""
    schedule = NoiseSchedule(**ENDING_WITH_SIGNAL[kind], prediction_type=prediction_type)
    for count in (5, 10, 50, 1000):
        for spacing in TIMESTEP_SPACINGS:
            sampler = samplers.get(name)(schedule, count, spacing)
            assert sampler.timesteps[0] == 999 or spacing == "leading", (
                "expected the last timestep"
            )
            assert not any(map(sampler.is_far, range(count))), "expected steps along epsilon"
    assert getattr(sampler, "order", 4) == 4, "expected four predictions"


@pytest.mark.parametrize("kind", ["cosine v", "zero v"])
@pytest.mark.parametrize(
    "name", ["dpmpp_2m", "dpmpp_2m_sde", "euler", "euler_ancestral", "heun", "unipc"]
)
def test_karras_levels_are_not_spent_on_pure_noise(name, kind):
    schedule = NoiseSchedule(**ENDING_IN_NOISE[kind])
    for count in (5, 20, 50):
        sigmas = samplers.get(name)(schedule, count, "trailing", **KARRAS).sigmas
        assert sigmas[0] > PURE_NOISE, "expected the schedule's own start"
        assert sigmas[1] < USUAL_SIGMAS[0], "expected no second level of noise alone"
        assert sigmas[-2] >= USUAL_SIGMAS[1] * 0.999, "expected no useless step"


@pytest.mark.parametrize("name", ["heun", "pndm"])
def test_a_first_step_from_pure_noise_enlarges_no_error(name):
    """Two networks, 0.01 apart in v: their latents after it are not further apart."""
    schedule = NoiseSchedule("cosine", prediction_type="v_prediction")
    latents, reached = normal(1, (64, 1, 1, 1)), []
    denoiser = GaussianDenoiser(schedule, MEAN, STD)
    for off in (0.0, 0.01):
        states = []
        samplers.get(name)(schedule, 20, "trailing").sample(
            lambda x, t, off=off: denoiser(x, t) + off,
            latents,
            callback=lambda index, t, x, x0, states=states: states.append(to_numpy(x)),
        )
        reached.append(states[0])
    assert np.abs(reached[1] - reached[0]).max() < 0.01, "expected an error of less than v's"
