"""Every sampler against closed forms: the exact denoiser of a Gaussian, and what it must give."""

import itertools

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
from latentddpm.diffusion.samplers import TIMESTEP_SPACINGS, DDIMSampler, DDPMSampler
from latentddpm.diffusion.schedule import PREDICTION_TYPES
from latentddpm.errors import UserError

SCHEDULE = NoiseSchedule()
KARRAS = {"sigma_spacing": "karras"}
DETERMINISTIC = ("ddim", "dpmpp_2m", "euler", "heun", "pndm", "unipc")


def close(actual, expected, what, tolerance):
    np.testing.assert_allclose(
        to_numpy(actual), expected, rtol=tolerance, atol=tolerance, err_msg=what
    )


# ---- DDIM and DDPM, step by step


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("spacing", TIMESTEP_SPACINGS)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0, [0.0, 0.5, 1.0] * 4], ids=["0", "½", "1", "each"])
def test_ddim_is_the_closed_form_of_a_gaussian(prediction_type, spacing, eta):
    """Sample by sample: with this denoiser the result is linear in the drawn numbers."""
    mean, std, shape = 0.3, 0.5, (64, 2, 1, 3)
    schedule = NoiseSchedule(prediction_type=prediction_type)
    sampler = DDIMSampler(schedule, 12, spacing, eta=eta)
    latents, noise = normal(1, shape), step_noise(shape)
    actual = sampler.sample(GaussianDenoiser(schedule, mean, std), latents, noise)
    levels = [*schedule.alphas_cumprod[sampler.timesteps], 1.0]
    start, weights = ddim_solution(levels, std, eta)
    expected = mean + start * (latents - schedule.signal_rate[sampler.timesteps[0]] * mean)
    expected += sum(weight * noise(index) for index, weight in enumerate(weights))
    close(actual, expected, "expected the closed form", 2e-5)


@pytest.mark.parametrize("count", [12, 1])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ddpm", {}),
        ("ddpm", {"variance": "large"}),
        ("ddim", {"variance": "large", "eta": 1.0}),
        ("ddim", {"variance": "large", "eta": 0.3}),
        ("dpmpp_2m_sde", {}),
        ("dpmpp_2m_sde", KARRAS),
    ],
    ids=str,
)
def test_random_samplers_are_the_closed_form_of_a_gaussian(name, options, count):
    """Sample by sample, as above; Song's σ̂ in DDIM is the large variance of DDPM."""
    mean, std, shape = 0.3, 0.5, (64, 2, 1, 3)
    sampler = samplers.get(name)(SCHEDULE, count, "trailing", **options)
    latents, noise, levels = normal(1, shape), step_noise(shape), sampler.alphas_cumprod
    if name == "dpmpp_2m_sde":
        start, weights = sde_solution(levels, std)
    else:
        start, weights = ddim_solution(levels, std, options.get("eta", 1.0), "variance" in options)
    expected = mean + start * (latents - np.sqrt(levels[0]) * mean)
    expected += sum(weight * noise(index) for index, weight in enumerate(weights))
    tolerance = 1e-3 if options == KARRAS else 2e-5  # the network is told the nearest timestep
    denoiser = GaussianDenoiser(SCHEDULE, mean, std)
    close(sampler.sample(denoiser, latents, noise), expected, "expected its form", tolerance)


