"""Widening of a UNet: the base's numbers at first, and gradients from there."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from tiny import perturb

from latentddpm.errors import UserError
from latentddpm.models.denoisers.basic import BasicUNet
from latentddpm.models.denoisers.unet import UNet
from latentddpm.models.denoisers.widen import fold, widen

SIZES = {
    "channels": 8,
    "channel_multipliers": (1, 2),
    "num_res_blocks": 1,
    "attention_levels": (1,),
    "num_heads": 2,
    "norm_groups": 4,
    "zero_init": False,
}
DIGIT = {"name": "digit", "enters": "rows", "size": 4}
LINES = {"name": "lines", "enters": "concat", "size": 3}
NEW = [
    {"name": "age", "enters": "projection", "size": 2},
    {"name": "level", "enters": "timestep", "size": 1},
    {"name": "style", "enters": "rows", "size": 3},
    {"name": "picture", "enters": "concat", "size": 5},
]
BASES = {"plain": [], "conditioned": [DIGIT, LINES], "lines": [LINES]}


def inputs_of(unet, seed=0, scale=1.0):
    """Random inputs; those of conditions times `scale`."""
    rng = np.random.default_rng(seed)
    inputs = {
        "noisy_latents": rng.normal(size=(2, 6, 8, 4)),
        "timesteps": np.array([3.0, 900.0]),
        "context": rng.normal(size=(2, 3, 6)),
    }
    for one in unet.conditions:
        space = (6, 8) if one["enters"] == "concat" else ()
        inputs[one["name"]] = scale * rng.normal(size=(2, *space, one["size"]))
    return {name: inputs[name].astype("float32") for name in unet.input}


@functools.cache
def base_of(known):
    """One of `BASES`, which no test changes."""
    unet = UNet(**SIZES, context_dim=6, conditions=BASES[known])
    perturb(unet)
    return unet


@pytest.mark.parametrize("known", ["plain", "conditioned"])
@pytest.mark.parametrize(
    "one",
    [*(pytest.param(one, marks=pytest.mark.slow) for one in NEW), None],
    ids=lambda one: one["enters"] if one else "all",
)
def test_a_widened_unet_predicts_what_its_base_does_to_the_bit(known, one):
    base = base_of(known)
    new = [one] if one else NEW
    wide = widen(base, new)
    assert wide.conditions == [*BASES[known], *new]
    inputs = inputs_of(base)
    for scale in (1.0, 1e4):
        told = {**inputs_of(wide, 1, scale), **inputs}
        np.testing.assert_array_equal(wide(told), base(inputs))


def test_a_folded_unet_predicts_what_the_other_one_does_with_zeros():
    changes = {"name": "changes", "enters": "projection", "size": 8}
    wide = widen(base_of("conditioned"), [changes])
    perturb(wide, 1)
    folded = fold(wide, "changes")
    assert folded.conditions == [DIGIT, LINES]
    inputs = inputs_of(folded)
    zeros = {"changes": np.zeros((2, 8), "float32")}
    expected = np.asarray(wide({**inputs, **zeros}))
    np.testing.assert_allclose(np.asarray(folded(inputs)), expected, atol=1e-5)
    other = np.asarray(wide({**inputs, "changes": zeros["changes"] + 1}))
    assert np.abs(other - expected).max() > 1e-3, "the vector means nothing, so nothing is shown"


@pytest.mark.slow
def test_every_new_condition_is_learned_from_the_first_steps():
    wide = widen(base_of("conditioned"), NEW)
    inputs = inputs_of(wide)
    optimizer = keras.optimizers.Adam(1e-2)
    for _ in range(2):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(wide(inputs) - 1))
        optimizer.apply(tape.gradient(loss, wide.trainable_weights), wide.trainable_weights)
    before = np.asarray(wide(inputs))
    for one in NEW:
        other = {**inputs, one["name"]: inputs[one["name"]] + 1}
        change = np.abs(np.asarray(wide(other)) - before).max()
        assert change > 1e-3, f"{one['name']} changes the prediction by {change}"


def test_no_conditions_give_a_copy():
    base = base_of("lines")
    copy = widen(base, [])
    assert copy.get_config() == base.get_config()
    for found, expected in zip(copy.get_weights(), base.get_weights(), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_what_would_change_the_prediction_is_refused():
    with pytest.raises(UserError, match="'style': enters a trained UNet as it is"):
        widen(base_of("plain"), [{"name": "style", "enters": "identity", "size": 32}])
    with pytest.raises(ValueError, match="two are called 'lines'"):
        widen(base_of("lines"), [LINES])
    with pytest.raises(UserError, match="a BasicUNet takes none"):
        widen(BasicUNet(), [LINES])
