"""Flow matching: its schedule, the levels that samplers visit, and the samplers on it."""

import itertools
from pathlib import Path

import keras
import numpy as np
import pytest
from analytic import normal, step_noise, to_numpy
from safetensors.numpy import load_file
from toy_denoiser import flow_denoiser, toy_noise

from latentddpm.choices import NOT_FOR_FLOW
from latentddpm.diffusion import FlowSchedule, NoiseSchedule, samplers
from latentddpm.diffusion.flow import FLOW_PREDICTIONS
from latentddpm.diffusion.inpainting import Inpainting
from latentddpm.diffusion.schedules import schedule_from_config
from latentddpm.errors import UserError

TESTS = Path(__file__).parents[1]
GOLDEN = load_file(TESTS / "golden" / "flow.safetensors")
CASES = sorted(name for name in GOLDEN if not name.endswith("/sigmas"))
MEAN, STD = 0.3, 0.5
FLOW_SAMPLERS = tuple(name for name in samplers.NAMES if name not in NOT_FOR_FLOW)
DETERMINISTIC = ("ddim", "dpmpp_2m", "euler", "heun", "unipc")


def gaussian(schedule):
    """The exact denoiser of x0 ~ N(MEAN, STD²) on a flow schedule."""

    def denoiser(noisy_latents, timesteps):
        sigma = to_numpy(timesteps).astype("float64").reshape(-1, *[1] * 3) / 1000
        signal, x = 1 - sigma, to_numpy(noisy_latents).astype("float64")
        pull = (x - signal * MEAN) / (signal**2 * STD**2 + sigma**2)
        x0, epsilon = MEAN + signal * STD**2 * pull, sigma * pull
        prediction = x0 if schedule.prediction_type == "sample" else epsilon - x0
        return prediction.astype("float32")

    return denoiser


# --- The schedule ------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction_type", FLOW_PREDICTIONS)
def test_the_target_gives_back_x0_and_noise(prediction_type):
    schedule = FlowSchedule(prediction_type=prediction_type)
    latents, noise = normal(1, (4, 2, 2, 3)), normal(2, (4, 2, 2, 3))
    timesteps = np.array([1000.0, 620.5, 250, 1])
    sigma = (timesteps / 1000).reshape(-1, 1, 1, 1)
    noisy = schedule.add_noise(latents, noise, timesteps)
    np.testing.assert_allclose(noisy, (1 - sigma) * latents + sigma * noise, atol=1e-6)
    target = schedule.target(latents, noise, timesteps)
    expected = latents if prediction_type == "sample" else noise - latents
    np.testing.assert_array_equal(target, expected, err_msg="another target")
    for what, found, true in (
        ("x0", schedule.predict_x0(target, noisy, timesteps), latents),
        ("noise", schedule.predict_noise(target, noisy, timesteps), noise),
    ):
        # float32 divides by σ = 0.001 where x0 is predicted
        np.testing.assert_allclose(found, true, atol=5e-4, err_msg=f"{what} did not come back")
    tensors = [keras.ops.convert_to_tensor(a) for a in (latents, noise)]
    again = schedule.add_noise(*tensors, keras.ops.convert_to_tensor(timesteps, "float32"))
    np.testing.assert_allclose(to_numpy(again), noisy, atol=1e-6, err_msg="tensors differ")


def test_a_level_is_that_of_a_ddpm_schedule_with_another_scale():
    """The same ratio of noise to signal; and velocity is v up to that scale and a part of x."""
    schedule = FlowSchedule()
    timesteps = np.array([0, 1, 250, 700.5, 999, 1000])
    sigma = timesteps / 1000
    for level, bar in zip(sigma, schedule.alphas_cumprod_at(timesteps), strict=True):
        scale = schedule.scale(bar)
        np.testing.assert_allclose(scale * np.sqrt([bar, 1 - bar]), [1 - level, level], atol=1e-9)
    x0, epsilon = normal(1, (6,)), normal(2, (6,))
    bar = schedule.alphas_cumprod_at(timesteps)
    kept = np.sqrt(bar) * x0 + np.sqrt(1 - bar) * epsilon
    v = np.sqrt(bar) * epsilon - np.sqrt(1 - bar) * x0
    # ε − x0 = a v + b x, as docs/math.md has it
    velocity = ((np.sqrt(bar) + np.sqrt(1 - bar)) * v) + (np.sqrt(1 - bar) - np.sqrt(bar)) * kept
    np.testing.assert_allclose(velocity, epsilon - x0, atol=1e-9)