def test_a_learned_variance_is_between_the_two():
    """In logarithms: v = −1 is β̃, 1 is β, 0 their geometric mean (Nichol 2021, eq. 15)."""
    shape = (3, 2, 2, 4)
    denoiser, latents, noise = (
        GaussianDenoiser(SCHEDULE, 0.3, 0.5),
        normal(8, shape),
        normal(9, shape),
    )

    def added(variance, learned=None):
        """What the first of five steps adds for z = 1, above what it adds for z = 0."""
        sampler = DDPMSampler(SCHEDULE, 5, variance=variance)

        def predict(noisy_latents, timesteps):
            prediction = denoiser(noisy_latents, timesteps)
            rest = [] if learned is None else [np.full(shape, learned, "float32")]
            return np.concatenate([to_numpy(prediction), *rest], axis=-1)

        reached = []
        for scale in (0.0, 1.0):
            draw, first = (lambda _, scale=scale: scale * noise), {}
            sampler.sample(
                predict, latents, draw, lambda i, t, x, x0, at=first: at.setdefault(0, to_numpy(x))
            )
            reached.append(first[0])
        return reached[1] - reached[0]

    small, large = added("small"), added("large")
    close(added("learned_range", -1.0), small, "expected β̃", 1e-5)
    close(added("learned_range", 1.0), large, "expected β", 1e-5)
    both = np.sign(small) * np.sqrt(small * large)
    close(added("learned_range", 0.0), both, "expected their geometric mean", 1e-5)
    close(added("large", 0.7), large, "expected the second half to be left aside", 1e-6)
    assert np.abs(large).mean() > 1.02 * np.abs(small).mean(), "expected β above β̃"
    with pytest.raises(UserError, match="'learned_range' needs a network that predicts twice"):
        added("learned_range")


@pytest.mark.parametrize("name", ["ddpm", "ddim", "dpmpp_2m_sde", "pc"])
def test_clipped_estimates_stay_between_black_and_white(name):
    shape, seen = (8, 2, 2, 4), {}
    for clip in (False, True):
        sampler = samplers.get(name)(SCHEDULE, 5, clip_sample=clip)
        latents = sampler.sample(
            GaussianDenoiser(SCHEDULE, 0.9, 0.5),
            normal(8, shape),
            step_noise(shape),
            lambda index, t, latents, x0, clip=clip: seen.setdefault(clip, []).append(
                to_numpy(x0)
            ),
        )
        seen[clip].append(to_numpy(latents))
    assert np.abs(seen[False]).max() > 1.1, "expected estimates to clip"
    assert np.abs(seen[True]).max() <= 1, "expected every x0 in [-1, 1]"


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
    levels = DDIMSampler(SCHEDULE, count, "trailing").alphas_cumprod
    errors = []
    for eta in (0.0, 0.5, 1.0):
        start, weights = ddim_solution(levels, 0.5, eta)
        errors.append(abs(start**2 + (weights**2).sum() - 0.25))
    assert errors == sorted(errors), f"expected the error to grow with eta, got {errors}"


# ---- all samplers: mean and variance


@pytest.mark.parametrize(
    ("name", "arguments", "eta"),
    [
        ("ddim", {}, 0.0),
        ("ddim", {"eta": 0.5}, 0.5),
        ("ddim", {"eta": 1.0}, 1.0),
        ("ddpm", {}, 1.0),
        ("euler", {}, 0.0),
        ("euler_ancestral", {}, 1.0),
    ],
)
@pytest.mark.parametrize("count", [10, 100])
def test_mean_and_variance_of_many_samples(name, arguments, eta, count):
    """First order methods: DDIM's closed form, in which Euler is η = 0, ancestral is η = 1."""
    mean, std, shape = 2.0, 0.5, (16384, 1, 1, 1)
    sampler = samplers.get(name)(SCHEDULE, count, "trailing", **arguments)
    latents = normal(3, shape)
    result = to_numpy(
        sampler.sample(GaussianDenoiser(SCHEDULE, mean, std), latents, step_noise(shape))
    )
    start, weights = ddim_solution(sampler.alphas_cumprod, std, eta)
    variance = start**2 + (weights**2).sum()
    expected_mean = mean - start * SCHEDULE.signal_rate[999] * mean
    sigmas = 4.5  # both tolerances are 4.5 standard errors of 16384 samples
    assert result.mean() == pytest.approx(
        expected_mean, abs=sigmas * np.sqrt(variance / len(result))
    ), "expected the mean of the closed form"
    assert result.var() == pytest.approx(variance, rel=sigmas * np.sqrt(2 / len(result))), (
        "expected the variance of the closed form"
    )


