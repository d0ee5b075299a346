"""Samplers against oracles not written here: Gaussian closed forms and diffusers' numbers."""

import itertools

import keras
import numpy as np
import pytest

from latentddpm.diffusion import DDIMSampler, DDPMSampler, NoiseSchedule, Sampler, samplers
from latentddpm.diffusion.samplers import TIMESTEP_SPACINGS
from latentddpm.diffusion.schedule import PREDICTION_TYPES
from latentddpm.errors import UserError

SCHEDULE = NoiseSchedule()
LINEAR = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}


def to_numpy(values):
    return keras.ops.convert_to_numpy(values)


def normal(seed, shape):
    return np.random.default_rng(seed).standard_normal(shape).astype("float32")


def step_noise(shape):
    return lambda step_index: normal((7, step_index), shape)


class GaussianDenoiser:
    """The exact denoiser of x0 ~ N(mean, std²), in any parametrisation.

    x_t ~ N(√ᾱ mean, v) with v = ᾱ std² + 1 − ᾱ, and E[ε | x_t] = √(1−ᾱ)(x_t − √ᾱ mean) / v.
    """

    def __init__(self, schedule, mean, std):
        self.schedule, self.mean, self.std = schedule, mean, std

    def __call__(self, noisy_latents, timesteps):
        shape = (-1, *[1] * (len(noisy_latents.shape) - 1))
        bar = self.schedule.alphas_cumprod[to_numpy(timesteps)].reshape(shape).astype("float32")
        variance = bar * self.std**2 + 1 - bar
        centred = noisy_latents - np.sqrt(bar) * self.mean
        noise = np.sqrt(1 - bar) / variance * centred
        x0 = self.mean + np.sqrt(bar) * self.std**2 / variance * centred
        if self.schedule.prediction_type == "epsilon":
            return noise
        if self.schedule.prediction_type == "sample":
            return x0
        return np.sqrt(bar) * noise - np.sqrt(1 - bar) * x0


def gaussian_sampling(schedule, timesteps, mean, std, eta):
    """How DDIM(eta) with that denoiser maps noise to latents, in float64.

    Written for y = x − √ᾱ·mean, where each step is y' = gain·y + sigma·z. Returns the factor
    of the starting y, and the factor of each step's z.
    """
    bars = [*schedule.alphas_cumprod[timesteps], 1.0]
    start, weights = 1.0, []
    for bar, after in itertools.pairwise(bars):
        sigma = eta * np.sqrt((1 - after) / (1 - bar) * (1 - bar / after))
        gain = np.sqrt(bar * after) * std**2 + np.sqrt((1 - after - sigma**2) * (1 - bar))
        gain /= bar * std**2 + 1 - bar
        start, weights = start * gain, [weight * gain for weight in weights] + [sigma]
    return start, np.array(weights)


# ---- timesteps


@pytest.mark.parametrize("spacing", TIMESTEP_SPACINGS)
def test_every_count_gives_exactly_that_many_falling_timesteps(spacing):
    for count in range(1, 1001):
        timesteps = DDIMSampler(SCHEDULE, count, spacing).timesteps
        case = f"{spacing}, num_steps={count}"
        assert np.issubdtype(timesteps.dtype, np.integer), f"expected integers for {case}"
        assert timesteps.shape == (count,), f"expected exactly num_steps timesteps for {case}"
        assert (np.diff(timesteps) < 0).all(), f"expected strictly falling timesteps for {case}"
        assert timesteps[-1] >= 0, f"expected no timestep below 0 for {case}"
        assert timesteps[0] <= 999, f"expected no timestep above T-1 for {case}"
        if spacing != "leading":
            assert timesteps[0] == 999, f"expected {case} to start at T-1"
        else:  # Less than two strides of the noisy end may stay unvisited.
            assert timesteps[0] + 2 * 1000 / count >= 999, f"expected {case} to start near T"


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


