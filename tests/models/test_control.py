"""ControlNet: what it is at first, what it learns through, and what a UNet is told by it."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from tiny import UNET, perturb

from latentddpm.models.archive import load_archive, save_archive, weights_digest
from latentddpm.models.denoisers.basic import BasicUNet
from latentddpm.models.denoisers.control import ControlledUNet, ControlNet, hint_channels
from latentddpm.models.denoisers.unet import UNet
from latentddpm.models.functional import freeze, rebuild


def unet(**changes):
    """A UNet that no test changes; what is made next has the same weights in every test."""
    made = built(**changes)
    keras.utils.set_random_seed(0)
    return made


@functools.cache
def built(**changes):
    keras.utils.set_random_seed(0)
    made = UNet(**{**UNET, **changes})
    perturb(made)
    return made


def inputs(size=(4, 6), factor=8, context=None, images=1, seed=0):
    numbers = np.random.default_rng(seed)
    pixels = (2, size[0] * factor, size[1] * factor, 3 * images)
    found = {
        "noisy_latents": numbers.normal(size=(2, *size, 4)).astype("float32"),
        "timesteps": np.array([3.0, 870.0], "float32"),
        "control": numbers.uniform(size=pixels).astype("float32"),
    }
    if context:
        found["context"] = numbers.normal(size=(2, 5, context)).astype("float32")
    return found


def without(told):
    return {name: value for name, value in told.items() if name != "control"}


@pytest.mark.parametrize(("context_dim", "size"), [(None, (4, 6)), (16, (5, 7))])
def test_at_first_it_changes_no_bit_of_the_prediction(context_dim, size):
    base = unet(context_dim=context_dim) if context_dim else unet()
    controlled = ControlledUNet(base, [ControlNet.from_unet(base)])
    told = inputs(size, context=context_dim)
    np.testing.assert_array_equal(controlled(told), base(without(told)))


def test_its_residuals_are_of_the_shapes_of_the_skip_connections():
    base = unet(num_res_blocks=2)
    residuals = ControlNet.from_unet(base)(inputs((5, 6)))
    shapes = [tuple(one.shape[1:]) for one in residuals.values()]
    top, low = (5, 6, 16), (3, 3, 32)
    assert shapes == [top, top, top, (3, 3, 16), low, low, low], f"found {shapes}"
    assert list(residuals)[-1] == "residual_mid"
    assert not any(np.asarray(one).any() for one in residuals.values()), "not zero at first"


def test_it_has_the_weights_of_the_way_down_of_its_unet():
    base = unet(context_dim=16)
    control = ControlNet.from_unet(base)
    shared = {layer.name for layer in control.layers} & {layer.name for layer in base.layers}
    assert {"time_0", "conv_in", "down_0_block_0", "mid_attention", "mid_block_1"} <= shared
    for name in shared:
        pairs = zip(
            control.get_layer(name).get_weights(), base.get_layer(name).get_weights(), strict=True
        )
        assert all(np.array_equal(one, other) for one, other in pairs), f"{name}: other weights"
    own = {layer.name for layer in control.layers if layer.weights} - shared
    assert all(name.startswith(("hint_", "residual_")) for name in own), f"found {own}"


def test_zero_residuals_give_the_numbers_of_the_unet_bit_for_bit():
    base = unet(context_dim=16, num_res_blocks=2)
    told = without(inputs(context=16))
    residual = rebuild(base, control_residuals=True)
    assert [one.path.split("/", 1)[1] for one in residual.weights] == [
        one.path.split("/", 1)[1] for one in base.weights
    ], "the same weights in another order"
    zeros = {
        name: np.zeros((2, *(4 // 2**low, 6 // 2**low), width), "float32")
        for name, low, width in (
            *(("residual_0", 0, 16), ("residual_1", 0, 16), ("residual_2", 0, 16)),
            *(("residual_3", 1, 16), ("residual_4", 1, 32), ("residual_5", 1, 32)),
            ("residual_mid", 1, 32),
        )
    }
    np.testing.assert_array_equal(residual({**told, **zeros}), base(told))
    assert residual.get_config() == base.get_config(), "how it is told is not part of it"
    assert weights_digest(residual) == weights_digest(base)


@pytest.mark.parametrize("factor", [1, 8, 16])
def test_the_hint_brings_a_picture_to_the_size_of_the_latents(factor):
    control = ControlNet.from_unet(unet(), hint_channels=hint_channels(factor))
    perturb(control)
    assert control.image_factor == factor
    residuals = control(inputs((4, 6), factor))
    assert tuple(residuals["residual_0"].shape) == (2, 4, 6, 16)
    other = control(
        {**inputs((4, 6), factor), "control": np.zeros((2, 4 * factor, 6 * factor, 3))}
    )
    assert np.abs(residuals["residual_mid"] - other["residual_mid"]).max() > 1e-3, "blind"


def test_several_add_their_residuals_times_their_scales():
    base = unet()
    one, two = (ControlNet.from_unet(base) for _ in range(2))
    perturb(one, 1)
    perturb(two, 2)
    told = inputs(images=2)
    first, second = told["control"][..., :3], told["control"][..., 3:]
    residuals = {
        key: np.asarray(0.5 * value - 2 * two({**told, "control": second})[key])
        for key, value in one({**told, "control": first}).items()
    }
    expected = rebuild(base, control_residuals=True)({**without(told), **residuals})
    found = ControlledUNet(base, [one, two], [0.5, -2])(told)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    off = ControlledUNet(base, [one, two], [0, 0])(told)
    np.testing.assert_array_equal(off, base(without(told)))


def test_gradients_reach_the_control_net_alone_and_all_of_it_after_a_step():
    base = unet()
    control = ControlNet.from_unet(base)
    controlled = ControlledUNet(base, [control])
    freeze(controlled.unet)
    assert len(controlled.trainable_variables) == len(control.weights), "more than the copy learns"
    told, optimizer = inputs(), keras.optimizers.SGD(1.0)

    def gradients():
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(controlled(told, training=True) ** 2)
        variables = controlled.trainable_variables
        found = tape.gradient(loss, [one.value for one in variables])
        optimizer.apply(found, variables)
        return {one.path for one, grad in zip(variables, found, strict=True) if np.any(grad)}

    first = gradients()
    assert first
    assert all("residual_" in path for path in first), f"found {first}"
    gradients()
    third = gradients()
    late = {one.path for one in control.weights} - third
    assert all("/key/bias" in path for path in late), f"never learn: {late}"


def test_an_archive_of_it_gives_it_back(tmp_path):
    control = ControlNet.from_unet(unet(context_dim=16), hint_channels=hint_channels(4))
    perturb(control)
    save_archive(control, tmp_path / "control.keras")
    again = load_archive(tmp_path / "control.keras", ControlNet)
    assert again.get_config() == control.get_config()
    told = inputs(factor=4, context=16)
    for name, one in control(told).items():
        np.testing.assert_array_equal(again(told)[name], one)


def test_it_is_held_in_half_precision_as_one_network():
    base = unet()
    control = ControlNet.from_unet(base)
    perturb(control)
    controlled = ControlledUNet(base, [control], [0.5])
    half = rebuild(controlled, dtype="bfloat16")
    assert half.variable_dtype == "bfloat16"
    assert {one.dtype for one in half.controls[0].weights} == {"bfloat16"}
    difference = np.abs(half(inputs()) - controlled(inputs())).max()
    assert 0 < difference < 0.2, f"differs by {difference}"


def test_it_is_of_a_unet_of_images_alone():
    for other in (BasicUNet(4), unet(spatial_dims=1)):
        with pytest.raises(ValueError, match="copy of a UNet of 2 dimensions"):
            ControlNet.from_unet(other)
    with pytest.raises(
        ValueError, match=r"channel_multipliers \[1, 1\], and this one has \[1, 2\]"
    ):
        ControlledUNet(unet(), [ControlNet.from_unet(unet(channel_multipliers=(1, 1)))])
    with pytest.raises(ValueError, match="power of two"):
        hint_channels(3)