@pytest.mark.parametrize("options", [{}, KARRAS], ids=["timesteps", "karras"])
@pytest.mark.parametrize("spacing", TIMESTEP_SPACINGS)
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_many_steps_come_to_the_exact_solution(name, spacing, options):
    """100 steps end where the differential equation does, example by example."""
    if options and name in ("ddim", "pndm"):
        pytest.skip("has no Karras sigmas")
    # Solvers of second order may still be a few percent off: their last step, from the lowest
    # level to no noise, is always of first order, and only Karras levels go low before it.
    tolerance = {"ddim": 0.04, "euler": 0.04}.get(name, 0.025)
    mean, std, latents = 0.3, 0.5, normal(2, (4, 2, 2, 4))
    # What the network predicts and where the timesteps lie do not meet in a sampler.
    for prediction_type in PREDICTION_TYPES if spacing == "trailing" else PREDICTION_TYPES[:1]:
        schedule = NoiseSchedule(prediction_type=prediction_type)
        sampler = samplers.get(name)(schedule, 100, spacing, **options)
        actual = sampler.sample(GaussianDenoiser(schedule, mean, std), latents)
        expected = exact_solution(latents, mean, std, sampler.alphas_cumprod[0])
        close(actual, expected, f"{prediction_type}: expected the exact solution", tolerance)


@pytest.mark.parametrize("name", ["ddpm", "dpmpp_2m_sde", "euler_ancestral"])
def test_many_random_steps_come_to_the_data_distribution(name):
    mean, std, shape = 0.4, 0.5, (16384, 1, 1, 1)
    sampler = samplers.get(name)(SCHEDULE, 300, "trailing")
    result = to_numpy(
        sampler.sample(GaussianDenoiser(SCHEDULE, mean, std), normal(5, shape), step_noise(shape))
    )
    assert result.mean() == pytest.approx(mean, abs=0.02), "expected the data's mean"
    assert result.var() == pytest.approx(std**2, rel=0.08), "expected the data's variance"


# ---- order of convergence


def error_at(name, count, timestep):
    """The error of the latents when a run of n steps of T // n reaches `timestep`."""
    mean, std = 0.3, 0.5
    latents = np.linspace(-2, 2, 8, dtype="float32").reshape(8, 1, 1, 1)
    cls = samplers.get(name)
    # One step fewer where the lowest timestep is left out, for the same levels.
    sampler = cls(SCHEDULE, count - cls.skip_lowest, steps_offset=1)
    at = list(sampler.timesteps).index(timestep)
    reached = {}
    sampler.sample(
        GaussianDenoiser(SCHEDULE, mean, std),
        latents,
        callback=lambda index, t, latents, x0: reached.update({index: to_numpy(latents)}),
    )
    levels = sampler.alphas_cumprod
    exact = exact_solution(latents.astype("float64"), mean, std, levels[0], levels[at])
    return np.abs(reached[at - 1] - exact).max()


@pytest.mark.parametrize(
    ("name", "lowest", "highest"),
    [
        ("ddim", 0.9, 1.1),
        ("euler", 0.9, 1.1),
        ("dpmpp_2m", 1.9, 2.3),
        ("heun", 1.9, 2.3),
        ("unipc", 2.5, np.inf),  # the corrector adds an order
        ("pndm", 1.3, np.inf),  # of the first steps, lower than that of the others
    ],
)
def test_order_of_convergence(name, lowest, highest):
    """The error falls as hᵖ: p from 20, 40 and 100 steps, read off at t = 201."""
    errors = [error_at(name, count, 201) for count in (20, 40, 100)]
    for (a, b), ratio in zip(itertools.pairwise(errors), (2, 2.5), strict=True):
        order = np.log(a / b) / np.log(ratio)
        assert lowest <= order <= highest, (
            f"{name}: expected order {lowest} to {highest}, got {order:.2f} from errors {errors}"
        )


