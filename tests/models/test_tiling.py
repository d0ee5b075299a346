"""Encoding and decoding in strips: the whole image's answer, and what happens without memory."""

import keras
import numpy as np
import pytest
from tiny import quick_model, tiny_autoencoder

from latentddpm.errors import UserError
from latentddpm.models import attention
from latentddpm.models.autoencoder import strips as strips_module
from latentddpm.models.autoencoder import tiling
from latentddpm.models.autoencoder.strips import run_in_strips
from latentddpm.models.autoencoder.tiling import decode, encode

CLOSE = 2e-5


@pytest.fixture(scope="module")
def autoencoder():
    return tiny_autoencoder()


@pytest.fixture(scope="module")
def model():
    return quick_model(text=False)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


class Starved:
    """A network that runs out of memory above so many input rows."""

    def __init__(self, network, most, error):
        self.network, self.most, self.error = network, most, error

    def __getattr__(self, name):
        return getattr(self.network, name)

    def __call__(self, inputs):
        if inputs.shape[1] > self.most:
            raise self.error
        return self.network(inputs)


def exhausted():
    import tensorflow as tf

    return tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")


# --- Strips equal the whole ----------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 3, 4, 12, 50])
def test_decoding_in_strips_equals_the_whole(autoencoder, rows):
    latents = normal(2, 13, 9, 4)
    whole = np.asarray(autoencoder.decoder(latents))
    strips = run_in_strips(autoencoder.decoder, latents, rows)
    np.testing.assert_allclose(
        strips, whole, atol=CLOSE, err_msg=f"strips of {rows} latent rows differ from one pass"
    )


def test_attention_of_few_rows_at_a_time(autoencoder, monkeypatch):
    """As for an image so large that the scores of a strip are too many: here two rows of five."""
    latents = normal(1, 12, 9, 4)
    whole = np.asarray(autoencoder.decoder(latents))
    monkeypatch.setattr(attention, "KEPT_SCORES", 0)
    monkeypatch.setattr(attention, "MOST_SCORES", 2 * 9 * 12 * 9)
    np.testing.assert_allclose(run_in_strips(autoencoder.decoder, latents, 5), whole, atol=CLOSE)


@pytest.mark.parametrize("rows", [8, 24, 64, 72])
def test_encoding_in_strips_equals_the_whole(autoencoder, rows):
    images = normal(2, 72, 40, 3)
    whole = np.asarray(autoencoder.encoder(images))
    strips = run_in_strips(autoencoder.encoder, images, rows)
    np.testing.assert_allclose(
        strips, whole, atol=CLOSE, err_msg=f"strips of {rows} pixel rows differ from one pass"
    )


def test_a_seam_would_be_seen(autoencoder):
    """Each strip decoded by itself does differ: the comparison above can fail."""
    latents = normal(1, 12, 9, 4)
    whole = np.asarray(autoencoder.decoder(latents))
    halves = np.concatenate(
        [autoencoder.decoder(latents[:, part]) for part in (slice(6), slice(6, 12))], axis=1
    )
    assert np.abs(whole - halves).max() > 100 * CLOSE, "halves on their own should leave a seam"


def test_an_autoencoder_of_another_shape():
    """Two levels, no shortcut in the last one, three blocks."""
    other = tiny_autoencoder(channel_multipliers=(1, 1), num_res_blocks=2)
    latents = normal(1, 10, 6, 4)
    whole = np.asarray(other.decode(latents))
    np.testing.assert_allclose(decode(other, latents, 4), whole, atol=CLOSE)
    images = np.clip(whole, -1, 1)
    mean, logvar = encode(other, images, 6)
    expected = other.encode(images)
    np.testing.assert_allclose(mean, expected[0], atol=CLOSE)
    np.testing.assert_allclose(logvar, expected[1], atol=CLOSE)


