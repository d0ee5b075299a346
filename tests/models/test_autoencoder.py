"""The first stage: sizes, the border between pixels and latents, archives, training."""

import json
import math
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from latentddpm.data.images import read_image
from latentddpm.errors import UserError
from latentddpm.models.autoencoder import tiling
from latentddpm.models.autoencoder.autoencoder import LOGVAR_RANGE, Autoencoder
from latentddpm.models.autoencoder.encoder_decoder import Decoder, Encoder
from latentddpm.models.autoencoder.latent_space import LatentSpace
from latentddpm.training.autoencoder import measure_latents, measured_space
from latentddpm.training.step.autoencoder_trainer import AutoencoderTrainer, GaussianKL
from latentddpm.training.step.optimizer import FlatAdamW

TINY = {
    "channels": 8,
    "channel_multipliers": (1, 2),
    "num_res_blocks": 1,
    "latent_channels": 3,
    "norm_groups": 4,
}


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def pictures(*shape, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype("float32")


def tiny(seed=0, **changes):
    keras.utils.set_random_seed(seed)
    return Autoencoder(**{**TINY, **changes})


@pytest.fixture(scope="module")
def autoencoder():
    return tiny(scaling_factor=0.7)


# --- The network of Stable Diffusion -------------------------------------------------------


@pytest.mark.parametrize(("cls", "count"), [(Encoder, 34_163_664), (Decoder, 49_490_199)])
def test_the_full_size_has_its_number_of_parameters(cls, count):
    assert cls().count_params() == count, f"expected {count:,} parameters in {cls.__name__}"


def test_the_defaults_are_stable_diffusions():
    config = Autoencoder.__init__.__kwdefaults__ or {}
    names = Autoencoder.__init__.__code__.co_varnames[1:]
    config |= dict(zip(names, Autoencoder.__init__.__defaults__, strict=False))
    expected = {
        "channels": 128,
        "channel_multipliers": (1, 2, 4, 4),
        "num_res_blocks": 2,
        "latent_channels": 4,
        "scaling_factor": 0.18215,
        "norm_groups": 32,
        "norm_epsilon": 1e-6,
    }
    found = {name: config[name] for name in expected}
    assert found == expected, f"defaults {found} are not those of Stable Diffusion"


def test_every_group_norm_has_the_given_epsilon():
    for network in (Encoder, Decoder):
        model = network(channels=8, norm_groups=4, norm_epsilon=0.25)
        norms = [
            layer
            for layer in model._flatten_layers()
            if isinstance(layer, keras.layers.GroupNormalization)
        ]
        assert norms, f"{network.__name__} has no group norm"
        wrong = [norm.path for norm in norms if norm.epsilon != 0.25 or norm.groups != 4]
        assert not wrong, f"{network.__name__}: epsilon or groups not passed on to {wrong}"


def test_the_parts_are_placed_as_in_stable_diffusion():
    encoder = Encoder(channels=4, norm_groups=2)
    for level in range(3):
        down = encoder.get_layer(f"down_{level}_downsample")
        found = down.kernel, down.stride, down.padding
        expected = 3, 2, ((0, 1), (0, 1))  # bottom and right only
        assert found == expected, f"level {level}: down-sampling {found}, expected {expected}"
    for network in (encoder, Decoder(channels=4, norm_groups=2)):
        heads = network.get_layer("mid_attention").num_heads
        assert heads == 1, f"{network.name}: attention has {heads} heads, expected 1"


@pytest.fixture(scope="module")
def four_levels():
    return tiny(channel_multipliers=(1, 1, 2, 2))


@pytest.mark.parametrize(("height", "width"), [(16, 16), (16, 40), (8, 24)])
def test_four_levels_make_an_eighth_in_any_shape(four_levels, height, width):
    model = four_levels
    assert model.downsample_factor == 8, f"factor {model.downsample_factor}, expected 8"
    mean, logvar = model.encode(pictures(2, height, width, 3))
    expected = (2, height // 8, width // 8, 3)
    assert mean.shape == logvar.shape == expected, f"moments {mean.shape}, expected {expected}"
    images = model.decode(mean)
    assert images.shape == (2, height, width, 3), f"images came back as {images.shape}"


# --- The border ----------------------------------------------------------------------------


def test_encode_is_unscaled(autoencoder):
    images = pictures(2, 8, 12, 3)
    moments = np.asarray(autoencoder.encoder(images))
    mean, logvar = autoencoder.encode(images)
    np.testing.assert_array_equal(mean, moments[..., :3], err_msg="mean is not the first half")
    np.testing.assert_array_equal(logvar, moments[..., 3:], err_msg="logvar is not the second")


def test_latents_are_scaled_and_decode_takes_the_scale_off(autoencoder):
    mean = normal(2, 4, 6, 3)
    latents = autoencoder.to_latents(mean)
    np.testing.assert_allclose(latents, mean * 0.7, rtol=1e-6, err_msg="not the scaled mode")
    np.testing.assert_allclose(
        autoencoder.decode(latents),
        autoencoder.decoder(mean),
        atol=1e-5,
        err_msg="decode does not invert to_latents",
    )


def test_the_scale_changes_latents_only():
    """Another factor: latents change with it, pixels and training stay as they were."""
    one, other = tiny(scaling_factor=1.0), tiny(scaling_factor=5.0)
    images = pictures(2, 8, 8, 3)
    mean, same = one.encode(images)[0], other.encode(images)[0]
    np.testing.assert_array_equal(mean, same, err_msg="encode depends on the scale")
    np.testing.assert_allclose(
        one.decode(one.to_latents(mean)),
        other.decode(other.to_latents(mean)),
        atol=1e-5,
        err_msg="pixels depend on the scale",
    )
    np.testing.assert_array_equal(
        one({"images": images})["reconstruction"],
        other({"images": images})["reconstruction"],
        err_msg="the training path depends on the scale",
    )


def test_each_channel_has_its_own_mean_and_scale():
    """(raw − mean) · scale by channel, in NumPy, Keras and the config that training reads."""
    scale, shift = [2.0, 0.5, 4.0], [1.0, -1.0, 0.0]
    model = tiny(scaling_factor=scale, shift_factor=shift)
    mean, logvar, noise = (normal(2, 4, 6, 3, seed=seed) for seed in range(3))
    sample = mean + np.exp(logvar / 2) * noise
    for raw, moments in ((mean, (mean,)), (sample, (mean, logvar, noise))):
        expected = (raw - np.float32(shift)) * np.float32(scale)
        np.testing.assert_allclose(model.to_latents(*moments), expected, atol=1e-6)
    back = model.decode(model.to_latents(mean))
    np.testing.assert_allclose(
        back, model.decoder(mean), atol=1e-5, err_msg="decode is no inverse"
    )
    tiled = tiling.decode(model, model.to_latents(mean))
    np.testing.assert_allclose(tiled, back, atol=1e-5, err_msg="tiling has another scaling")
    space = LatentSpace.of(json.loads(json.dumps(model.get_config())))
    assert space == model.latent_space, f"the config means {space}"
    assert space.log_scale == pytest.approx(math.log(4) / 3), "expected the mean of log scale"


def test_one_number_for_all_channels_is_the_same_as_one_for_each():
    one, each = LatentSpace(0.7, 0.2), LatentSpace([0.7] * 3, [0.2] * 3)
    mean = normal(2, 4, 6, 3)
    np.testing.assert_allclose(each.to_latents(mean), one.to_latents(mean), rtol=1e-6)
    np.testing.assert_allclose(each.to_raw(mean), one.to_raw(mean), rtol=1e-6)


def test_the_measured_channels_have_mean_0_and_variance_1():
    """Over posterior samples of the images it was measured on."""
    model, images = tiny(), pictures(16, 8, 8, 3)
    statistics = measure_latents(model, [{"images": images}])
    mean, logvar = model.encode(images)
    noise = normal(200, *mean.shape)
    space = measured_space(statistics, "channels")
    latents = np.asarray(space.to_latents(mean, logvar, noise)).reshape(-1, 3)
    np.testing.assert_allclose(latents.mean(0), 0, atol=0.01)
    np.testing.assert_allclose(latents.std(0), 1, atol=0.01)
    assert measured_space(statistics) == LatentSpace(1 / statistics["std"]), "another default"


def test_models_without_shift_have_the_config_they_always_had():
    new = {"shift_factor", "quant_conv"}
    model = tiny()
    for part in (model, model.encoder, model.decoder):
        assert not new & part.get_config().keys(), "another digest of an old model"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"scaling_factor": [1.0, 0.0, 1.0]}, "scaling_factor"),
        ({"scaling_factor": [1.0, 2.0]}, "scaling_factor: 2 numbers for 3 latent_channels"),
        ({"shift_factor": float("nan")}, "shift_factor=nan"),
    ],
    ids=["zero", "two numbers", "nan"],
)
def test_a_latent_space_that_is_none_is_refused(change, words):
    with pytest.raises(ValueError, match=words):
        tiny(**change)


