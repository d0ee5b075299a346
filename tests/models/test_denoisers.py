"""The kinds of denoisers: their sizes and tables, any size and dimension, and what is refused."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from latentddpm import choices
from latentddpm.config import DiffusionRun, UNetConfig
from latentddpm.config_file import parse_config
from latentddpm.errors import UserError
from latentddpm.models.archive import load_archive, save_archive, weights_digest
from latentddpm.models.autoencoder.autoencoder import Autoencoder
from latentddpm.models.denoisers.basic import BasicUNet
from latentddpm.models.denoisers.classic import ClassicUNet
from latentddpm.models.denoisers.kinds import KINDS, load_denoiser, make_denoiser
from latentddpm.models.denoisers.unet import UNet
from latentddpm.models.resample import CropLike, Upsample
from latentddpm.training.plan import cost, resolve
from latentddpm.utils import files

TINY = {
    "unet": {
        "channels": 4,
        "channel_multipliers": (1, 2, 2),
        "num_res_blocks": 1,
        "attention_levels": (2,),
        "num_heads": 2,
        "norm_groups": 2,
        "zero_init": False,
    },
    "classic": {"channels": 2, "channel_multipliers": (1, 2, 2, 3, 2)},
    "basic": {},
}


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def tiny(kind, seed=0, **changes):
    keras.utils.set_random_seed(seed)
    return make_denoiser(kind, **{"latent_channels": 1, **TINY[kind], **changes})


@functools.cache
def shared(kind):
    """The `tiny` of tests that change no weight."""
    return tiny(kind)


def example(*sides, channels=1):
    return {"noisy_latents": normal(2, *sides, channels), "timesteps": np.array([3.0, 700.0])}


# --- Tables --------------------------------------------------------------------------------


def test_all_tables_have_the_kinds():
    """A table without a kind would show itself only where somebody asks for it."""
    names = {keras.saving.get_registered_name(one): kind for kind, one in KINDS.items()}
    assert names == files.DENOISERS, f"names of archives {files.DENOISERS}, classes {names}"
    literal = UNetConfig.model_fields["kind"].annotation.__args__
    for table in (choices.DENOISERS, cost.BLOCKS, dict.fromkeys(literal)):
        assert list(table) == list(KINDS), f"kinds {list(table)}, expected {list(KINDS)}"
    sized = {kind for kind, keys in choices.DENOISERS.items() if "channel_multipliers" in keys}
    assert set(resolve.UNET_LEVELS) == sized, (
        f"levels of {set(resolve.UNET_LEVELS)}, expected {sized}"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_takes_the_settings_that_are_listed(kind):
    config = UNetConfig(kind=kind)
    keys = {"kind", *choices.DENOISERS[kind]}
    assert set(config.model_dump()) == keys, f"{config.model_dump()}, expected {keys}"
    sizes = TINY[kind] and {"channel_multipliers": [1], "attention_levels": []}
    arguments = {**config.arguments, **{key: sizes[key] for key in sizes if key in keys}}
    found = make_denoiser(kind, latent_channels=2, **arguments)
    assert (found.latent_channels, found.spatial_dims) == (2, 2), f"made {found.get_config()}"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "basic", "channels": 64}, "unet.channels: not a .*basic, which takes no sizes"),
        ({"kind": "classic", "norm_groups": 4}, "unet.norm_groups: .* unet.channels, unet.chan"),
        ({"kind": "clasic"}, "unet.kind: .*'unet', 'classic' or 'basic'"),
    ],
)
def test_settings_of_another_kind_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        parse_config(DiffusionRun, {"unet": settings})


@pytest.mark.parametrize("kind", ["classic", "basic"])
def test_text_for_a_kind_that_takes_none_is_refused(kind):
    with pytest.raises(ValueError, match=f"kind={kind} takes no text; expected unet"):
        make_denoiser(kind, context_dim=8)


# --- Sizes ---------------------------------------------------------------------------------


def test_the_basic_unet_has_the_parameters_of_the_course():
    """Six 5×5 convolutions: 1→32→64→64 down, 64→64→32→1 up."""
    widths = [(1, 32), (32, 64), (64, 64), (64, 64), (64, 32), (32, 1)]
    expected = sum(25 * a * b + b for a, b in widths)
    count = BasicUNet(latent_channels=1).count_params()
    assert count == expected == 309_057, f"{count:,} parameters, expected 309,057"


def test_the_classic_unet_counted_by_hand():
    """Ronneberger's figure 1 with zero padding, one channel in and out, and the time."""

    def conv(a, b, side):
        return side**2 * a * b + b

    widths, bottom = (2, 4, 4, 6), 4
    expected = 0
    for below, width in zip((1, *widths), (*widths, bottom), strict=True):
        expected += conv(below, width, 3) + conv(width, width, 3)
    for above, width in zip((bottom, *widths[::-1]), widths[::-1], strict=False):
        expected += conv(above, width, 2) + conv(2 * width, width, 3) + conv(width, width, 3)
    expected += conv(widths[0], 1, 1) + conv(2, bottom, 1) + conv(bottom, bottom, 1)
    count = shared("classic").count_params()
    assert count == expected, f"{count} parameters, by hand {expected}"