@pytest.mark.parametrize(
    "dtype", ["mixed_float16", pytest.param("mixed_bfloat16", marks=pytest.mark.slow)]
)
def test_strips_in_half_precision_are_as_near_as_one_pass(autoencoder, dtype):
    half = tiny_autoencoder(dtype=dtype)
    half.set_weights(autoencoder.get_weights())
    latents = normal(1, 12, 8, 4)
    exact = np.asarray(autoencoder.decoder(latents))
    error = np.abs(np.asarray(half.decoder(latents), "float32") - exact).mean()
    strips = run_in_strips(half.decoder, latents, 3)
    own = np.abs(strips - exact).mean()
    assert strips.dtype == np.float32, f"expected float32 images, got {strips.dtype}"
    assert own < 2 * error, f"{dtype}: strips are {own} off, one pass is {error}"


def test_another_layer_is_refused():
    inputs = keras.Input((None, None, 4))
    network = keras.Model(inputs, keras.layers.Conv2D(4, 3)(inputs))
    with pytest.raises(TypeError, match="no rule to run a Conv2D in strips"):
        run_in_strips(network, normal(1, 8, 8, 4), 2)


# --- Memory and precision ------------------------------------------------------------------


def test_little_memory_means_strips_and_says_so(autoencoder, monkeypatch):
    latents = normal(2, 16, 8, 4)
    expected = np.asarray(autoencoder.decode(latents))
    monkeypatch.setattr(tiling, "available_memory", lambda: 1000)
    with pytest.warns(UserWarning, match="64×128 pixels in one pass needs more memory"):
        images = decode(autoencoder, latents)
    np.testing.assert_allclose(images, expected, atol=CLOSE)
    images = np.clip(expected, -1, 1)
    with pytest.warns(UserWarning, match="gives the same"):
        mean, _ = encode(autoencoder, images)
    np.testing.assert_allclose(mean, autoencoder.encode(images)[0], atol=CLOSE)


def test_enough_for_one_image_means_one_at_a_time(autoencoder, monkeypatch):
    latents = normal(3, 4, 4, 4)
    seen = []
    call = type(autoencoder.decoder).__call__
    monkeypatch.setattr(
        type(autoencoder.decoder), "__call__", lambda s, x: seen.append(len(x)) or call(s, x)
    )
    one = tiling.AutoencoderHalf(
        autoencoder.decoder, autoencoder, "decode", 1, 8
    ).bytes_of_one_pass((1, 4, 4, 4))
    monkeypatch.setattr(tiling, "available_memory", lambda: 2 * one)
    images = decode(autoencoder, latents)
    assert seen == [1, 1, 1], f"expected three passes of one image, got {seen}"
    np.testing.assert_allclose(images, autoencoder.decode(latents), atol=CLOSE)


def test_running_out_of_memory_falls_back(autoencoder, monkeypatch):
    """As on a GPU, where it is only known when it happens."""
    latents = normal(1, 16, 8, 4)
    expected = np.asarray(autoencoder.decode(latents))
    monkeypatch.setattr(tiling, "available_memory", lambda: None)
    monkeypatch.setattr(autoencoder, "decoder", Starved(autoencoder.decoder, 8, exhausted()))
    with pytest.warns(UserWarning, match="in strips of 64 pixels, which gives the same"):
        images = decode(autoencoder, latents)
    np.testing.assert_allclose(images, expected, atol=CLOSE)
    with pytest.raises(UserError, match="no memory for 64×128 pixels in one pass; leave out"):
        decode(autoencoder, latents, "off")


def test_strips_that_do_not_fit_are_halved(autoencoder, monkeypatch):
    latents = normal(1, 16, 8, 4)
    expected = np.asarray(autoencoder.decode(latents))
    heights = []

    def run(network, inputs, rows, progress):
        heights.append(rows)
        if rows > 2:
            raise exhausted()
        return run_in_strips(network, inputs, rows, progress)

    monkeypatch.setattr(strips_module, "run_in_strips", run)
    with pytest.warns(UserWarning, match="out of memory; in strips of"):
        images = decode(autoencoder, latents, 64)
    assert heights == [8, 4, 2], f"expected strips of 8, 4, 2 latent rows, got {heights}"
    np.testing.assert_allclose(images, expected, atol=CLOSE)


def test_other_errors_are_not_taken_for_missing_memory(autoencoder, monkeypatch):
    starved = Starved(autoencoder.decoder, 0, ValueError("something else"))
    monkeypatch.setattr(autoencoder, "decoder", starved)
    with pytest.raises(ValueError, match="something else"):
        decode(autoencoder, normal(1, 4, 4, 4))


