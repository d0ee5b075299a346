"""Half precision without training: rounding and no more, half the memory, float32 on overflow.

Bounds hold where bfloat16 is emulated as well. A rounding to bfloat16 is off by 2⁻⁹, and there are
some twenty of them from input to output.
"""

import copy
import warnings

import keras
import ml_dtypes
import numpy as np
import pytest
from tiny import QUICK_AUTOENCODER, quick_model, step_by_step, tiny_autoencoder, tiny_lora

from latentddpm.choices import HALF
from latentddpm.clip.text_encoder import TextEncoder
from latentddpm.errors import UserError
from latentddpm.interop import merge_lora
from latentddpm.models.archive import load_archive, save_archive
from latentddpm.models.autoencoder.autoencoder import Autoencoder
from latentddpm.models.autoencoder.tiling import decode, encode
from latentddpm.models.denoisers.unet import UNet
from latentddpm.models.functional import rebuild
from latentddpm.models.layers import GroupNormalization
from latentddpm.models.precision import finite, hold_in, precision_of, settle_precision
from latentddpm.pipeline.latent_diffusion import LatentDiffusion

ROUNDING = {"bfloat16": 0.1, "float16": 0.01}
"""Error of an output in units of its spread, measured: 0.02 and 0.003."""
TYPES = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}


@pytest.fixture(autouse=True)
def eagerly():
    with step_by_step():
        yield


@pytest.fixture(scope="module")
def model():
    return quick_model()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("half") / "model"
    model.save(folder)
    return folder


@pytest.fixture(scope="module")
def halves(folder):
    """The model loaded in each half precision."""
    return {name: LatentDiffusion.load(folder, precision=name) for name in HALF}


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, "float32")


def inputs_of(unet, timesteps=(999, 10)):
    context = normal(len(timesteps), 16, 16, seed=1)
    latents = normal(len(timesteps), 4, 4, 4)
    return {"noisy_latents": latents, "timesteps": np.array(timesteps), "context": context}


def number_of_bytes(network):
    return sum(np.prod(one.shape) * one.value.dtype.size for one in network.weights)


def error(actual, expected):
    """Root of the mean square, in units of the spread of what is expected."""
    return float(np.std(np.asarray(actual, "float32") - expected) / np.std(expected))


# --- Rounding and no more ------------------------------------------------------------------


@pytest.mark.parametrize("precision", HALF)
def test_a_model_in_half_precision_is_the_model_up_to_rounding(model, halves, precision):
    half = halves[precision]
    assert half.precision == precision, f"{half.precision}, expected {precision}"
    ids = {"token_ids": model.tokenizer(["red apple", ""])}
    latents, images = normal(1, 4, 4, 4), np.clip(normal(1, 32, 32, 3), -1, 1)
    of_unet = inputs_of(model.unet)
    for name, call in {
        "unet": lambda one: one.unet(of_unet),
        "text encoder": lambda one: one.text_encoder(ids),
        "decoder": lambda one: decode(one.autoencoder, latents),
        "encoder": lambda one: encode(one.autoencoder, images)[0],
    }.items():
        found = error(call(half), np.asarray(call(model)))
        assert 0 < found < ROUNDING[precision], f"{name} is off by {found} in {precision}"


@pytest.mark.parametrize("precision", HALF)
def test_weights_are_the_rounded_ones_in_half_the_memory(model, halves, precision):
    for part in ("autoencoder", "unet", "text_encoder"):
        whole, held = getattr(model, part), getattr(halves[precision], part)
        share = number_of_bytes(held) / number_of_bytes(whole)
        assert share < 0.55, f"{part}: {share:.0%} of the bytes of float32"
        assert precision_of(held) == precision, f"{part}: {precision_of(held)}"
        for one, other in zip(held.weights, whole.weights, strict=True):
            expected = other.numpy()
            if one.dtype == precision:
                expected = expected.astype(TYPES[precision])
            np.testing.assert_array_equal(np.asarray(one.value), expected, err_msg=one.path)
    assert halves[precision].unet.get_layer("conv_out").conv.kernel.dtype == "float32"


def test_it_computes_what_the_mixed_policy_does(model, halves):
    """Mixed precision rounds the weights at each use; only its norms see them as they are."""
    held, mixed = halves["bfloat16"].unet, rebuild(model.unet, dtype="mixed_bfloat16")
    for one in mixed.weights:
        if one.path.endswith(("gamma", "beta")):
            one.assign(one.numpy().astype(ml_dtypes.bfloat16).astype("float32"))
    inputs = inputs_of(model.unet)
    np.testing.assert_array_equal(held(inputs), mixed(inputs))


@pytest.mark.parametrize("precision", HALF)
def test_a_norm_computes_in_float32(precision):
    """Numbers near 100 with a spread of 1: their squares are beyond both halves' digits."""
    norm, whole = (GroupNormalization(2, dtype=name) for name in (precision, "float32"))
    inputs = (100 + normal(1, 6, 6, 8)).astype(TYPES[precision])
    expected = np.asarray(whole(inputs.astype("float32"))).astype(TYPES[precision])
    np.testing.assert_array_equal(np.asarray(norm(inputs)), expected)


