"""NoiseSchedule: published constants, identities, and the same numbers from every backend."""

import json

import keras
import numpy as np
import pytest

from latentddpm.diffusion import NoiseSchedule
from latentddpm.diffusion.schedule import BETA_SCHEDULES, PREDICTION_TYPES
from latentddpm.errors import UserError

SHAPE = (5, 3, 2, 4)
TIMESTEPS = np.array([0, 1, 500, 998, 999], dtype="int32")


def close(actual, expected, what, rtol=1e-6, atol=0.0):
    actual = keras.ops.convert_to_numpy(actual)
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol, err_msg=what)


def example(dtype="float64"):
    rng = np.random.default_rng(0)
    return rng.standard_normal(SHAPE).astype(dtype), rng.standard_normal(SHAPE).astype(dtype)


# Closed forms in float64, agreeing with diffusers' tables. FACTS: scheduler constants.
CONSTANTS = [
    ({}, "alphas_cumprod", {0: 0.99915, 499: 0.27766965045646763, 999: 0.004660098513077234}),
    (
        {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
        "alphas_cumprod",
        {499: 0.07858724288177821, 999: 4.0358297653756754e-05},
    ),
    (
        {"prediction_type": "v_prediction", "rescale_zero_terminal_snr": True},
        "alphas_cumprod",
        {0: 0.99915, 499: 0.24235916655614528, 999: 0.0},
    ),
    ({"beta_schedule": "cosine"}, "alphas_cumprod", {499: 0.4938435904406382}),
    ({"beta_schedule": "cosine"}, "betas", {0: 4.128422482196914e-05, 999: 0.999}),
]


@pytest.mark.parametrize(("config", "table", "values"), CONSTANTS)
def test_tables_hold_the_published_constants(config, table, values):
    schedule = NoiseSchedule(**config)
    for timestep, expected in values.items():
        close(getattr(schedule, table)[timestep], expected, f"expected {table}[{timestep}]")


@pytest.mark.parametrize("name", BETA_SCHEDULES)
def test_tables_are_float64_consistent_and_read_only(name):
    schedule = NoiseSchedule(name)
    tables = {key: value for key, value in vars(schedule).items() if isinstance(value, np.ndarray)}
    assert set(tables) == {
        *("betas", "alphas", "alphas_cumprod", "signal_rate", "noise_rate", "sigmas"),
        *("snr", "log_snr"),
    }, "expected the eight documented tables"
    for key, table in tables.items():
        assert table.dtype == np.float64, f"expected {key} in float64"
        assert table.shape == (1000,), f"expected {key} to have one entry per timestep"
        assert np.isfinite(table).all(), f"expected {key} to be finite everywhere"
        with pytest.raises(ValueError, match="read-only"):
            table[0] = 0.5
    rates = schedule.signal_rate**2 + schedule.noise_rate**2
    close(rates, 1.0, "expected signal and noise variance to add up to one", rtol=1e-14)
    close(schedule.sigmas**-2, schedule.snr, "expected snr = sigmas ** -2", rtol=1e-9)
    close(np.exp(schedule.log_snr), schedule.snr, "expected log_snr = log(snr)", rtol=1e-12)
    assert (np.diff(schedule.snr) < 0).all(), "expected the signal to fall at every timestep"


def test_forward_steps_compose_to_add_noise():
    """T single steps x ← √α x + √β ε (Ho 2020, eq. 2) have the moments of eq. 4."""
    schedule = NoiseSchedule(num_train_timesteps=50)
    signal, variance = 1.0, 0.0
    for t, beta in enumerate(schedule.betas):
        signal, variance = signal * np.sqrt(1 - beta), variance * (1 - beta) + beta
        one, zero = np.ones((1, 1)), np.zeros((1, 1))
        close(schedule.add_noise(one, zero, t), signal, f"signal after {t + 1} steps", 1e-12)
        close(schedule.add_noise(zero, one, t) ** 2, variance, f"variance at t={t}", 1e-12)


@pytest.mark.parametrize("beta_schedule", BETA_SCHEDULES)
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_target_gives_back_x0_and_noise(beta_schedule, prediction_type):
    schedule = NoiseSchedule(beta_schedule, prediction_type=prediction_type)
    latents, noise = example()
    noisy = schedule.add_noise(latents, noise, TIMESTEPS)
    target = schedule.target(latents, noise, TIMESTEPS)
    x0 = schedule.predict_x0(target, noisy, TIMESTEPS)
    epsilon = schedule.predict_noise(target, noisy, TIMESTEPS)
    close(x0, latents, "expected predict_x0(target) = latents", 1e-7, 1e-10)
    close(epsilon, noise, "expected predict_noise(target) = noise", 1e-7, 1e-10)
    assert x0.dtype == np.float64, "expected NumPy arrays to keep their precision"


@pytest.mark.parametrize("source", PREDICTION_TYPES)
@pytest.mark.parametrize("goal", PREDICTION_TYPES)
def test_each_parametrisation_gives_each_other(source, goal):
    """A perfect prediction of one kind turns into a perfect prediction of another."""
    latents, noise = example()
    first, second = (NoiseSchedule(prediction_type=name) for name in (source, goal))
    noisy = first.add_noise(latents, noise, TIMESTEPS)
    prediction = first.target(latents, noise, TIMESTEPS)
    x0 = first.predict_x0(prediction, noisy, TIMESTEPS)
    epsilon = first.predict_noise(prediction, noisy, TIMESTEPS)
    converted = second.target(x0, epsilon, TIMESTEPS)
    expected = second.target(latents, noise, TIMESTEPS)
    close(converted, expected, f"expected {source} to convert to {goal}", 1e-7, 1e-10)


def test_v_is_the_derivative_of_x_by_the_angle():
    """With signal = cos φ and noise = sin φ, v = dx/dφ (Salimans & Ho 2022, App. D)."""
    schedule = NoiseSchedule(prediction_type="v_prediction")
    latents, noise = example()
    target = schedule.target(latents, noise, 500)
    phi = np.arctan2(schedule.noise_rate[500], schedule.signal_rate[500])

    def x(angle):
        return np.cos(angle) * latents + np.sin(angle) * noise

    derivative = (x(phi + 1e-5) - x(phi - 1e-5)) / 2e-5
    close(target, derivative, "expected v to be the derivative of x by the angle", 1e-7, 1e-8)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("shape", [(5,), (5, 7), (5, 3, 2, 4), (5, 2, 3, 2, 4)])
def test_keras_tensors_of_any_rank_agree_with_numpy(prediction_type, shape):
    schedule = NoiseSchedule(prediction_type=prediction_type)
    rng = np.random.default_rng(1)
    latents, noise = rng.standard_normal((2, *shape)).astype("float32")
    tensors = [keras.ops.convert_to_tensor(value) for value in (latents, noise, TIMESTEPS)]
    for method in ("add_noise", "target", "predict_x0", "predict_noise"):
        expected = getattr(schedule, method)(
            latents.astype("float64"), noise.astype("float64"), TIMESTEPS
        )
        actual = getattr(schedule, method)(*tensors)
        close(actual, expected, f"expected {method} of tensors to equal NumPy's", 2e-5, 2e-5)


def test_scalar_timesteps_serve_one_example_or_a_batch():
    schedule = NoiseSchedule()
    latents, noise = example("float32")
    batch = schedule.add_noise(latents, noise, np.full(5, 500))
    for timestep in (500, np.int64(500), np.array(500), keras.ops.convert_to_tensor(500)):
        kind = type(timestep).__name__
        whole = schedule.add_noise(latents, noise, timestep)
        one = schedule.add_noise(latents[2], noise[2], timestep)
        close(whole, batch, f"expected a scalar {kind} to serve the whole batch", 1e-6, 1e-7)
        close(one, batch[2], f"expected a scalar {kind} to serve one example", 1e-6, 1e-7)


# ---- zero terminal SNR


def zero_snr(beta_schedule="scaled_linear", prediction_type="v_prediction", **config):
    return NoiseSchedule(
        beta_schedule, prediction_type=prediction_type, rescale_zero_terminal_snr=True, **config
    )


@pytest.mark.parametrize("name", BETA_SCHEDULES)
def test_zero_terminal_snr_is_algorithm_1(name):
    """Lin 2023: √ᾱ moved and stretched to end at exactly 0 and begin where it did."""
    plain, schedule = NoiseSchedule(name), zero_snr(name)
    first, last = plain.signal_rate[[0, -1]]
    moved = (plain.signal_rate - last) * first / (first - last)
    close(schedule.signal_rate, moved, "expected √ᾱ to be moved", 1e-9, 1e-12)
    ends = {"alphas_cumprod": 0, "betas": 1, "noise_rate": 1, "snr": 0, "log_snr": -np.inf}
    for table, end in {**ends, "sigmas": np.inf}.items():
        values = getattr(schedule, table)
        assert values[-1] == end, f"expected {table} to end at exactly {end}"
        assert np.isfinite(values[:-1]).all(), f"expected {table} to be finite before the end"
    assert (np.diff(schedule.snr) < 0).all(), "expected the signal to fall at every timestep"


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
def test_pure_noise_gives_no_infinities(prediction_type):
    schedule = zero_snr(prediction_type=prediction_type)
    latents, noise = example()
    noisy = schedule.add_noise(latents, noise, 999)
    close(noisy, noise, "expected pure noise at the last timestep", 1e-12)
    target = schedule.target(latents, noise, 999)
    expected = latents if prediction_type == "sample" else -latents
    close(target, expected, "expected the target to be the image", 1e-12)
    close(schedule.predict_x0(target, noisy, 999), latents, "expected x0 from it", 1e-12)
    close(schedule.predict_noise(target, noisy, 999), noise, "expected ε from it", 1e-12)


def test_zero_terminal_snr_and_epsilon_exclude_each_other():
    with pytest.raises(UserError, match="choose prediction_type 'v_prediction' or 'sample'"):
        NoiseSchedule(rescale_zero_terminal_snr=True)
    with pytest.raises(UserError, match="expected at least 2 num_train_timesteps"):
        zero_snr(num_train_timesteps=1)


def test_old_configs_have_no_zero_terminal_snr():
    """A model folder written before the key was there loads as the schedule it was."""
    config = NoiseSchedule().get_config()
    assert config.pop("rescale_zero_terminal_snr") is False, "expected the key, and false"
    again = NoiseSchedule.from_config(config)
    assert again.get_config() == NoiseSchedule().get_config(), "expected the same schedule"
    config = json.loads(json.dumps(zero_snr().get_config()))
    again = NoiseSchedule.from_config(config)
    assert again.alphas_cumprod[-1] == 0, "expected zero terminal SNR to survive the round trip"


@pytest.mark.reference
def test_zero_terminal_snr_is_that_of_diffusers():
    pytest.importorskip("diffusers")
    from diffusers import DDIMScheduler

    theirs = DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        rescale_betas_zero_snr=True,
    )
    expected = theirs.alphas_cumprod.numpy()
    close(zero_snr().alphas_cumprod, expected, "expected diffusers' ᾱ", rtol=1e-4, atol=1e-6)