@pytest.mark.parametrize("count", [7, 20, 30, 31, 50, 250])
def test_leading_has_the_stride_of_diffusers(count):
    expected = np.arange(count)[::-1] * (1000 // count) + 1
    timesteps = DDIMSampler(SCHEDULE, count).timesteps
    np.testing.assert_array_equal(timesteps, expected, f"expected stride {1000 // count}")


@pytest.mark.parametrize("spacing", TIMESTEP_SPACINGS)
def test_all_steps_are_all_timesteps(spacing):
    timesteps = DDIMSampler(SCHEDULE, 1000, spacing).timesteps
    np.testing.assert_array_equal(timesteps, np.arange(999, -1, -1), "expected 999 .. 0")


# ---- the published numbers of diffusers


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
    bars = NoiseSchedule(**LINEAR).alphas_cumprod
    variance = samplers.posterior_variance(bars[timestep], bars[after])
    assert variance == pytest.approx(expected, abs=1e-5 if expected > 0.1 else 1e-8), (
        f"expected the fixed-small variance of {timestep} -> {after}"
    )


class ClippedDDIM(DDIMSampler):
    """DDIM as diffusers runs it with `clip_sample=True`: x0 is clipped, ε stays as predicted.

    Pixels are clipped, latents are not, so this belongs to the test and not to the package.
    """

    def step(self, step_index, latents, denoise, noise, history):
        def clipped(latents, step_index):
            x0, epsilon = denoise(latents, step_index)
            return keras.ops.clip(x0, -1.0, 1.0), epsilon

        return super().step(step_index, latents, clipped, noise, history)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, 172.0067),
        ({"prediction_type": "v_prediction"}, 52.5302),
        ({"beta_start": 0.01}, 149.8295),
    ],
)
def test_ddim_loop_of_diffusers(config, expected):
    """diffusers' tests/schedulers/test_scheduler_ddim.py: `full_loop`, 10 steps, offset 0.

    Its fourth number, 149.0784 with set_alpha_to_one=False, ends at ᾱ_0 rather than at 1,
    which our samplers never do.
    """
    sample = np.arange(768, dtype="float32").reshape(3, 8, 8, 4) / 768  # (C, H, W, B)
    sample = sample.transpose(3, 1, 2, 0)  # (B, H, W, C)

    def model(noisy_latents, timesteps):
        t = keras.ops.cast(timesteps, "float32")[:, None, None, None]
        return noisy_latents * t / (t + 1)

    sampler = ClippedDDIM(NoiseSchedule(**{**LINEAR, **config}), 10, steps_offset=0)
    total = np.abs(to_numpy(sampler.sample(model, sample)).astype("float64")).sum()
    assert total == pytest.approx(expected, abs=2e-4), f"expected sum |x| = {expected}"


# ---- the analytic Gaussian


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("spacing", TIMESTEP_SPACINGS)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_is_the_closed_form_of_a_gaussian(prediction_type, spacing, eta):
    """Sample by sample: with this denoiser the result is linear in the drawn numbers."""
    mean, std, shape = 0.3, 0.5, (64, 2, 1, 3)
    schedule = NoiseSchedule(prediction_type=prediction_type)
    sampler = DDIMSampler(schedule, 12, spacing, eta=eta)
    latents, noise = normal(1, shape), step_noise(shape)
    actual = sampler.sample(GaussianDenoiser(schedule, mean, std), latents, noise)
    start, weights = gaussian_sampling(schedule, sampler.timesteps, mean, std, eta)
    expected = mean + start * (latents - schedule.signal_rate[sampler.timesteps[0]] * mean)
    expected += sum(weight * noise(index) for index, weight in enumerate(weights))
    np.testing.assert_allclose(
        to_numpy(actual), expected, rtol=2e-5, atol=2e-5, err_msg="expected the closed form"
    )


