"""Regions: the weights of masks at each latent, and predictions that are composed by them."""

import keras
import numpy as np
import pytest

from latentddpm.diffusion import ClassifierFreeGuidance, NoiseSchedule
from latentddpm.diffusion.regions import REGION_WEIGHTS, RegionComposition, region_weights
from latentddpm.diffusion.samplers import DDIMSampler

SHAPE = (3, 4, 6, 4)
TIMESTEPS = np.array([3, 500, 999], "int32")


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype("float32")


def masks(count, seed=0):
    """Random soft masks of 8×12 pixels, which overlap."""
    return np.random.default_rng(seed).uniform(size=(count, 8, 12))


# --- Weights -------------------------------------------------------------------------------


def test_hard_masks_give_a_latent_to_one_region():
    mask = np.zeros((2, 8, 12))
    mask[0, :, :4], mask[1, :4, 8:] = 1, 1
    found = region_weights(mask, 2)
    assert found.shape == (4, 6, 3), f"got {found.shape}"
    expected = np.zeros((4, 6, 3))
    expected[:, :2, 1], expected[:2, 4:, 2] = 1, 1
    expected[..., 0] = 1 - expected.sum(-1)
    np.testing.assert_array_equal(found, expected)


def test_a_latent_at_an_edge_is_shared_by_its_pixels():
    mask = np.zeros((1, 4, 4))
    mask[0, :, :3] = 1  # all of two pixels, and half of two
    mask[0, 0, 3] = 0.5
    expected = [[[0, 1], [0.375, 0.625]], [[0, 1], [0.5, 0.5]]]
    np.testing.assert_array_equal(region_weights(mask, 2), expected)


def test_overlapping_regions_share_equally():
    found = region_weights(np.ones((4, 2, 2)), 1)
    np.testing.assert_allclose(found, np.broadcast_to([0, *[0.25] * 4], (2, 2, 5)), atol=1e-7)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_weights_are_shares(count):
    found = region_weights(masks(count), 4)
    assert found.min() >= 0, f"expected no share below zero, got {found.min()}"
    np.testing.assert_allclose(found.sum(-1), 1, atol=1e-6)


def test_weights_follow_the_order_of_the_masks():
    order, found = [2, 0, 1], masks(3)
    one, other = region_weights(found, 4), region_weights(found[order], 4)
    np.testing.assert_allclose(other[..., 1:], one[..., 1:][..., order], atol=1e-6)
    np.testing.assert_allclose(other[..., 0], one[..., 0], atol=1e-6)


# --- Composition ---------------------------------------------------------------------------


class Network:
    """A network in closed form that tells its inputs apart, and counts its calls."""

    def __init__(self):
        self.batches = []

    def __call__(self, noisy_latents, timesteps, told):
        self.batches.append(noisy_latents.shape[0])
        digit = keras.ops.sum(told["digit"] * np.arange(1, 4, dtype="float32"), axis=-1)[
            :, None, None, None
        ]
        time = keras.ops.cast(timesteps, "float32")[:, None, None, None] / 1000
        return keras.ops.tanh(noisy_latents) * digit + time * told["map"]


def told(count=3, weights=None):
    """What `count` parts are told: a digit and a map; the weights are random shares."""
    shares = region_weights(masks(count - 1), 2) if weights is None else weights
    return {
        "digit": normal(3, count, 3, seed=1),
        "map": normal(3, count, *SHAPE[1:3], 1, seed=2),
        REGION_WEIGHTS: np.broadcast_to(shares, (3, *shares.shape)),
    }


def composed(inputs, network=None):
    return np.asarray(RegionComposition(network or Network())(normal(*SHAPE), TIMESTEPS, inputs))


def alone(inputs, part):
    own = {name: inputs[name][:, part] for name in ("digit", "map")}
    return np.asarray(Network()(normal(*SHAPE), TIMESTEPS, own))


def test_predictions_are_composed_by_their_weights():
    inputs, network = told(), Network()
    found = composed(inputs, network)
    parts = np.stack([alone(inputs, part) for part in range(3)])
    expected = np.einsum("bhwr,rbhwc->bhwc", inputs[REGION_WEIGHTS], parts)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert network.batches == [3, 3, 3], f"expected a call for each part, got {network.batches}"


@pytest.mark.parametrize("part", range(3))
def test_a_part_that_is_everywhere_is_alone(part):
    everywhere = np.zeros((*SHAPE[1:3], 3), "float32")
    everywhere[..., part] = 1
    inputs = told(weights=everywhere)
    np.testing.assert_array_equal(composed(inputs), alone(inputs, part))


def test_what_is_told_elsewhere_is_of_no_effect():
    """A prediction at a latent depends on the parts that lie there alone."""
    left = np.zeros((1, 8, 12))
    left[..., :6] = 1
    inputs = told(2, region_weights(left, 2))
    before = composed(inputs)
    inputs["digit"] = inputs["digit"] + np.array([[1], [0]], "float32")
    after = composed(inputs)
    np.testing.assert_array_equal(after[:, :, :3], before[:, :, :3])
    assert (after[:, :, 3:] != before[:, :, 3:]).all(), "expected the rest to change"


def test_guidance_on_top_is_guidance_in_each_part():
    """All is linear: composed and then guided is guided and then composed."""
    inputs = told()
    null = {name: values * 0.5 for name, values in inputs.items()}
    null[REGION_WEIGHTS] = inputs[REGION_WEIGHTS]
    network = Network()
    guidance = ClassifierFreeGuidance(RegionComposition(network), inputs, null, 3.0)
    found = np.asarray(guidance(keras.ops.convert_to_tensor(normal(*SHAPE)), TIMESTEPS))
    guided = [3 * alone(inputs, part) - 2 * alone(null, part) for part in range(3)]
    expected = np.einsum("bhwr,rbhwc->bhwc", inputs[REGION_WEIGHTS], np.stack(guided))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert network.batches == [6, 6, 6], f"expected both halves in one call: {network.batches}"


def test_a_sampler_goes_to_each_parts_own_picture():
    """With a network that knows one picture for each word, the parts are those of theirs."""
    schedule = NoiseSchedule(prediction_type="sample")
    pictures = normal(2, *SHAPE[1:], seed=5)
    left = np.zeros((1, 8, 12))
    left[..., :6] = 1
    weights = region_weights(left, 2)
    inputs = {
        "digit": np.broadcast_to(np.eye(2, dtype="float32"), (3, 2, 2)),
        REGION_WEIGHTS: np.broadcast_to(weights, (3, *weights.shape)),
    }
    denoiser = RegionComposition(
        lambda x, t, told: 0 * x + np.tensordot(told["digit"], pictures, axes=1)
    )
    found = DDIMSampler(schedule, 5).sample(lambda x, t: denoiser(x, t, inputs), normal(*SHAPE))
    expected = np.where(weights[..., 1:] > 0, pictures[1], pictures[0])
    np.testing.assert_allclose(found, np.broadcast_to(expected, SHAPE), atol=1e-3)