def test_a_posterior_sample_is_mean_plus_sigma_noise(autoencoder):
    mean, logvar, noise = (normal(2, 4, 6, 3, seed=seed) for seed in range(3))
    expected = (mean + np.exp(logvar / 2) * noise) * 0.7
    np.testing.assert_allclose(
        autoencoder.to_latents(mean, logvar, noise), expected, atol=1e-6, err_msg="wrong sample"
    )
    mode = autoencoder.to_latents(mean, logvar)
    np.testing.assert_allclose(mode, mean * 0.7, rtol=1e-6, err_msg="not the mode without noise")


def test_call_decodes_the_sample_of_its_noise(autoencoder):
    images, noise = pictures(2, 8, 8, 3), normal(2, 4, 4, 3)
    result = autoencoder({"images": images, "noise": noise})
    mean, logvar = autoencoder.encode(images)
    np.testing.assert_array_equal(result["mean"], mean, err_msg="call gives another mean")
    np.testing.assert_array_equal(result["logvar"], logvar, err_msg="call gives another logvar")
    latents = autoencoder.to_latents(mean, logvar, noise)
    np.testing.assert_allclose(
        result["reconstruction"], autoencoder.decode(latents), atol=1e-5, err_msg="not its sample"
    )
    mode = autoencoder({"images": images})["reconstruction"]
    assert np.abs(mode - result["reconstruction"]).max() > 1e-3, "the noise changed nothing"