# ---- between the timesteps


def test_sigmas_between_timesteps_are_on_a_line():
    schedule = NoiseSchedule()
    timesteps = np.array([0.0, 0.25, 500.5, 998.0, 999.0])
    sigmas = schedule.sigmas
    expected = [
        sigmas[0],
        0.75 * sigmas[0] + 0.25 * sigmas[1],
        (sigmas[500] + sigmas[501]) / 2,
        *sigmas[[998, 999]],
    ]
    close(schedule.sigmas_at(timesteps), expected, "expected σ to be linear in t", 1e-10)
    whole = np.arange(1000)
    close(schedule.timesteps_at(sigmas), whole, "expected the timesteps of σ", 1e-9, 1e-9)
    middle = np.sqrt(sigmas[500] * sigmas[501])
    close(schedule.timesteps_at(middle), 500.5, "expected t to be linear in log σ", 1e-9)


def test_sigmas_at_are_finite_with_zero_terminal_snr():
    close(zero_snr().sigmas_at(np.array([999])), [4096], "expected ᾱ = 2⁻²⁴", 1e-6)


def test_float_timesteps_may_lie_between_the_whole_ones():
    for schedule in (NoiseSchedule(), zero_snr()):
        latents, noise = example("float32")
        whole = TIMESTEPS.astype("float32")
        for timesteps in (whole, keras.ops.convert_to_tensor(whole)):
            actual = schedule.add_noise(latents, noise, timesteps)
            expected = schedule.add_noise(latents, noise, TIMESTEPS)
            close(actual, expected, "expected whole floats to be like integers", 1e-3, 1e-3)
        between = np.array([0.3, 1.5, 499.99, 998.01, 998.75], dtype="float32")
        sigmas = schedule.sigmas_at(between.astype("float64"))[:, None, None, None]
        expected = (latents + sigmas * noise) / np.sqrt(1 + sigmas**2)
        for timesteps in (between, keras.ops.convert_to_tensor(between)):
            actual = schedule.add_noise(latents, noise, timesteps)
            close(actual, expected, "expected the interpolated σ", 1e-4, 1e-4)
        one = schedule.add_noise(latents[1], noise[1], 1.5)
        close(one, expected[1], "expected a scalar float to serve one example", 1e-4, 1e-4)