def test_neighbouring_timesteps_stay_apart(halves):
    """bfloat16 has 8 binary digits, in which 999 and 998 are both 1,000."""
    unet = halves["bfloat16"].unet
    inputs = {name: np.repeat(rows[:1], 2, axis=0) for name, rows in inputs_of(unet).items()}
    one, other = np.asarray(unet({**inputs, "timesteps": np.array([999, 998])}))
    assert (one != other).any(), "999 and 998 give the same"


def test_pictures_in_bfloat16_are_nearly_those_of_float32(model, halves):
    settings = {"num_images": 2, "seed": 0, "num_steps": 2}
    both = (one.generate("red apple", **settings) for one in (model, halves["bfloat16"]))
    whole, half = both
    assert 0 < np.abs(whole.astype(int) - half).mean() < 3, "expected the same pictures, rounded"


# --- Overflow -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def overflowing():
    """A model in float16 whose first activations are beyond its largest number, 65,504."""
    model = quick_model()
    conv = model.unet.get_layer("conv_in").conv
    conv.bias.assign(np.full(conv.bias.shape, 60_000.0))
    conv.kernel.assign(np.full(conv.kernel.shape, 5_000.0))
    model.hold_in("float16")
    return model


def test_an_overflow_goes_on_in_float32_and_says_so_once(overflowing):
    unet = overflowing.unet
    predict, inputs = finite(unet, "denoiser"), inputs_of(unet)
    assert not np.isfinite(np.asarray(unet(inputs))).all(), "float16 should have overflowed"
    with pytest.warns(UserWarning, match="denoiser: not finite in float16; goes on in float32"):
        first = np.asarray(predict(inputs))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second = np.asarray(predict(inputs))
    expected = np.asarray(hold_in(unet, "float32")(inputs))
    np.testing.assert_array_equal(first, expected)
    np.testing.assert_array_equal(second, expected)


def test_a_picture_that_overflows_is_that_of_float32(overflowing):
    model = copy.copy(overflowing)
    with pytest.warns(UserWarning, match="denoiser: not finite in float16"):
        latents = model.generate("red apple", seed=0, num_steps=2, output="latents")
    assert np.isfinite(latents).all(), "expected numbers"
    model.hold_in("float32")
    expected = model.generate("red apple", seed=0, num_steps=2, output="latents")
    assert error(latents, expected) < ROUNDING["float16"], "expected what float32 draws"


def test_a_weight_that_half_precision_cannot_hold_is_named(tmp_path):
    unet = UNet(8, (1,), 0, (), 2, norm_groups=4)
    kernel = unet.get_layer("conv_in").conv.kernel
    kernel.assign(np.full(kernel.shape, 70_000.0))
    save_archive(unet, tmp_path / "unet.keras")
    named = r"unet\.keras: 'conv_in/conv/kernel' holds numbers beyond 65,504, .* expected bfloat"
    with pytest.raises(UserError, match=named):
        load_archive(tmp_path / "unet.keras", UNet, precision="float16")
    load_archive(tmp_path / "unet.keras", UNet, precision="bfloat16")


# --- What half precision is not for ---------------------------------------------------------


def test_rounded_weights_are_not_saved(halves, tmp_path):
    half = halves["bfloat16"]
    with pytest.raises(UserError, match=r"rounded to bfloat16; needs .* precision='float32'"):
        half.save(tmp_path / "model")
    assert not (tmp_path / "model").exists(), "expected nothing to be written"


def test_a_lora_is_added_before_the_weights_are_rounded(halves, tmp_path):
    lora = tiny_lora(tmp_path / "lora.safetensors", width=16)
    whole = quick_model()
    with pytest.raises(UserError, match=r"in bfloat16; load it in float32, merge, then model\.h"):
        merge_lora(halves["bfloat16"], lora)
    merge_lora(whole, lora, 0.01)
    summed = [one.numpy() for one in whole.unet.weights]
    whole.hold_in("bfloat16")
    for one, expected in zip(whole.unet.weights, summed, strict=True):
        held = np.asarray(one.value)
        np.testing.assert_array_equal(held, expected.astype(held.dtype), err_msg=one.path)


def test_an_unknown_precision_is_refused(folder):
    for call in (
        lambda: LatentDiffusion.load(folder, precision="half"),
        lambda: load_archive(folder / "vae.keras", Autoencoder, precision="auto"),
        lambda: settle_precision("double"),
    ):
        with pytest.raises(UserError, match=r"precision: '.*' is not known.*; choose one of "):
            call()


def test_mixed_precision_has_its_weights_in_float32():
    autoencoder = tiny_autoencoder(**QUICK_AUTOENCODER, dtype="mixed_bfloat16")
    assert precision_of(autoencoder) == "float32"
    assert precision_of(autoencoder.decoder) == "float32"
    sizes = {"hidden_dim": 4, "num_layers": 1, "num_heads": 1, "vocabulary_size": 8}
    assert precision_of(TextEncoder(**sizes, dtype="float16")) == "float16"
    assert keras.config.dtype_policy().name == "float32"
