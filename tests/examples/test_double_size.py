"""`examples/double_size.py`: on an image of equal 2×2 pixels, the larger network is the old."""

import importlib.util
from pathlib import Path

import keras
import numpy as np
import pytest
from tiny import tiny_autoencoder

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "double_size.py"
SIZES = {"channels": 16, "channel_multipliers": (1, 2)}


@pytest.fixture(scope="module")
def double_size():
    spec = importlib.util.spec_from_file_location("double_size", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def both(double_size):
    old = tiny_autoencoder(**SIZES)
    numbers = np.random.default_rng(0)
    for variable in old.weights:  # biases and scales too, which start at 0 and 1
        variable.assign_add(0.05 * numbers.standard_normal(variable.shape))
    return old, double_size.doubled(old)


def twice(values):
    return np.repeat(np.repeat(values, 2, axis=1), 2, axis=2)


def test_the_encoder_sees_the_same(both):
    old, new = both
    images = np.random.default_rng(1).uniform(-1, 1, (2, 16, 12, 3)).astype("float32")
    expected, got = old.encode(images), new.encode(twice(images))
    for name, one, other in zip(("mean", "logvar"), expected, got, strict=True):
        difference = np.abs(np.asarray(one) - np.asarray(other)).max()
        assert difference < 1e-5, f"{name}: expected the old encoder's, off by {difference:.2e}"


def test_the_decoder_repeats_its_last_features(both):
    latents = np.random.default_rng(2).standard_normal((2, 8, 6, 4)).astype("float32")
    old, new = (
        keras.Model(model.decoder.input, model.decoder.get_layer("act_out").output)(latents)
        for model in both
    )
    difference = np.abs(twice(np.asarray(old)) - np.asarray(new)).max()
    assert difference < 1e-5, f"expected each old feature four times: off by {difference:.2e}"


def test_it_halves_once_more_and_keeps_the_scale(both):
    old, new = both
    assert new.downsample_factor == 2 * old.downsample_factor
    assert new.scaling_factor == old.scaling_factor


def test_a_network_too_narrow_is_refused(double_size):
    with pytest.raises(ValueError, match="8 channels, needed are 12"):
        double_size.pairs_averaged(np.zeros((3, 3, 3, 8)))