def test_tf_data_pipeline_with_gather():
    """With `take=tf.gather` the graph of a tf.data pipeline holds no Keras operation."""
    tf = pytest.importorskip("tensorflow")
    latents, noise = example("float32")
    for prediction_type in PREDICTION_TYPES:
        schedule = NoiseSchedule(prediction_type=prediction_type)

        def noised(latents, noise, timesteps, schedule=schedule):
            return (
                schedule.add_noise(latents, noise, timesteps, take=tf.gather),
                schedule.target(latents, noise, timesteps, take=tf.gather),
            )

        data = tf.data.Dataset.from_tensor_slices((latents, noise, TIMESTEPS))
        for name, pipeline in {
            "example": data.map(noised).batch(5),
            "batch": data.batch(5).map(noised),
        }.items():
            noisy, target = next(iter(pipeline))
            expected = schedule.add_noise(latents, noise, TIMESTEPS)
            close(noisy.numpy(), expected, f"expected add_noise per {name}", 1e-6, 1e-6)
            expected = schedule.target(latents, noise, TIMESTEPS)
            close(target.numpy(), expected, f"expected target per {name}", 1e-6, 1e-6)


def test_config_is_json_and_round_trips():
    schedule = NoiseSchedule("linear", 1e-4, 0.02, np.int64(500), "v_prediction")
    config = json.loads(json.dumps(schedule.get_config()))
    again = NoiseSchedule.from_config(config)
    assert again.get_config() == config, "expected from_config to restore every argument"
    np.testing.assert_array_equal(again.betas, schedule.betas, "expected the same betas")
    assert "prediction_type='v_prediction'" in repr(again), "expected repr to show the config"
    keras_config = keras.saving.serialize_keras_object(schedule)
    again = keras.saving.deserialize_keras_object(keras_config)
    assert again.get_config() == config, "expected Keras to know the class"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"beta_schedule": "scaled-linear"}, "beta_schedule.*did you mean 'scaled_linear'"),
        ({"prediction_type": "eps"}, "prediction_type.*'epsilon', 'v_prediction', 'sample'"),
        ({"num_train_timesteps": 0}, "num_train_timesteps: 0"),
        ({"num_train_timesteps": 10.5}, "num_train_timesteps: 10.5"),
        ({"beta_start": 0.0}, "0 < beta_start"),
        ({"beta_start": 0.1}, "beta_start <= beta_end"),
        ({"beta_end": 1.0}, "beta_end < 1"),
        ({"beta_end": float("nan")}, "beta_end < 1"),
        ({"beta_end": 0.9}, "no signal is left"),
        ({"rescale_zero_terminal_snr": "yes"}, "expected true or false, got 'yes'"),
        ({"beta_shedule": "linear"}, "did you mean 'beta_schedule'"),
    ],
)
def test_bad_config_is_one_clear_line(arguments, message):
    with pytest.raises(UserError, match=message) as error:
        NoiseSchedule.from_config(arguments)
    assert "\n" not in str(error.value), "expected a message of one line"


@pytest.mark.parametrize(
    "timesteps", [-1, 1000, 999.5, np.array([0, 1000]), np.array([-1, 3]), np.array([-0.1, 3])]
)
def test_timesteps_out_of_range_are_refused(timesteps):
    with pytest.raises(UserError, match="expected 0 to 999"):
        NoiseSchedule().add_noise(np.zeros((2, 4)), np.zeros((2, 4)), timesteps)