@pytest.mark.parametrize("count", [10, 20, 40])
@pytest.mark.parametrize("name", ["dpmpp_2m", "heun", "pndm", "unipc"])
def test_higher_order_beats_ddim(name, count):
    first, higher = error_at("ddim", count, 201), error_at(name, count, 201)
    assert higher < 0.4 * first, f"{name}: expected an error below DDIM's {first}, got {higher}"


def test_karras_levels_serve_multistep_solvers():
    """At 10 steps: the first-order last step starts low, and the error is less than half."""
    mean, std, latents = 0.3, 0.5, normal(2, (4, 2, 2, 4))
    for name in ("dpmpp_2m", "unipc"):
        errors = []
        for options in (KARRAS, {}):
            sampler = samplers.get(name)(SCHEDULE, 10, "linspace", **options)
            exact = exact_solution(latents, mean, std, sampler.alphas_cumprod[0])
            result = sampler.sample(GaussianDenoiser(SCHEDULE, mean, std), latents)
            errors.append(np.abs(to_numpy(result) - exact).max())
        assert errors[0] < errors[1] / 2, f"{name}: expected Karras levels to win, got {errors}"


# ---- zero terminal SNR


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
@pytest.mark.parametrize("options", [{}, KARRAS], ids=["timesteps", "karras"])
@pytest.mark.parametrize("name", [name for name in samplers.NAMES if name != "lcm"])
def test_pure_noise_is_a_start_like_any_other(name, prediction_type, options):
    """From ᾱ = 0 at t = 999: at 100 steps the exact solution, or DDPM's variance on the way."""
    if options and name in ("ddim", "ddpm", "pc", "pndm"):
        pytest.skip("has no Karras sigmas")
    mean, std, shape = 0.4, 0.5, (4096, 1, 1, 1)
    if name == "pc":  # a Langevin step is as long as the norms over many numbers say
        shape = (1, 64, 64, 1)
    schedule = NoiseSchedule(prediction_type=prediction_type, rescale_zero_terminal_snr=True)
    sampler = samplers.get(name)(schedule, 100, "trailing", **options)
    assert sampler.timesteps[0] == 999, "expected a start at the last timestep"
    assert np.isfinite(sampler.alphas_cumprod).all(), "expected finite levels"
    latents = normal(4, shape)
    result = to_numpy(
        sampler.sample(GaussianDenoiser(schedule, mean, std), latents, step_noise(shape))
    )
    if sampler.stochastic:
        assert result.mean() == pytest.approx(mean, abs=0.03), "expected the data's mean"
        levels = sampler.alphas_cumprod
        solution = sde_solution(levels, std) if "sde" in name else ddim_solution(levels, std, 1.0)
        expected = std if name == "pc" else np.sqrt(solution[0] ** 2 + (solution[1] ** 2).sum())
        assert result.std() == pytest.approx(expected, rel=0.05), "expected the closed form"
    else:
        close(result, mean + std * latents, "expected the exact solution", 0.05)


@pytest.mark.parametrize("name", samplers.NAMES)
def test_one_step_from_pure_noise_is_the_mean(name):
    """All that is known at ᾱ = 0 is the mean, whatever the noise is."""
    schedule = NoiseSchedule(prediction_type="v_prediction", rescale_zero_terminal_snr=True)
    sampler = samplers.get(name)(schedule, 1, "trailing")
    shape = (8, 2, 2, 4)
    result = sampler.sample(
        GaussianDenoiser(schedule, 0.4, 0.5), normal(4, shape), step_noise(shape)
    )
    close(result, np.full(shape, 0.4), "expected the mean of the data", 2e-3)