def test_logvar_is_clipped():
    model = tiny()
    last = model.encoder.get_layer("quant").conv
    kernel, bias = last.get_weights()
    for value, bound in ((-100.0, LOGVAR_RANGE[0]), (100.0, LOGVAR_RANGE[1])):
        last.set_weights([kernel, np.full_like(bias, value)])
        images = pictures(1, 8, 8, 3)
        for logvar in (model.encode(images)[1], model({"images": images})["logvar"]):
            assert (np.asarray(logvar) == bound).all(), f"{value} is not clipped to {bound}"
        mean = np.asarray(model.encode(images)[0])
        assert np.abs(mean).max() > 30, "the mean was clipped as well"
    assert LOGVAR_RANGE == (-30.0, 20.0), f"expected [-30, 20], got {LOGVAR_RANGE}"


@pytest.fixture(scope="module")
def eighth():
    """An autoencoder of factor 8."""
    return tiny(channel_multipliers=(1, 1, 1, 1), channels=4)


@pytest.mark.parametrize(
    ("size", "words"),
    [
        ((60, 64), "height 60 .* 56 or 64"),
        ((64, 60), "width 60 .* 56 or 64"),
        ((9, 8), "height 9 .* 8 or 16"),
        ((7, 8), "height 7 .* valid: 8$"),
        ((0, 8), "height 0 .* valid: 8$"),
    ],
)
def test_a_size_that_does_not_divide_is_refused(eighth, size, words):
    with pytest.raises(UserError, match=words):
        eighth.encode(np.zeros((1, *size, 3), "float32"))


# --- Loss ----------------------------------------------------------------------------------


def test_kl_is_its_closed_form():
    """Half of mu^2 + sigma^2 - 1 - log sigma^2, summed over an image, mean over images."""
    mean, logvar = normal(3, 2, 4, 3), normal(3, 2, 4, 3, seed=1)
    terms = 0.5 * (mean.astype("float64") ** 2 + np.exp(logvar.astype("float64")) - 1 - logvar)
    expected = terms.sum() / 3
    np.testing.assert_allclose(GaussianKL()(mean, logvar), expected, rtol=1e-5, err_msg="wrong KL")
    zeros = np.zeros_like(mean)
    assert float(GaussianKL()(zeros, zeros)) == 0, "KL of the standard normal to itself is not 0"


def test_kl_agrees_with_an_integral():
    mean, logvar = 0.7, -1.3
    grid = np.linspace(-12, 12, 200_001)
    log_q = -0.5 * (np.log(2 * np.pi) + logvar + (grid - mean) ** 2 / np.exp(logvar))
    log_p = -0.5 * (np.log(2 * np.pi) + grid**2)
    integral = np.trapezoid(np.exp(log_q) * (log_q - log_p), grid)
    kl = GaussianKL()(np.full((1, 1, 1, 1), mean), np.full((1, 1, 1, 1), logvar))
    np.testing.assert_allclose(kl, integral, rtol=1e-5, err_msg="not the integral of q log(q/p)")


