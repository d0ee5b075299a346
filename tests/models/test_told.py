"""Conditions of a UNet: where vectors and maps enter it, and what stays as it was."""

import keras
import numpy as np
import pytest

from latentddpm.models.denoisers.unet import UNet

SIZES = {
    "channels": 8,
    "channel_multipliers": (1, 2),
    "num_res_blocks": 1,
    "attention_levels": (),
    "norm_groups": 4,
    "zero_init": False,
}
VECTORS = [
    {"name": "digit", "enters": "rows", "size": 4},
    {"name": "age", "enters": "projection", "size": 2},
    {"name": "level", "enters": "timestep", "size": 1},
    {"name": "style", "enters": "identity", "size": 32},
]
MAP = {"name": "lines", "enters": "concat", "size": 3}


def inputs_of(conditions, batch=2, seed=0):
    rng = np.random.default_rng(seed)
    found = {
        "noisy_latents": rng.normal(size=(batch, 6, 8, 4)).astype("float32"),
        "timesteps": np.arange(batch, dtype="float32") * 100,
    }
    for one in conditions:
        space = (6, 8) if one["enters"] == "concat" else ()
        shape = (batch, *space, one["size"])
        found[one["name"]] = rng.normal(size=shape).astype("float32")
    return found


@pytest.mark.parametrize("condition", [*VECTORS, MAP], ids=lambda one: one["enters"])
def test_every_way_in_changes_the_prediction(condition):
    unet, inputs = UNet(**SIZES, conditions=[condition]), inputs_of([condition])
    before = np.asarray(unet(inputs))
    inputs[condition["name"]] = inputs[condition["name"]] + 1
    assert np.abs(np.asarray(unet(inputs)) - before).max() > 1e-4


def test_one_hot_vector_takes_a_row_of_the_table_and_several_their_sum():
    keras.utils.set_random_seed(0)
    (condition, *_) = VECTORS
    unet, plain = UNet(**SIZES, conditions=[condition]), UNet(**SIZES)
    table = unet.get_layer("digit_rows").kernel.numpy()
    by_name = {weight.path: weight for weight in unet.weights}
    for weight in plain.weights:
        weight.assign(by_name[weight.path])
    inputs = inputs_of([condition])
    chosen = np.array([[0, 1, 0, 0], [1, 0, 0, 1]], "float32")
    told = np.asarray(unet({**inputs, "digit": chosen}))
    for k, rows in enumerate(([1], [0, 3])):
        bias = plain.get_layer("time_1").bias
        was = bias.numpy()
        bias.assign(was + table[rows].sum(axis=0))
        one = {key: value[k : k + 1] for key, value in inputs.items() if key != "digit"}
        # Rows are added to the bias here and to the sum there: float32 rounds them differently.
        np.testing.assert_allclose(plain(one), told[k : k + 1], atol=1e-5)
        bias.assign(was)


def test_no_conditions_leave_network_and_configuration_as_they_were():
    for none in (None, []):
        unet = UNet(**SIZES, conditions=none)
        assert "conditions" not in unet.get_config()
        assert set(unet.input) == {"noisy_latents", "timesteps"}
        assert unet.conditions == []


def test_conditions_are_arguments_that_come_back():
    unet = UNet(**SIZES, conditions=[*VECTORS, MAP])
    again = UNet.from_config(unet.get_config())
    assert again.conditions == unet.conditions == [*VECTORS, MAP]
    assert [weight.path for weight in again.weights] == [weight.path for weight in unet.weights]


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        ([{**MAP, "enters": "added"}], "expected name, size, enters: rows, projection"),
        ([{"name": "lines"}], "expected name, size, enters"),
        ([MAP, MAP], "two are called 'lines'"),
        ([{**MAP, "name": "timesteps"}], "'timesteps': the name of another input"),
        ([{**VECTORS[3], "size": 8}], "'style': size 8, but identity takes 32"),
    ],
)
def test_conditions_of_another_form_are_refused(conditions, message):
    with pytest.raises(ValueError, match=message):
        UNet(**SIZES, conditions=conditions)
