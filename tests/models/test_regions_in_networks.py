"""Regions in networks: masked cross-attention, its weights at every level, the UNet with it."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from checks import check_layer
from tiny import perturb

from latentddpm.models.denoisers.transformer import Attention, TransformerBlock, texts_by_level
from latentddpm.models.denoisers.unet import UNet
from latentddpm.models.functional import rebuild
from latentddpm.models.precision import hold_in

BATCH, REGIONS, LENGTH, WIDTH = 2, 3, 5, 6
SIDES = (5, 6)  # neither a power of two
UNET = {
    "channels": 8,
    "channel_multipliers": (1, 2),
    "num_res_blocks": 1,
    "attention_levels": (0, 1),
    "num_heads": 2,
    "norm_groups": 4,
    "context_dim": WIDTH,
}


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def shares(*sides, regions=REGIONS, seed=0):
    """Weights of regions at each position, of sum 1."""
    numbers = np.random.default_rng(seed).uniform(size=(BATCH, *sides, regions))
    return (numbers / numbers.sum(-1, keepdims=True)).astype("float32")


def only(region, *sides, regions=REGIONS):
    """Weights of one region that is everywhere."""
    weights = np.zeros((BATCH, *sides, regions), "float32")
    weights[..., region] = 1
    return weights


def halves(*sides):
    """Weights of a left and a right half."""
    weights = np.zeros((BATCH, *sides, 2), "float32")
    weights[..., : sides[-1] // 2, 0] = 1
    weights[..., sides[-1] // 2 :, 1] = 1
    return weights


@pytest.fixture(scope="module")
def unet():
    keras.utils.set_random_seed(0)
    unet = UNet(**UNET, zero_init=False)
    perturb(unet)
    return unet


@pytest.fixture(scope="module")
def in_regions(unet):
    return rebuild(unet, regions=REGIONS)


def latents():
    return {
        "noisy_latents": normal(BATCH, *SIDES, 4),
        "timesteps": np.array([300, 700], "int32"),
    }


def texts(regions=REGIONS):
    return normal(BATCH, regions, LENGTH, WIDTH, seed=1)


# --- Attention -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def layer():
    layer = Attention(2)
    layer(normal(BATCH, 12, 8), normal(BATCH, LENGTH, WIDTH))
    perturb(layer, size=0.5)
    return layer


def test_attention_is_the_mean_of_its_regions():
    """In closed form: no softmax, since every text has one token."""
    layer = Attention(2)
    inputs, context, weights = normal(BATCH, 12, 8), texts()[:, :, :1], shares(12)
    layer(inputs, context[:, 0])
    perturb(layer, size=0.5)
    values = context[:, :, 0] @ np.asarray(layer.value.kernel)  # (B, R, C)
    expected = np.einsum("bpr,brc->bpc", weights, values) @ np.asarray(layer.out.kernel)
    found = layer(inputs, context, weights)
    np.testing.assert_allclose(found, expected + np.asarray(layer.out.bias), atol=1e-5)


def test_masked_attention_is_that_of_float64(layer):
    """Hard masks: each query sees the tokens of its own region, and no others."""
    inputs, context, weights = normal(BATCH, 12, 8), texts(2), halves(12)
    query, key, value = (
        np.asarray(part.kernel, "float64") for part in (layer.query, layer.key, layer.value)
    )
    flat = context.reshape(BATCH, 2 * LENGTH, WIDTH).astype("float64")

    def heads(array):
        return array.reshape(BATCH, -1, 2, 4).swapaxes(1, 2)

    scores = heads(inputs @ query) @ heads(flat @ key).swapaxes(-1, -2) / 2
    mine = np.repeat(weights, LENGTH, axis=-1)[:, None] > 0  # (B, 1, P, ΣL)
    scores = np.where(mine, scores, -np.inf)
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = scores / scores.sum(-1, keepdims=True) @ heads(flat @ value)
    mixed = mixed.swapaxes(1, 2).reshape(BATCH, 12, 8)
    expected = mixed @ np.asarray(layer.out.kernel) + np.asarray(layer.out.bias)
    np.testing.assert_allclose(layer(inputs, context, weights), expected, atol=1e-5)


@pytest.mark.parametrize("region", range(REGIONS))
def test_a_region_everywhere_is_plain_attention(layer, region):
    inputs, context = normal(BATCH, 12, 8), texts()
    found = layer(inputs, context, only(region, 12))
    plain = layer(inputs, context[:, region])
    np.testing.assert_array_equal(found, plain, err_msg="expected every bit of one text's")


def test_a_half_does_not_see_the_text_of_the_other(layer):
    inputs, context, weights = normal(BATCH, 12, 8), texts(2), halves(12)
    before = np.asarray(layer(inputs, context, weights))
    context[:, 1] = normal(BATCH, LENGTH, WIDTH, seed=9)
    after = np.asarray(layer(inputs, context, weights))
    np.testing.assert_array_equal(after[:, :6], before[:, :6], err_msg="expected the left kept")
    assert np.abs(after[:, 6:] - before[:, 6:]).min(-1).max() > 0, "expected the right changed"


@pytest.mark.parametrize("sides", [(3, 4), (6,), (2, 3, 2)], ids=["2", "1", "3"])
def test_a_transformer_block_keeps_what_a_layer_owes(sides, tmp_path):
    inputs = [normal(BATCH, *sides, 8), texts(), shares(*sides)]
    check_layer(TransformerBlock, {"num_heads": 2, "norm_groups": 4}, inputs, tmp_path)


# --- Weights at every level ----------------------------------------------------------------


def mean_of_halves(weights):
    """Mean over the two by two positions of each position below, ⌈n/2⌉ of n."""
    _, height, width, _ = weights.shape
    rows = [weights[:, k : k + 2].mean(1) for k in range(0, height, 2)]
    rows = np.stack(rows, axis=1)
    return np.stack([rows[:, :, k : k + 2].mean(2) for k in range(0, width, 2)], axis=2)


def test_weights_are_means_at_every_level():
    sides = (9, 6)
    inputs = {
        "context": keras.Input((REGIONS, None, WIDTH)),
        "region_weights": keras.Input((None, None, REGIONS)),
    }
    levels = [weights for _, weights in texts_by_level(inputs, 4)]
    model = keras.Model(inputs["region_weights"], levels)
    found, expected = model(shares(*sides)), shares(*sides)
    for level, (one, size) in enumerate(zip(found, ((9, 6), (5, 3), (3, 2), (2, 1)), strict=True)):
        assert tuple(one.shape[1:3]) == size, f"level {level}: {one.shape}, expected {size}"
        np.testing.assert_allclose(one, expected, atol=1e-6, err_msg=f"level {level}")
        np.testing.assert_allclose(np.sum(one, -1), 1, atol=1e-6, err_msg=f"level {level}")
        expected = mean_of_halves(expected)


# --- The UNet ------------------------------------------------------------------------------


def test_the_weights_of_a_network_know_no_regions(unet, in_regions):
    ours, theirs = ([one.path for one in each.weights] for each in (unet, in_regions))
    assert ours == theirs, "expected the same weights in the same order"
    assert "regions" not in unet.get_config(), "expected the config of networks without them"
    assert in_regions.get_config()["regions"] == REGIONS, "expected their number to be kept"


@pytest.mark.parametrize("region", [0, pytest.param(1, marks=pytest.mark.slow), REGIONS - 1])
def test_a_network_with_one_region_everywhere_is_told_one_text(unet, in_regions, region):
    context = texts()
    found = in_regions({**latents(), "context": context, "region_weights": only(region, *SIDES)})
    plain = unet({**latents(), "context": context[:, region]})
    np.testing.assert_allclose(found, plain, atol=1e-6)


def test_one_text_in_all_regions_is_one_text(unet, in_regions):
    context = texts()[:, :1]
    everywhere = np.repeat(context, REGIONS, axis=1)
    given = {**latents(), "context": everywhere, "region_weights": shares(*SIDES)}
    plain = unet({**latents(), "context": context[:, 0]})
    np.testing.assert_allclose(in_regions(given), plain, atol=1e-5)


def test_the_order_of_regions_is_of_no_effect(in_regions):
    context, weights, order = texts(), shares(*SIDES), [2, 0, 1]
    one = in_regions({**latents(), "context": context, "region_weights": weights})
    other = in_regions(
        {**latents(), "context": context[:, order], "region_weights": weights[..., order]}
    )
    np.testing.assert_allclose(one, other, atol=1e-5)


def test_regions_differ_from_every_single_text(unet, in_regions):
    context = texts()
    found = in_regions({**latents(), "context": context, "region_weights": shares(*SIDES)})
    for region in range(REGIONS):
        plain = np.asarray(unet({**latents(), "context": context[:, region]}))
        assert np.abs(found - plain).max() > 1e-3, f"expected another picture than of {region}"


def test_regions_reach_every_gradient(in_regions):
    given = {**latents(), "context": texts(), "region_weights": shares(*SIDES)}
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(in_regions(given) ** 2)
    gradients = tape.gradient(loss, [one.value for one in in_regions.trainable_variables])
    missing = [
        one.path
        for one, slope in zip(in_regions.trainable_variables, gradients, strict=True)
        if slope is None
    ]
    assert not missing, f"no gradient at {missing}"


def test_half_precision_keeps_regions(in_regions):
    held = hold_in(in_regions, "bfloat16")
    given = {**latents(), "context": texts(), "region_weights": shares(*SIDES)}
    whole, half = np.asarray(in_regions(given)), np.asarray(held(given), "float32")
    assert np.abs(half - whole).max() < 0.1 * np.abs(whole).max(), "expected about the same"


def test_regions_need_text():
    with pytest.raises(ValueError, match="regions=2: need a context_dim"):
        UNet(**{**UNET, "context_dim": None}, regions=2)