def test_configurations_name_their_kind():
    flow = FlowSchedule(500, "sample", 3.0)
    for schedule in (flow, NoiseSchedule("cosine")):
        again = schedule_from_config(schedule.get_config())
        assert type(again) is type(schedule), f"{schedule} became {again}"
        assert again.get_config() == schedule.get_config(), f"{schedule} became {again}"
    assert type(schedule_from_config({})) is NoiseSchedule, "an old manifest names no kind"
    assert "kind" not in NoiseSchedule().get_config(), "an old digest would change"
    copied = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(flow))
    assert copied.get_config() == flow.get_config(), f"Keras makes {copied} of {flow}"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FlowSchedule(prediction_type="epsilon"), "'epsilon'.*'velocity', 'sample'"),
        (lambda: FlowSchedule(shift=0.0), "shift: expected a number above 0"),
        (lambda: FlowSchedule(0), "num_train_timesteps: 0"),
        (lambda: schedule_from_config({"kind": "flo"}), "did you mean 'flow'"),
        (lambda: schedule_from_config({"kind": "flow", "beta_end": 0.1}), "schedule key"),
        (lambda: FlowSchedule().min_snr_weights(5.0), "timestep_sampling logit_normal"),
        (lambda: FlowSchedule().add_noise(*np.zeros((2, 3)), np.array(1001.0)), "0 to 1000"),
    ],
)
def test_bad_values_are_one_clear_line(make, message):
    with pytest.raises(UserError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value), f"{caught.value}: more than a line"


# --- Levels ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spacing", "shift", "expected"),
    [
        ("trailing", 1.0, [1, 0.75, 0.5, 0.25]),
        ("trailing", 3.0, [1, 0.9, 0.75, 0.5]),
        ("linspace", 1.0, [1, 0.667, 0.334, 0.001]),
        ("leading", 1.0, [0.752, 0.502, 0.252, 0.002]),
    ],
)
def test_known_levels(spacing, shift, expected):
    for sampler in (
        samplers.EulerSampler(FlowSchedule(shift=shift), 4, spacing),
        samplers.EulerSampler(FlowSchedule(shift=7.0), 4, spacing, shift=shift),
    ):
        noise_rates = [sampler.rates(i)[1] for i in range(5)]
        np.testing.assert_allclose(noise_rates, [*expected, 0], atol=1e-9, err_msg=spacing)
        np.testing.assert_allclose(sampler.timesteps, 1000 * np.array(expected), atol=1e-9)
        for i in range(5):
            assert sum(sampler.rates(i)) == pytest.approx(1), f"rates {sampler.rates(i)}"


@pytest.mark.parametrize("spacing", samplers.TIMESTEP_SPACINGS)
def test_every_count_gives_falling_levels(spacing):
    for count, shift in itertools.product((1, 2, 7, 50, 400, 999, 1000), (0.3, 1.0, 12.0)):
        for name in ("ddim", "dpmpp_2m"):
            sampler = samplers.get(name)(FlowSchedule(shift=shift), count, spacing)
            assert len(sampler.timesteps) == count, f"{count} steps became {sampler.timesteps}"
            levels = [0.0, *sampler.timesteps[::-1], 1000 + 1e-9]
            assert (np.diff(levels) > 0).all(), f"{spacing} {count}: {sampler.timesteps}"


# --- Samplers ----------------------------------------------------------------------------------


def test_the_lessons_rule_is_euler_with_x_prediction():
    """x ← x · (1 − 1/(n−i)) + x̂0 / (n−i), to rounding."""
    steps, denoiser = 5, flow_denoiser("sample")
    sampler = samplers.EulerSampler(FlowSchedule(prediction_type="sample"), steps, "trailing")
    reached = []
    sampler.sample(
        lambda x, t: denoiser(x, np.asarray(t)[0]),
        toy_noise(-1),
        callback=lambda index, timestep, latents, x0: reached.append(to_numpy(latents)),
    )
    x = toy_noise(-1)
    for i in range(steps):
        x0 = denoiser(x, 1000 * (1 - i / steps))
        x = x * (1 - 1 / (steps - i)) + x0 / (steps - i)
        np.testing.assert_allclose(reached[i], x, atol=3e-7, err_msg=f"step {i}")


@pytest.mark.parametrize(
    ("name", "order"),
    [("ddim", 1), ("euler", 1), ("heun", 2), ("dpmpp_2m", 2), ("unipc", 2)],
)
def test_samplers_come_to_the_exact_flow_of_a_gaussian(name, order):
    """Along the flow, x keeps its place in the normal distribution: x0 = mean + std · x_1."""
    errors = []
    schedule, start = FlowSchedule(), normal(3, (64, 2, 1, 3))
    for count in (64, 128):
        sampler = samplers.get(name)(schedule, count, "trailing")
        found = to_numpy(sampler.sample(gaussian(schedule), start))
        errors.append(np.abs(found - (MEAN + STD * start)).max())
    assert errors[1] < {1: 0.02, 2: 0.002}[order], f"{name}: off by {errors}"
    power = np.log2(errors[0] / errors[1])
    assert power > order - 0.35, f"{name}: falls with the power {power}, expected {order}"


