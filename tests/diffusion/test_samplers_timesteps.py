"""Which levels the samplers visit: every count, every spacing, and the rules of diffusers."""

import numpy as np
import pytest
from analytic import normal, step_noise, to_numpy

from latentddpm.diffusion import NoiseSchedule, samplers
from latentddpm.diffusion.samplers import TIMESTEP_SPACINGS, DDPMSampler

SCHEDULE = NoiseSchedule()
IN_SIGMA = ("dpmpp_2m", "dpmpp_2m_sde", "euler", "euler_ancestral", "heun", "unipc")
FRACTIONAL = ("euler", "euler_ancestral", "heun")
SKIP_LOWEST = (
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "unipc",
)  # space n + 1 timesteps, and leave out the lowest
COUNTS = range(1, 1001)
# Where the original LDM code crashes, and the ends.
ODD_COUNTS = (1, 2, 3, 9, 27, 36, 37, 101, 103, 107, 111, 999, 1000)


@pytest.mark.parametrize("spacing", TIMESTEP_SPACINGS)
@pytest.mark.parametrize("name", samplers.NAMES)
def test_every_count_gives_exactly_that_many_falling_timesteps(name, spacing):
    for count in COUNTS:
        sampler = samplers.get(name)(SCHEDULE, count, spacing)
        timesteps, levels = sampler.timesteps, sampler.alphas_cumprod
        case = f"{name}, {spacing}, num_steps={count}"
        if name not in FRACTIONAL or spacing != "linspace":
            assert np.issubdtype(timesteps.dtype, np.integer), f"expected integers for {case}"
        assert timesteps.shape == (count,), f"expected exactly num_steps timesteps for {case}"
        assert (np.diff(timesteps) < 0).all(), f"expected strictly falling timesteps for {case}"
        assert timesteps[-1] >= 0, f"expected no timestep below 0 for {case}"
        assert timesteps[0] <= 999, f"expected no timestep above T-1 for {case}"
        assert levels.shape == (count + 1,), f"expected a level per step and the end for {case}"
        assert (np.diff(levels) > 0).all(), f"expected rising signal for {case}"
        assert levels[-1] == 1, f"expected to end without noise for {case}"
        if spacing != "leading":
            assert timesteps[0] == 999, f"expected {case} to start at T-1"


@pytest.mark.parametrize("spacing", TIMESTEP_SPACINGS)
@pytest.mark.parametrize("name", IN_SIGMA)
def test_karras_levels_fall_for_every_count(name, spacing):
    """Karras 2022, eq. 5: even in σ^(1/7); the timesteps may repeat where they are rounded."""
    for count in COUNTS:
        sampler = samplers.get(name)(SCHEDULE, count, spacing, sigma_spacing="karras")
        timesteps, sigmas = sampler.timesteps, sampler.sigmas
        case = f"{name}, {spacing}, num_steps={count}"
        assert timesteps.shape == (count,), f"expected exactly num_steps timesteps for {case}"
        assert (np.diff(sigmas) < 0).all(), f"expected strictly falling σ for {case}"
        assert sigmas[-1] == 0, f"expected to end without noise for {case}"
        steps = np.diff(sigmas[:-1] ** (1 / 7))
        np.testing.assert_allclose(
            steps, steps.mean() if count > 1 else 0, rtol=1e-6, err_msg=f"{case}: expected eq. 5"
        )
        assert 0 <= timesteps[-1] <= timesteps[0] <= 999, f"expected 0 .. T-1 for {case}"
        if name in FRACTIONAL:
            assert (np.diff(timesteps) < 0).all(), f"expected falling timesteps for {case}"
        else:
            assert np.issubdtype(timesteps.dtype, np.integer), f"expected integers for {case}"
            assert (np.diff(timesteps) <= 0).all(), f"expected no rising timesteps for {case}"


@pytest.mark.parametrize(
    ("count", "spacing", "offset", "expected"),
    [
        (5, "leading", None, [801, 601, 401, 201, 1]),  # diffusers, steps_offset=1
        (5, "leading", 0, [800, 600, 400, 200, 0]),
        (3, "leading", None, [667, 334, 1]),
        (1, "leading", None, [1]),
        (5, "trailing", None, [999, 799, 599, 399, 199]),  # Lin 2023, table 2
        (3, "trailing", None, [999, 666, 332]),
        (5, "linspace", None, [999, 749, 500, 250, 0]),
        (1, "linspace", None, [999]),
    ],
)
def test_known_timesteps(count, spacing, offset, expected):
    timesteps = DDPMSampler(SCHEDULE, count, spacing, offset).timesteps
    np.testing.assert_array_equal(timesteps, expected, f"expected {expected}")