@pytest.mark.parametrize(
    ("cls", "arguments", "eta"),
    [
        (DDIMSampler, {}, 0.0),
        (DDIMSampler, {"eta": 0.5}, 0.5),
        (DDIMSampler, {"eta": 1.0}, 1.0),
        (DDPMSampler, {}, 1.0),
    ],
)
@pytest.mark.parametrize("count", [10, 100])
def test_mean_and_variance_of_many_samples(cls, arguments, eta, count):
    mean, std, shape = 2.0, 0.5, (16384, 1, 1, 1)
    sampler = cls(SCHEDULE, count, "trailing", **arguments)
    latents = normal(3, shape)
    result = to_numpy(
        sampler.sample(GaussianDenoiser(SCHEDULE, mean, std), latents, step_noise(shape))
    )
    start, weights = gaussian_sampling(SCHEDULE, sampler.timesteps, mean, std, eta)
    variance = start**2 + (weights**2).sum()
    expected_mean = mean - start * SCHEDULE.signal_rate[999] * mean
    sigmas = 4.5  # both tolerances are 4.5 standard errors of 16384 samples
    assert result.mean() == pytest.approx(
        expected_mean, abs=sigmas * np.sqrt(variance / len(result))
    ), "expected the mean of the closed form"
    assert result.var() == pytest.approx(variance, rel=sigmas * np.sqrt(2 / len(result))), (
        "expected the variance of the closed form"
    )


@pytest.mark.parametrize("cls", [DDIMSampler, DDPMSampler])
def test_all_steps_return_the_data_distribution(cls):
    """Not the sampler's own formula but the truth: N(mean, std²), to 2% and sampling error."""
    mean, std, shape = 0.4, 0.5, (8192, 1, 1, 1)
    result = cls(SCHEDULE, 1000).sample(
        GaussianDenoiser(SCHEDULE, mean, std), normal(5, shape), step_noise(shape)
    )
    assert to_numpy(result).mean() == pytest.approx(mean, abs=0.03), "expected the data's mean"
    assert to_numpy(result).var() == pytest.approx(std**2, rel=0.08), "expected its variance"


@pytest.mark.parametrize("count", [5, 10, 20, 50, 100])
def test_fewer_random_steps_are_better_steps(count):
    """The order of Song 2021, table 1: at any count the variance is nearest with eta=0."""
    timesteps = DDIMSampler(SCHEDULE, count, "trailing").timesteps
    errors = []
    for eta in (0.0, 0.5, 1.0):
        start, weights = gaussian_sampling(SCHEDULE, timesteps, 0.0, 0.5, eta)
        errors.append(abs(start**2 + (weights**2).sum() - 0.25))
    assert errors == sorted(errors), f"expected the error to grow with eta, got {errors}"


# ---- relations between samplers


@pytest.mark.parametrize("count", [1000, 30])
def test_ddim_with_eta_one_is_ddpm(count):
    shape = (3, 2, 2, 4)
    denoiser = GaussianDenoiser(SCHEDULE, 0.3, 0.5)
    latents, noise = normal(8, shape), step_noise(shape)
    ddpm = DDPMSampler(SCHEDULE, count).sample(denoiser, latents, noise)
    ddim = DDIMSampler(SCHEDULE, count, eta=1.0).sample(denoiser, latents, noise)
    np.testing.assert_allclose(
        to_numpy(ddim), to_numpy(ddpm), rtol=1e-4, atol=1e-4, err_msg="expected DDIM(1) = DDPM"
    )


def test_ddpm_step_is_equation_11():
    """The mean from ε (Ho 2020, eq. 11) is the mean from x0 (eq. 7) that the code has."""
    t, shape = 500, (2, 3, 3, 4)
    latents, epsilon, z = (normal(seed, shape) for seed in (1, 2, 3))
    sampler = DDPMSampler(SCHEDULE, 1000)
    x0 = SCHEDULE.predict_x0(epsilon, latents, t)
    actual, _, _ = sampler.step(999 - t, latents, lambda *_: (x0, epsilon), lambda _: z, None)
    beta, bar, before = SCHEDULE.betas[t], *SCHEDULE.alphas_cumprod[[t, t - 1]]
    expected = (latents - beta / np.sqrt(1 - bar) * epsilon) / np.sqrt(1 - beta)
    expected = expected + np.sqrt((1 - before) / (1 - bar) * beta) * z
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5, err_msg="expected eq. 11")