@pytest.mark.parametrize("name", ["l1", "l2"])
def test_the_loss_is_reconstruction_plus_weighted_kl(name):
    model = tiny()
    trainer = AutoencoderTrainer(model, name, kl_weight=0.01)
    trainer.compile("sgd", run_eagerly=name == "l2")
    x = {"images": pictures(4, 8, 8, 3), "noise": normal(4, 4, 4, 3)}
    result = {key: np.asarray(value, "float64") for key, value in model(x).items()}
    difference = x["images"] - result["reconstruction"]
    kl = GaussianKL()(result["mean"], result["logvar"])
    distance = np.abs(difference).mean() if name == "l1" else np.square(difference).mean()
    expected = {
        "loss": distance + 0.01 * float(kl),
        "reconstruction": distance,
        "kl": float(kl),
        "mse": np.square(difference).mean(),
    }
    found = trainer.evaluate(x, batch_size=4, verbose=0, return_dict=True)
    assert found.keys() == expected.keys(), f"expected metrics {set(expected)}, got {set(found)}"
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, rtol=1e-4, err_msg=f"{key} is wrong")


def test_metrics_weigh_images_not_batches():
    """A short last batch counts by its images."""
    model = AutoencoderTrainer(tiny())
    model.compile("sgd", run_eagerly=True)
    x = {"images": pictures(5, 8, 8, 3), "noise": normal(5, 4, 4, 3)}
    whole = model.evaluate(x, batch_size=5, verbose=0, return_dict=True)
    split = model.evaluate(x, batch_size=4, verbose=0, return_dict=True)
    for key, value in whole.items():
        np.testing.assert_allclose(
            split[key], value, rtol=1e-5, err_msg=f"{key} depends on the batch size"
        )


def test_an_unknown_loss_names_the_choices():
    with pytest.raises(UserError, match=r"reconstruction_loss: 'l3' .* 'l1', 'l2'"):
        AutoencoderTrainer(tiny(), "l3")


# --- Config and archives -------------------------------------------------------------------

EVERY_ARGUMENT = {
    "channels": 8,
    "channel_multipliers": [1, 2, 1],
    "num_res_blocks": 1,
    "latent_channels": 5,
    "scaling_factor": [0.3, 1.0, 2.0, 0.5, 4.0],
    "norm_groups": 2,
    "norm_epsilon": 1e-3,
    "image_channels": 1,
    "latent_statistics": {"count": 40, "mean": 0.5, "std": 2.0, "channel_std": [1.0, 3.0]},
    "shift_factor": 0.25,
    "quant_conv": False,
    "name": "mine",
    "dtype": "mixed_bfloat16",
}


def test_the_config_is_complete():
    config = Autoencoder(**EVERY_ARGUMENT).get_config()
    assert config == EVERY_ARGUMENT, "get_config is not what the constructor was given"
    assert json.loads(json.dumps(config)) == config, "the config does not survive JSON"
    again = Autoencoder.from_config(config)
    assert again.get_config() == config, "from_config(get_config()) has another config"


@pytest.mark.usefixtures("bfloat16")
@pytest.mark.parametrize("cls", [Encoder, Decoder])
def test_the_config_of_a_part_is_complete(cls, tmp_path):
    unscaled = ("scaling_factor", "shift_factor", "latent_statistics")
    arguments = {k: v for k, v in EVERY_ARGUMENT.items() if k not in unscaled}
    model = cls(**arguments)
    assert model.get_config() == arguments, "get_config is not what the constructor was given"
    model.save(tmp_path / "part.keras")
    again = keras.saving.load_model(tmp_path / "part.keras", safe_mode=True)
    assert type(again) is cls, f"came back as {type(again).__name__}"
    assert again.get_config() == arguments, "the archive has another config"
    inputs = pictures(1, 8, 8, 1 if cls is Encoder else 5)
    np.testing.assert_array_equal(again(inputs), model(inputs), err_msg="other outputs")


LOAD = """
import json, sys
import keras, numpy as np
import latentddpm.models.autoencoder.autoencoder
model = keras.saving.load_model(sys.argv[1] + "/vae.keras", safe_mode=True)
images = np.load(sys.argv[1] + "/images.npy")
mean, logvar = model.encode(images)
decoded = model.decode(model.to_latents(mean))
np.savez(sys.argv[1] + "/out.npz", mean=mean, logvar=logvar, decoded=decoded)
print(json.dumps(model.get_config()))
"""