@pytest.fixture(scope="module")
def overflowing(autoencoder):
    """An autoencoder in half precision, and one in float32 with the same weights: one of
    60,000 doubles beyond the largest float16, 65,504."""
    half = tiny_autoencoder(dtype="mixed_float16")
    half.set_weights(autoencoder.get_weights())
    layer = half.decoder.get_layer("conv_in").conv
    layer.bias.assign(np.full(layer.bias.shape, 60_000.0))
    full = tiny_autoencoder()
    full.set_weights(half.get_weights())
    return half, full


@pytest.mark.parametrize("tile", ["auto", 16])
def test_an_overflow_in_half_precision_is_decoded_again(overflowing, tile):
    half, full = overflowing
    latents = normal(2, 4, 4, 4)
    assert not np.isfinite(half.decode(latents)).all(), "float16 should have overflowed here"
    with pytest.warns(UserWarning, match="2 of 2 images came out black or not finite in float16"):
        images = decode(half, latents, tile)
    np.testing.assert_allclose(images, full.decode(latents), atol=1e-3)


def test_black_in_half_precision_is_decoded_again(autoencoder):
    """What is left of the last norm, times 1e-9, is zero in float16, and zero decodes to -2."""
    half = tiny_autoencoder(dtype="mixed_float16")
    half.set_weights(autoencoder.get_weights())
    norm, last = (half.decoder.get_layer(name) for name in ("norm_out", "conv_out"))
    norm.gamma.assign(norm.gamma * 1e-9)
    last.conv.kernel.assign(last.conv.kernel * 1e10)
    last.conv.bias.assign(np.full(3, -2.0))
    full = tiny_autoencoder()
    full.set_weights(half.get_weights())
    latents = normal(1, 4, 4, 4)
    assert (np.asarray(half.decode(latents)) == -2).all(), "float16 should have given black here"
    with pytest.warns(UserWarning, match="1 of 1 images came out black or not finite in float16"):
        images = decode(half, latents)
    np.testing.assert_allclose(images, full.decode(latents), atol=1e-3)
    assert images.max() > -1, "expected something to be seen in float32"


def test_broken_weights_are_an_error(autoencoder):
    broken = tiny_autoencoder()
    broken.decoder.get_layer("conv_in").conv.bias.assign(np.full(16, np.nan))
    with pytest.raises(ArithmeticError, match="1 of 1 images hold numbers that are not finite"):
        decode(broken, normal(1, 4, 4, 4))


def test_the_estimate_grows_with_the_pixels(autoencoder):
    half = tiling.AutoencoderHalf(autoencoder.decoder, autoencoder, "decode", 1, 8)
    small, large = (half.bytes_of_one_pass((1, side, side, 4)) for side in (4, 8))
    assert large == 4 * small, f"four times the pixels should need 4 times {small}, not {large}"
    assert tiling.available_memory() is None or tiling.available_memory() > 0


# --- What users ask for --------------------------------------------------------------------


@pytest.mark.parametrize("tile", ["no", 0, -8, 8.5, True, "", None, "12x12"])
def test_a_tile_that_is_none(autoencoder, tile):
    with pytest.raises(UserError, match=r"tile: .*expected 'auto', 'off' or the height"):
        decode(autoencoder, normal(1, 4, 4, 4), tile)


def test_a_tile_that_does_not_fit_the_autoencoder(autoencoder):
    with pytest.raises(UserError, match=r"12 is not a multiple .* nearest valid: 8 or 16"):
        decode(autoencoder, normal(1, 4, 4, 4), 12)


def test_generate_takes_it_for_both_ways(model):
    picture = np.random.default_rng(0).integers(0, 256, (64, 24, 3), dtype=np.uint8)
    size = {"height": 64, "width": 24, "seed": 0, "num_steps": 1}
    for start in ({}, {"init_image": picture, "strength": 1.0}):
        whole = model.generate(**size, **start, tile="off")
        strips = model.generate(**size, **start, tile="16")
        difference = np.abs(whole.astype(int) - strips).max()
        assert difference <= 1, f"strips should give the same picture, they are {difference} off"
    with pytest.raises(UserError, match="tile"):
        model.generate(tile="often")
