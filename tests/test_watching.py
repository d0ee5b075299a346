"""What a run says of itself: losses by quartile of the timesteps, the log."""

import json
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras.ops import convert_to_numpy
from tiny import UNET

from latentddpm.models.unet import UNet
from latentddpm.training.callbacks import RunLog

T = 1000
EDGES = [0, 249, 250, 499, 500, 749, 750, 999]


# --- Quartiles -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unet():
    keras.utils.set_random_seed(0)
    return UNet(**UNET)


def examples(timesteps, seed=0):
    draw = np.random.default_rng(seed)
    shape = (len(timesteps), 4, 4, 4)
    latents, target = (draw.standard_normal(shape).astype("float32") for _ in range(2))
    return {"noisy_latents": latents, "timesteps": np.array(timesteps, "int32")}, target


def test_a_quartile_has_the_mean_of_its_own_examples(unet):
    """Against NumPy, over two batches: a mean of means would weigh their examples unlike."""
    unet.compile("sgd", loss="mse", num_train_timesteps=T, run_eagerly=True)
    timesteps = [*EDGES, 0, 1, 2, 600]
    x, y = examples(timesteps)
    weight = np.linspace(0.5, 2, len(y), dtype="float32")[:, None, None]
    batches = tf.data.Dataset.from_tensor_slices((x, y, weight)).batch(len(EDGES))
    logs = unet.evaluate(batches, verbose=0, return_dict=True)
    squares = np.square(convert_to_numpy(unet(x)).astype("float64") - y) * weight[..., None]
    errors = squares.mean(axis=(1, 2, 3))
    for quarter in range(4):
        inside = [e for e, t in zip(errors, timesteps, strict=True) if t * 4 // T == quarter]
        found = logs[f"loss_q{quarter + 1}"]
        assert found == pytest.approx(np.mean(inside), rel=1e-5), f"quartile {quarter + 1}"
    assert logs["loss"] == pytest.approx(errors.mean(), rel=1e-5), (
        "expected the loss to be what the quartiles come to together"
    )


def test_an_empty_quartile_is_nan_and_another_ones_nan_stays_where_it_is(unet):
    unet.compile("sgd", loss="mse", num_train_timesteps=T, run_eagerly=True)
    x, y = examples([10, 20, 300])
    y[2] = np.inf
    logs = unet.test_on_batch(x, y, return_dict=True)
    finite = {name for name, value in logs.items() if np.isfinite(value)}
    assert finite == {"loss_q1"}, f"expected a finite loss of the first quartile alone: {logs}"


def test_without_the_number_of_timesteps_there_is_one_loss(unet):
    unet.compile("sgd", loss="mse", run_eagerly=True)
    logs = unet.test_on_batch(*examples([10]), return_dict=True)
    assert set(logs) == {"loss"}, f"expected Keras's one loss, got {set(logs)}"


# --- The log -------------------------------------------------------------------------------


def strict(text):
    """JSON as the standard has it, without Python's NaN and Infinity."""

    def refuse(word):
        raise AssertionError(f"expected JSON, found {word} in {text!r}")

    return json.loads(text, parse_constant=refuse)


def test_the_log_is_json_whatever_the_numbers(tmp_path):
    log = RunLog(tmp_path)
    log.write(1, {"loss": 0.12345678, "loss_q4": math.nan, "gradient_norm": math.inf})
    with open(log.path, "a", encoding="utf-8") as stream:
        stream.write('{"step": 2, "loss": NaN}\n')  # of an earlier version
    RunLog(tmp_path, first=2)
    first, second = map(strict, log.path.read_text("utf-8").splitlines())
    expected = {"step": 1, "loss": 0.123457, "loss_q4": None, "gradient_norm": None}
    assert first == expected, f"expected six digits, and null for what is not finite: {first}"
    assert second == {"step": 2, "loss": None}, f"expected old lines mended, got {second}"