# ---- the loop


@pytest.mark.parametrize("cls", [DDIMSampler, DDPMSampler])
def test_denoiser_and_callback_see_the_documented_arguments(cls):
    seen, reached = [], []

    def denoiser(noisy_latents, timesteps):
        seen.append((noisy_latents, timesteps))
        return keras.ops.cast(noisy_latents, "float16") * 0.5  # as under mixed precision

    sampler = cls(SCHEDULE, 4)
    shape = (2, 3, 3, 4)
    result = sampler.sample(
        denoiser,
        normal(0, shape).astype("float64"),
        step_noise(shape),
        lambda *a: reached.append(a),
    )
    assert len(seen) == 4, "expected one call of the network per step"
    for (latents, timesteps), expected in zip(seen, sampler.timesteps, strict=True):
        assert keras.backend.standardize_dtype(latents.dtype) == "float32", "expected float32"
        assert keras.backend.standardize_dtype(timesteps.dtype) == "int32", "expected int32"
        np.testing.assert_array_equal(
            to_numpy(timesteps), [expected] * 2, "expected the step's timestep for each example"
        )
    assert [call[0] for call in reached] == [0, 1, 2, 3], "expected the indices of the steps"
    assert [call[1] for call in reached] == list(sampler.timesteps), "expected the timesteps"
    for call, (latents, _) in zip(reached[:-1], seen[1:], strict=True):
        np.testing.assert_array_equal(
            to_numpy(call[2]), to_numpy(latents), "expected the latents the step reached"
        )
    assert keras.backend.standardize_dtype(result.dtype) == "float32", "expected float32 latents"
    np.testing.assert_array_equal(
        to_numpy(result), to_numpy(reached[-1][3]), "expected the last step to return x0 itself"
    )


def test_samplers_keep_no_state():
    shape = (2, 2, 2, 4)
    sampler = DDIMSampler(SCHEDULE, 5, eta=1.0)
    before = dict(vars(sampler))
    denoiser = GaussianDenoiser(SCHEDULE, 0.3, 0.5)
    first = sampler.sample(denoiser, normal(0, shape), step_noise(shape))
    sampler.sample(denoiser, normal(1, (7, 1, 1, 4)), step_noise((7, 1, 1, 4)))
    again = sampler.sample(denoiser, normal(0, shape), step_noise(shape))
    np.testing.assert_array_equal(to_numpy(first), to_numpy(again), "expected equal results")
    assert vars(sampler) == before, "expected the sampler to be left as it was"
    with pytest.raises(ValueError, match="read-only"):
        sampler.timesteps[0] = 0


def test_an_image_does_not_depend_on_its_batch():
    shape = (5, 2, 2, 4)
    denoiser = GaussianDenoiser(SCHEDULE, 0.3, 0.5)
    sampler = DDPMSampler(SCHEDULE, 6)
    latents, noise = normal(0, shape), step_noise(shape)
    whole = sampler.sample(denoiser, latents, noise)
    one = sampler.sample(denoiser, latents[3:4], lambda step_index: noise(step_index)[3:4])
    np.testing.assert_allclose(
        to_numpy(one), to_numpy(whole)[3:4], rtol=1e-6, atol=1e-6, err_msg="expected image 3"
    )