@pytest.mark.parametrize(
    ("name", "spacing", "expected"),
    [
        ("euler", "linspace", [999, 749.25, 499.5, 249.75, 0]),
        ("euler", "leading", [801, 601, 401, 201, 1]),
        ("dpmpp_2m", "leading", [831, 665, 499, 333, 167]),  # 6 of stride 166, the lowest left out
        ("dpmpp_2m", "linspace", [999, 799, 599, 400, 200]),
        ("unipc", "trailing", [999, 799, 599, 399, 199]),
        ("pndm", "linspace", [999, 749, 500, 250, 0]),
    ],
)
def test_known_timesteps_of_other_samplers(name, spacing, expected):
    timesteps = samplers.get(name)(SCHEDULE, 5, spacing).timesteps
    np.testing.assert_array_equal(timesteps, expected, f"expected {expected}")


@pytest.mark.parametrize("name", [name for name in samplers.NAMES if name != "lcm"])
def test_leading_has_the_stride_of_diffusers(name):
    """T // n, or T // (n + 1) without the lowest; also where much is left out, as with 60."""
    extra = name in SKIP_LOWEST
    for count in (7, 20, 30, 31, 50, 60, 250, 501, 998):
        stride = 1000 // (count + extra)
        expected = np.arange(count + extra)[::-1][:count] * stride + 1
        timesteps = samplers.get(name)(SCHEDULE, count).timesteps
        np.testing.assert_array_equal(timesteps, expected, f"expected stride {stride}")


@pytest.mark.parametrize("spacing", TIMESTEP_SPACINGS)
@pytest.mark.parametrize("name", samplers.NAMES)
def test_all_steps_are_all_timesteps(name, spacing):
    timesteps = samplers.get(name)(SCHEDULE, 1000, spacing).timesteps
    np.testing.assert_array_equal(timesteps, np.arange(999, -1, -1), "expected 999 .. 0")


@pytest.mark.parametrize("total", [1, 2, 7])
@pytest.mark.parametrize("name", samplers.NAMES)
def test_short_schedules_have_room_for_every_count(name, total):
    schedule = NoiseSchedule(num_train_timesteps=total)
    for spacing in TIMESTEP_SPACINGS:
        for count in range(1, total + 1):
            timesteps = samplers.get(name)(schedule, count, spacing).timesteps
            assert len(timesteps) == count, "expected num_steps timesteps"
            assert (np.diff(timesteps) < 0).all(), "expected strictly falling timesteps"
            assert 0 <= timesteps[-1] <= timesteps[0] < total, f"expected 0 .. {total - 1}"


@pytest.mark.parametrize("name", samplers.NAMES)
def test_odd_counts_run_to_the_end(name):
    # Of a thousand steps one sampler or two: test_samplers_gaussian.py
    for count, spacing in zip(ODD_COUNTS[:-2], TIMESTEP_SPACINGS * 4, strict=False):
        sampler = samplers.get(name)(SCHEDULE, count, spacing)
        shape = (1, 1, 1, 4)
        latents = sampler.sample(lambda x, t: 0.5 * x, normal(0, shape), step_noise(shape))
        assert np.isfinite(to_numpy(latents)).all(), (
            f"expected finite latents: {spacing}, {count} steps"
        )


@pytest.mark.parametrize(
    ("timestep", "after", "expected"),
    [
        (487, 486, 0.00979157),
        (999, 998, 0.01999998),
        (420, 400, 0.14771),  # strides of 20, published to 1e-5
        (980, 960, 0.32460),
    ],
)
def test_posterior_variance(timestep, after, expected):
    bars = NoiseSchedule("linear", 1e-4, 0.02).alphas_cumprod
    variance = samplers.posterior_variance(bars[timestep], bars[after])
    assert variance == pytest.approx(expected, abs=1e-5 if expected > 0.1 else 1e-8), (
        f"expected the fixed-small variance of {timestep} -> {after}"
    )