@pytest.mark.parametrize("name", FLOW_SAMPLERS)
def test_one_step_from_pure_noise_is_the_mean(name):
    schedule = FlowSchedule()
    sampler = samplers.get(name)(schedule, 1, "trailing")
    found = sampler.sample(gaussian(schedule), normal(3, (2, 2, 1, 3)), step_noise((2, 2, 1, 3)))
    np.testing.assert_allclose(to_numpy(found), MEAN, atol=1e-6)


@pytest.mark.parametrize(("name", "options"), [("ddpm", {}), ("euler_ancestral", {}), ("ddim", 1)])
def test_random_samplers_keep_the_marginals(name, options):
    """After half of the steps, too: N((1 − σ) mean, (1 − σ)² std² + σ²)."""
    options = {"eta": 1.0} if options else {}
    shape, schedule = (6000, 1, 1, 1), FlowSchedule()
    sampler, seen = samplers.get(name)(schedule, 100, "trailing", **options), []
    sampler.sample(
        gaussian(schedule),
        normal(5, shape),
        step_noise(shape),
        lambda index, timestep, latents, x0: seen.append(to_numpy(latents)),
    )
    for index in (49, 99):
        signal, noise = sampler.rates(index + 1)
        assert seen[index].mean() == pytest.approx(signal * MEAN, abs=0.03), f"step {index}"
        expected = np.hypot(signal * STD, noise)
        assert seen[index].std() == pytest.approx(expected, rel=0.05), f"step {index}"


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_latents_noised_on_the_way_go_back(name):
    schedule, latents = FlowSchedule(), normal(4, (8, 2, 1, 3)) * STD + MEAN
    sampler = samplers.get(name)(schedule, 40, "trailing")
    noise = normal(6, latents.shape)
    noisy = sampler.add_noise(latents, noise, 20)
    np.testing.assert_allclose(noisy, (latents + noise) / 2, atol=1e-6, err_msg="half of each")
    found = to_numpy(sampler.sample(gaussian(schedule), noisy, first_step=20))
    spread = np.hypot(0.5 * STD, 0.5)
    exact = MEAN + STD / spread * (noisy - 0.5 * MEAN)
    np.testing.assert_allclose(found, exact, atol=0.05, err_msg=name)


@pytest.mark.parametrize("name", FLOW_SAMPLERS)
def test_inpainting_keeps_what_is_known(name):
    schedule, known = FlowSchedule(), normal(4, (4, 4, 3))
    repaint = np.zeros((4, 4, 1))
    repaint[:2] = 1
    sampler = Inpainting(samplers.get(name)(schedule, 8, "trailing"), known, repaint)
    shape = (2, 4, 4, 3)
    found = to_numpy(sampler.sample(gaussian(schedule), normal(3, shape), step_noise(shape)))
    np.testing.assert_array_equal(found[:, 2:], np.stack([known[2:]] * 2), err_msg="kept part")
    assert np.isfinite(found).all(), f"{name}: not finite"


# --- diffusers ---------------------------------------------------------------------------------


def check(case, trajectory, sigmas):
    name, spacing, shift, count = case.split("/")
    sampler = samplers.get(name)(FlowSchedule(shift=float(shift)), int(count), spacing)
    levels = [sampler.rates(i)[1] for i in range(sampler.num_steps + 1)]
    np.testing.assert_allclose(levels, sigmas, atol=1e-6, err_msg=f"{case}: other levels")
    denoiser, reached = flow_denoiser(), []
    sampler.sample(
        lambda x, t: denoiser(x, np.asarray(t)[0]),
        toy_noise(-1),
        callback=lambda index, timestep, latents, x0: reached.append(to_numpy(latents)),
    )
    np.testing.assert_allclose(
        np.stack(reached), trajectory, atol=1e-5, err_msg=f"{case}: expected diffusers' latents"
    )


@pytest.mark.parametrize("name", sorted({case.split("/")[0] for case in CASES}))
def test_trajectories_are_those_of_diffusers(name):
    for case in CASES:
        if case.startswith(f"{name}/"):
            check(case, GOLDEN[case], GOLDEN[f"{case}/sigmas"])


@pytest.mark.reference
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_the_golden_file_is_what_diffusers_answers(monkeypatch):
    pytest.importorskip("diffusers")
    monkeypatch.syspath_prepend(TESTS / "golden")
    import make_flow_golden

    for case in make_flow_golden.CASES:
        name, found = "/".join(map(str, case)), make_flow_golden.trajectory(*case)
        np.testing.assert_allclose(found[0], GOLDEN[name], atol=1e-5, err_msg=name)
        check(name, *found)