@pytest.mark.parametrize("kind", KINDS)
def test_any_size_comes_out_as_it_went_in(kind):
    """28 → 14 → 7 → 4 → 2, and sizes no level of which is even."""
    network = shared(kind)
    for sides in ((28, 28), (17, 23)):
        found = network(example(*sides))
        assert found.shape == (2, *sides, 1), f"{sides} became {found.shape}"
        assert np.isfinite(found).all(), f"{sides}: not finite"


@pytest.mark.parametrize(("kind", "levels"), [("unet", 3), ("classic", 5)])
def test_levels_that_are_not_given(kind, levels):
    found = len(resolve.unet_levels(28, kind))
    assert found == levels, f"{found} levels for 28 positions, expected {levels}"
    assert len(resolve.unet_levels(4, kind)) < levels, "expected fewer for 4 positions"


# --- What they compute ---------------------------------------------------------------------


def basic_by_hand(network, images):
    """BasicUNet written as the course writes it."""

    def conv(name, hidden):
        return network.get_layer(name)(hidden)

    def twice(hidden):
        return np.asarray(hidden).repeat(2, 1).repeat(2, 2)

    def pool(hidden):
        batch, height, width, channels = hidden.shape
        cut = np.reshape(hidden, (batch, height // 2, 2, width // 2, 2, channels))
        return cut.max((2, 4))

    silu = keras.ops.silu
    first = silu(conv("down_0", images))
    second = silu(conv("down_1", pool(first)))
    hidden = silu(conv("down_2", pool(second)))
    hidden = silu(conv("up_2", hidden))
    hidden = silu(conv("up_1", twice(hidden) + second))
    return conv("up_0", twice(hidden) + first)


def test_the_basic_unet_is_that_of_the_course():
    network, inputs = shared("basic"), example(12, 8)
    expected = basic_by_hand(network, inputs["noisy_latents"])
    np.testing.assert_allclose(network(inputs), expected, atol=1e-5, err_msg="by hand")
    inputs["timesteps"] = inputs["timesteps"] + 100
    np.testing.assert_allclose(network(inputs), expected, atol=1e-5, err_msg="timesteps count")
    activated = BasicUNet(activate_output=True)
    activated.set_weights(network.get_weights())
    np.testing.assert_allclose(
        activated(inputs), keras.ops.silu(expected), atol=1e-5, err_msg="the last SiLU"
    )


def test_the_classic_unet_hears_the_timestep_at_the_bottom_only():
    network = tiny("classic")
    bottom = network.get_layer("bottom_conv_1")
    inputs = example(16, 16)
    other = {**inputs, "timesteps": np.array([500.0, 1.0])}
    apart = np.abs(np.asarray(network(inputs)) - np.asarray(network(other))).max()
    assert apart > 1e-6, "another timestep changes nothing"
    bottom.kernel.assign(0 * bottom.kernel)
    apart = np.abs(np.asarray(network(inputs)) - np.asarray(network(other))).max()
    assert apart == 0, "the timestep comes past the bottom"


def test_a_learned_variance_doubles_the_channels():
    plain, double = shared("unet"), tiny("unet", learned_variance=True)
    assert "learned_variance" not in plain.get_config(), "older models would get another digest"
    assert double.latent_channels == 1, f"{double.latent_channels} latent channels, expected 1"
    assert double(example(8, 8)).shape == (2, 8, 8, 2), "expected 2c channels"


# --- Archives ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_an_archive_says_its_kind(kind, tmp_path):
    network = shared(kind)
    save_archive(network, tmp_path / "unet.keras")
    again = load_denoiser(tmp_path / "unet.keras")
    assert type(again) is KINDS[kind], f"came back as {type(again).__name__}"
    assert weights_digest(again) == weights_digest(network), "another digest"
    name, arguments = files.read_network(tmp_path / "unet.keras", *files.DENOISERS)
    assert files.DENOISERS[name] == kind, f"{name}, expected {kind}"
    assert arguments["latent_channels"] == 1, f"arguments {arguments}"
    with pytest.raises(UserError, match="expected 'latentddpm>Autoencoder'"):
        load_archive(tmp_path / "unet.keras", Autoencoder)


# --- Layers of any size and dimension ------------------------------------------------------


@pytest.mark.parametrize("sides", [(5,), (5, 6), (3, 4, 5)], ids=["1-D", "2-D", "3-D"])
def test_upsample_takes_the_size_of_another_map(sides):
    """The nearest positions of the smaller map, then the convolution."""
    small = tuple(-(-side // 2) for side in sides)
    inputs, like = normal(2, *small, 4), normal(2, *sides, 3)
    layer = Upsample(6)
    repeated = inputs
    for axis, side in enumerate(sides, start=1):
        repeated = repeated.take(np.arange(side) // 2, axis)
    found = layer(inputs, like)
    np.testing.assert_allclose(
        found, layer.conv(repeated), atol=1e-5, err_msg=f"not nearest to {sides}"
    )
    free = tf.TensorSpec((None,) * found.ndim)  # of an exported model
    for wanted in (sides, tuple(2 * side for side in small)):
        like = normal(2, *wanted, 3)
        traced = tf.function(layer, input_signature=(free, free), autograph=False)
        np.testing.assert_allclose(
            traced(inputs, like), layer(inputs, like), atol=1e-5, err_msg=f"unknown {wanted}"
        )


def test_upsample_to_twice_the_size_is_plain_upsample():
    layer, images = Upsample(3), normal(2, 3, 4, 5)
    np.testing.assert_array_equal(
        layer(images, normal(2, 6, 8, 1)), layer(images), err_msg="other numbers for even sizes"
    )


def test_crop_like_keeps_the_beginning():
    image, like = normal(2, 4, 6, 3), normal(2, 3, 6, 2)
    layer = CropLike()
    np.testing.assert_array_equal(layer(image, like), image[:, :3], err_msg="not cropped")
    shape = layer.compute_output_shape((2, None, 6, 3), (2, None, 5, 2))
    assert shape == (2, None, 5, 3), f"{shape}, expected (2, None, 5, 3)"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "sides", [pytest.param((9,), marks=pytest.mark.slow), (3, 5, 4)], ids=["1-D", "3-D"]
)
def test_gradients_in_one_and_three_dimensions(kind, sides):
    network = tiny(kind, spatial_dims=len(sides))
    with tf.GradientTape() as tape:
        found = network(example(*sides))
        loss = tf.reduce_mean(found**2)
    assert found.shape == (2, *sides, 1), f"{sides} became {found.shape}"
    for weight, gradient in zip(
        network.trainable_weights,
        tape.gradient(loss, [one.value for one in network.trainable_weights]),
        strict=True,
    ):
        assert gradient is not None, f"{weight.path} has no gradient"
        assert np.isfinite(gradient).all(), f"{weight.path}: gradient not finite"


@pytest.mark.parametrize("kind", KINDS)
def test_one_dimension_is_two_with_a_single_row(kind):
    """Kernels of 1-D are the middle rows of those of 2-D: past the row are zeros."""
    line, image = tiny(kind, spatial_dims=1), tiny(kind)
    for own, weight in zip(line.weights, image.weights, strict=True):
        value = np.asarray(own)
        if value.shape != weight.shape:  # (k, a, b) and (k, k, a, b)
            wide = np.zeros(weight.shape, "float32")
            side = wide.shape[0]
            # A transposed 2×2 kernel makes two rows, of which the first is kept.
            wide[(side - 1) // 2] = value
            value = wide
        weight.assign(value)
    inputs = example(13)
    rows = {**inputs, "noisy_latents": inputs["noisy_latents"][:, None]}
    np.testing.assert_allclose(
        line(inputs), np.asarray(image(rows))[:, 0], atol=1e-5, err_msg="not the single row"
    )


def test_other_dimensions_are_refused():
    with pytest.raises(ValueError, match="spatial_dims=4, expected 1, 2 or 3"):
        tiny("unet", spatial_dims=4)


def test_a_unet_of_images_keeps_its_config():
    assert "spatial_dims" not in shared("unet").get_config(), "older models get another digest"
    line = UNet(4, (1,), 0, (), 2, norm_groups=2, spatial_dims=1)
    assert line.get_config()["spatial_dims"] == 1, "lost"


def test_the_classic_unet_has_ronnebergers_widths():
    arguments = ClassicUNet(channels=2).get_config()["channel_multipliers"]
    assert arguments == [1, 2, 4, 8, 16], f"{arguments}, expected four halvings"