def test_history_lives_within_one_call():
    """A multistep method needs only a `step`: second-order Adams–Bashforth on ε."""

    class TwoStep(Sampler):
        def step(self, step_index, latents, denoise, noise, history):
            x0, epsilon = denoise(latents, step_index)
            assert (history is None) == (step_index == 0), "expected history from step 1 on"
            mixed = epsilon if history is None else 1.5 * epsilon - 0.5 * history
            bar, after = self.alphas_cumprod_at(step_index)
            clean = (latents - (1 - bar) ** 0.5 * mixed) / bar**0.5
            return after**0.5 * clean + (1 - after) ** 0.5 * mixed, x0, epsilon

    sampler = TwoStep(SCHEDULE, 20)
    denoiser, latents = GaussianDenoiser(SCHEDULE, 0.3, 0.5), normal(0, (4, 1, 1, 4))
    first, again = (to_numpy(sampler.sample(denoiser, latents)) for _ in range(2))
    np.testing.assert_array_equal(first, again, "expected no history to leak into a second call")
    exact = to_numpy(DDIMSampler(SCHEDULE, 250).sample(denoiser, latents))
    plain = to_numpy(DDIMSampler(SCHEDULE, 20).sample(denoiser, latents))
    assert np.abs(first - exact).max() < np.abs(plain - exact).max(), (
        "expected second order to come nearer to the limit than DDIM"
    )


# ---- names and errors


def test_get_knows_every_name():
    assert samplers.NAMES == ("ddim", "ddpm"), "expected the two samplers of this version"
    assert samplers.get("ddim") is DDIMSampler, "expected 'ddim' to be DDIMSampler"
    assert samplers.get("ddpm") is DDPMSampler, "expected 'ddpm' to be DDPMSampler"
    with pytest.raises(UserError, match=r"'dimm' is not known \(did you mean 'ddim'\?\)"):
        samplers.get("dimm")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_steps": 0}, "num_steps: expected a whole number from 1 to 1000, got 0"),
        ({"num_steps": 1001}, "num_steps.*1001"),
        ({"num_steps": 2.5}, "num_steps.*2.5"),
        ({"timestep_spacing": "traling"}, "did you mean 'trailing'"),
        ({"steps_offset": 200}, "steps_offset.*from 0 to 199 for 5 of 1000"),
        ({"steps_offset": -1}, "steps_offset.*got -1"),
        ({"steps_offset": 1, "timestep_spacing": "trailing"}, "only 'leading' spacing"),
        ({"eta": 1.5}, "eta: expected 0"),
        ({"eta": -0.1}, "eta: expected 0"),
    ],
)
def test_bad_arguments_are_one_clear_line(arguments, message):
    with pytest.raises(UserError, match=message) as error:
        DDIMSampler(SCHEDULE, **{"num_steps": 5, **arguments})
    assert "\n" not in str(error.value), "expected a message of one line"


def test_a_stochastic_sampler_asks_for_noise():
    latents = normal(0, (2, 2, 2, 4))
    denoiser = GaussianDenoiser(SCHEDULE, 0.3, 0.5)
    assert not DDIMSampler(SCHEDULE, 5).stochastic, "expected DDIM to be deterministic"
    for sampler in (DDPMSampler(SCHEDULE, 5), DDIMSampler(SCHEDULE, 5, eta=0.1)):
        assert sampler.stochastic, "expected DDPM and DDIM with eta > 0 to be stochastic"
        with pytest.raises(UserError, match=r"noise: .*Sampler draws noise"):
            sampler.sample(denoiser, latents)


def test_wrong_shapes_are_refused_not_broadcast():
    latents = normal(0, (2, 2, 2, 4))
    with pytest.raises(UserError, match=r"prediction: expected .*\(2, 2, 2, 4\), got .*1\)"):
        DDIMSampler(SCHEDULE, 5).sample(lambda x, t: x[..., :1], latents)
    with pytest.raises(UserError, match=r"noise.*expected .*\(2, 2, 2, 4\), got \(1,"):
        DDPMSampler(SCHEDULE, 5).sample(lambda x, t: x, latents, step_noise((1, 2, 2, 4)))


def test_the_base_class_has_no_step():
    with pytest.raises(NotImplementedError, match="Sampler has no step"):
        Sampler(SCHEDULE, 5).sample(lambda x, t: x, normal(0, (1, 1, 1, 4)))