@pytest.mark.parametrize(
    "config",
    [
        {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
        {"beta_schedule": "cosine"},
        {"beta_schedule": "cosine", "rescale_zero_terminal_snr": True},
        {"num_train_timesteps": 3000, "rescale_zero_terminal_snr": True},  # ᾱ_{T−2} < 2⁻²⁴
    ],
    ids=["linear", "cosine", "cosine zero", "long zero"],
)
def test_other_schedules(config):
    """Falling levels, and near the exact solution at 30 steps.

    Methods of first order are not as near, nor is PNDM with cosine: its weights are those of
    even steps, and the noise of cosine's last timesteps falls steeply.
    """
    mean, std, latents = 0.3, 0.5, normal(2, (4, 2, 2, 4))
    schedule = NoiseSchedule(**config, prediction_type="v_prediction")
    for name, spacing in zip(DETERMINISTIC, TIMESTEP_SPACINGS * 2, strict=True):
        for options in ({}, KARRAS) if name not in ("ddim", "pndm") else ({},):
            sampler = samplers.get(name)(schedule, 30, spacing, **options)
            case = f"{name}, {spacing}, {options}"
            levels = sampler.alphas_cumprod
            assert (np.diff(levels) > 0).all(), f"{case}: expected falling noise"
            actual = sampler.sample(GaussianDenoiser(schedule, mean, std), latents)
            expected = exact_solution(latents, mean, std, levels[0])
            tolerance = {"ddim": 0.25, "euler": 0.25, "pndm": 0.35}.get(name, 0.1)
            close(actual, expected, f"{case}: expected the exact solution", tolerance)


# ---- relations between samplers


@pytest.mark.parametrize("count", [250, 30])
def test_ddim_with_eta_one_is_ddpm(count):
    shape = (3, 2, 2, 4)
    denoiser = GaussianDenoiser(SCHEDULE, 0.3, 0.5)
    latents, noise = normal(8, shape), step_noise(shape)
    ddpm = DDPMSampler(SCHEDULE, count).sample(denoiser, latents, noise)
    ddim = DDIMSampler(SCHEDULE, count, eta=1.0).sample(denoiser, latents, noise)
    close(ddim, to_numpy(ddpm), "expected DDIM(1) = DDPM", 1e-4)


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize(("name", "same"), [("euler", "ddim"), ("euler_ancestral", "ddpm")])
def test_euler_is_ddim_and_ancestral_is_ddpm(name, same, spacing):
    """The same methods in other letters: at the same levels, the same latents."""
    shape = (3, 2, 2, 4)
    results = [
        samplers.get(one)(SCHEDULE, 13, spacing).sample(
            GaussianDenoiser(SCHEDULE, 0.3, 0.5), normal(8, shape), step_noise(shape)
        )
        for one in (name, same)
    ]
    close(results[0], to_numpy(results[1]), f"expected {name} = {same}", 2e-5)


def test_multistep_solvers_begin_and_end_as_ddim():
    """Of two steps the first has no memory and the last goes to σ = 0: both of first order."""
    latents, denoiser = normal(8, (3, 2, 2, 4)), GaussianDenoiser(SCHEDULE, 0.3, 0.5)
    ddim = DDIMSampler(SCHEDULE, 2, "trailing").sample(denoiser, latents)
    dpm = samplers.get("dpmpp_2m")(SCHEDULE, 2, "trailing").sample(denoiser, latents)
    close(dpm, to_numpy(ddim), "expected DPM-Solver++ of first order to be DDIM", 2e-5)
    noise = step_noise(latents.shape)
    ddpm = DDPMSampler(SCHEDULE, 2, "trailing").sample(denoiser, latents, noise)
    sde = samplers.get("dpmpp_2m_sde")(SCHEDULE, 2, "trailing").sample(denoiser, latents, noise)
    close(sde, to_numpy(ddpm), "expected SDE-DPM-Solver++ of first order to be DDPM", 2e-5)


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