@pytest.mark.slow
def test_an_archive_loads_in_a_fresh_process(tmp_path):
    model = tiny(dtype="float32")
    images = pictures(2, 8, 12, 3)
    trainer = AutoencoderTrainer(model, "l2")
    trainer.compile("adamw", run_eagerly=True)
    trainer.fit({"images": images, "noise": normal(2, 4, 6, 3)}, verbose=0)
    model.scaling_factor, model.latent_statistics = 0.25, {"count": 2, "channel_std": [1, 2, 3.5]}
    model.save(tmp_path / "vae.keras")
    np.save(tmp_path / "images.npy", images)
    environment = {**os.environ, "KERAS_BACKEND": "tensorflow"}
    answer = subprocess.run(
        [sys.executable, "-c", LOAD, str(tmp_path)],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert answer.returncode == 0, f"loading failed in a fresh process:\n{answer.stderr}"
    config = json.loads(answer.stdout)
    assert config == model.get_config(), "another config in a fresh process"
    assert config["scaling_factor"] == 0.25, "the measured scaling_factor was not kept"
    assert config["latent_statistics"]["count"] == 2, "latent_statistics were not kept"
    mean, logvar = model.encode(images)
    expected = {"mean": mean, "logvar": logvar, "decoded": model.decode(mean * 0.25)}
    for name, value in expected.items():
        found = np.load(tmp_path / "out.npz")[name]
        np.testing.assert_array_equal(found, value, err_msg=f"{name} differs after loading")


# --- Training ------------------------------------------------------------------------------


def test_it_overfits_four_images(emoji_folder):
    """Sixty steps on four real images bring the squared error below a sixth of its start."""
    names = sorted(emoji_folder.rglob("1F34E.png"))
    assert len(names) == 4, f"expected red apples in four styles, found {len(names)}"
    pixels = np.stack([read_image(name, 16) for name in names])
    images = (pixels / 127.5 - 1).astype("float32")
    model = AutoencoderTrainer(tiny(channel_multipliers=(1, 2)), "l1", kl_weight=1e-6)
    model.compile(FlatAdamW(1e-2))
    batch = tf.data.Dataset.from_tensors({"images": images, "noise": normal(4, 8, 8, 3)})
    before, _, after = (
        model.fit(batch.repeat(steps), verbose=0, shuffle=False).history for steps in (1, 60, 1)
    )
    for name in ("loss", "mse"):
        factor = before[name][0] / after[name][0]
        expected = {"loss": 2.5, "mse": 6}[name]
        assert factor > expected, f"{name} fell by {factor:.1f}, expected over {expected}"


def trained(seed):
    model = AutoencoderTrainer(tiny(seed, channel_multipliers=(1,)))
    model.compile(FlatAdamW(1e-3), run_eagerly=True)
    batch = {"images": pictures(2, 4, 8, 3), "noise": normal(2, 4, 8, 3)}
    model.fit(batch, batch_size=2, epochs=2, shuffle=False, verbose=0)
    return model.get_weights()


@pytest.mark.slow
def test_training_is_a_function_of_the_seed():
    first, again, other = trained(0), trained(0), trained(1)
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, two, err_msg="the same seed gave other weights")
    assert any((one != two).any() for one, two in zip(first, other, strict=True)), (
        "another seed gave the same weights"
    )


@pytest.mark.usefixtures("bfloat16")
def test_bfloat16_keeps_the_border_in_float32():
    model = tiny(dtype="mixed_bfloat16")
    images = pictures(2, 8, 8, 3)
    result = model({"images": images, "noise": normal(2, 4, 4, 3)})
    for name, value in result.items():
        assert value.dtype == tf.float32, f"{name} is {value.dtype}, expected float32"
    whole = tiny()
    precise = whole.decode(whole.to_latents(whole.encode(images)[0]))
    rough = model.decode(model.to_latents(model.encode(images)[0]))
    # A layer rounds its norm, its activation and its sums by up to 2⁻⁸ of their size, and some
    # kernels their partial sums as well. Independent errors add up as their squares do.
    computing = [
        layer
        for half in (model.encoder, model.decoder)
        for layer in half._flatten_layers()
        if isinstance(layer, (keras.layers.Conv2D, keras.layers.Dense))
    ]
    limit = 2 * math.sqrt(3 * len(computing)) * 2.0**-8
    error = math.sqrt(np.mean(np.square(rough - precise)) / np.mean(np.square(precise)))
    assert 0 < error < limit, f"bfloat16 is {error:.4f} off float32, expected under {limit:.4f}"
    config = keras.saving.serialize_keras_object(model)
    assert (
        keras.saving.deserialize_keras_object(config).encoder.get_layer("conv_in").compute_dtype
        == "bfloat16"
    ), "the precision is lost in the config"
