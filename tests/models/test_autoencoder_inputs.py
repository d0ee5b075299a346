"""Pictures as people have them, into an autoencoder as into any Keras model."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from tiny import QUICK_AUTOENCODER, tiny_autoencoder

from latentddpm.errors import UserError
from latentddpm.utils.pixels import from_pixels

PIXELS = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)


@pytest.fixture(scope="module")
def autoencoder():
    return tiny_autoencoder(**QUICK_AUTOENCODER)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for number, pixels in enumerate(PIXELS):
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return sorted(folder.iterdir())


@pytest.mark.slow
def test_pictures_of_every_kind_are_the_same(autoencoder, files):
    expected, _ = autoencoder.encode(from_pixels(PIXELS))
    kinds = (PIXELS, list(PIXELS), [Image.fromarray(one) for one in PIXELS], files)
    for given in (*kinds, [str(file) for file in files]):
        mean, _ = autoencoder.encode(given)
        np.testing.assert_allclose(mean, expected, atol=1e-6, err_msg=f"of {type(given[0])}")
        mean = autoencoder.predict(given, verbose=0)["mean"]
        np.testing.assert_allclose(mean, expected, atol=1e-5, err_msg=f"of {type(given[0])}")
    mean, _ = autoencoder.encode(Image.fromarray(PIXELS[0]))
    np.testing.assert_allclose(mean, expected[:1], atol=1e-6, err_msg="expected a batch of one")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (PIXELS.astype("float32"), "0 to 25.*which looks like 0 … 255; give uint8"),
        (np.full((1, 8, 8, 3), np.nan), "nan"),
        (PIXELS.astype(int), "int64 .*expected uint8"),
        (PIXELS[0], "expected a batch"),
        ([PIXELS[0], PIXELS[1, :4]], "of 2 sizes"),
        ("nowhere.png", "nowhere.png: No such file"),
        (__file__, "not a picture"),
        (None, "NoneType"),
        (3, "int"),
        ([], "list"),
    ],
)
def test_what_is_no_picture_is_refused(given, words, autoencoder):
    with pytest.raises(UserError, match=f"^images: .*{words}"):
        autoencoder.encode(given)


def test_the_range_that_is_meant_is_asked_for(autoencoder):
    with pytest.warns(UserWarning, match=r"taken as \[-1, 1\].*give 2 \* x - 1"):
        autoencoder.encode(PIXELS / 255)
    with pytest.warns(UserWarning, match="from -2 to 2 is taken as"):
        autoencoder.encode(np.linspace(-2, 2, 192).reshape(1, 8, 8, 3))


def test_it_is_compiled_and_fitted_on_pictures():
    autoencoder = tiny_autoencoder(**QUICK_AUTOENCODER)
    autoencoder.compile(keras.optimizers.Adam(1e-2), loss="mse", run_eagerly=True)
    before = autoencoder.evaluate(PIXELS, verbose=0)
    images = from_pixels(PIXELS)
    expected = np.mean((autoencoder.predict(PIXELS, verbose=0)["reconstruction"] - images) ** 2)
    assert abs(before - expected) < 1e-4, f"expected the loss of the reconstruction, got {before}"
    history = autoencoder.fit(PIXELS, epochs=4, verbose=0).history
    assert history["loss"][-1] < before, f"expected to learn: {history}, {before} before"


@pytest.mark.slow
def test_it_is_exported_without_having_been_called(tmp_path):
    autoencoder = tiny_autoencoder(**QUICK_AUTOENCODER)
    autoencoder.export(tmp_path / "saved", verbose=False)
    saved = tf.saved_model.load(tmp_path / "saved")
    served = saved.serve({"images": from_pixels(PIXELS)})
    expected = autoencoder.predict(PIXELS, verbose=0)["reconstruction"]
    np.testing.assert_allclose(served["reconstruction"], expected, atol=1e-4)
