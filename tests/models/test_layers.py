"""The shared blocks: complete as Keras layers, and right by properties of their own."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from checks import check_gradients, check_layer

from latentddpm.models.attention import AttentionBlock, attention
from latentddpm.models.layers import (
    GroupNormalization,
    PaddedConv2D,
    ResnetBlock,
)
from latentddpm.models.resample import Upsample
from latentddpm.utils.machine.memory import blank_weights

DOWN = ((0, 1), (0, 1))


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def randomise(layer, seed=0):
    """Draw every weight anew, biases and scales too, so that no zero hides an error."""
    rng = np.random.default_rng(seed)
    layer.set_weights([rng.normal(size=w.shape).astype("float32") * 0.5 for w in layer.weights])


# --- Complete as Keras layers --------------------------------------------------------------


@pytest.mark.parametrize(
    "kwargs",
    [
        {"channels": 6},
        {"channels": 6, "kernel": 3, "padding": 1, "zero_init": False},
        {"channels": 6, "kernel": 3, "padding": DOWN, "stride": 2},
        {"channels": 6, "kernel": 1, "padding": 0},
    ],
    ids=["defaults", "same", "down", "one"],
)
def test_padded_conv_is_a_complete_layer(kwargs, tmp_path):
    check_layer(PaddedConv2D, kwargs, normal(2, 8, 6, 4), tmp_path)


def test_group_norm_is_whole(tmp_path):
    check_layer(GroupNormalization, {"groups": 2, "epsilon": 1e-5}, normal(2, 6, 5, 8), tmp_path)


@pytest.mark.parametrize(
    "shape", [(2, 5, 3, 12), (1, 1, 1, 12), (1, 256, 256, 128)], ids=["small", "one", "large"]
)
def test_group_norm_is_that_of_keras(shape):
    """And at large sizes, where Keras's own sums badly, what float64 computes."""
    ours, theirs = (
        GroupNormalization(4, epsilon=1e-6),
        keras.layers.GroupNormalization(4, epsilon=1e-6),
    )
    inputs = 2 * normal(*shape) + 1
    weights = [1 + normal(shape[-1]), normal(shape[-1])]
    for layer in (ours, theirs):
        layer.build(shape)
        layer.set_weights(weights)
    grouped = inputs.astype("float64").reshape(shape[0], -1, 4, shape[-1] // 4)
    centred = grouped - grouped.mean((1, 3), keepdims=True)
    expected = centred / np.sqrt(grouped.var((1, 3), keepdims=True) + 1e-6)
    expected = expected.reshape(shape) * weights[0] + weights[1]
    error = np.abs(keras.ops.convert_to_numpy(ours(inputs)) - expected).max()
    assert error < 2e-5, f"expected the float64 answer to 2e-5, off by {error:.1e}"
    if shape[1] < 256:
        np.testing.assert_allclose(
            ours(inputs), theirs(inputs), atol=1e-5, err_msg="expected what Keras computes"
        )


def test_upsample_is_a_complete_layer(tmp_path):
    layer = check_layer(Upsample, {"channels": 6}, normal(2, 3, 5, 4), tmp_path)
    shape = layer.compute_output_shape((None, None, 5, 4))
    assert shape == (None, None, 10, 6), f"expected (None, None, 10, 6), got {shape}"


@pytest.mark.parametrize(
    ("channels", "time"),
    [
        (8, ""),
        (12, ""),
        pytest.param(8, "added", marks=pytest.mark.slow),
        (12, "added"),
        pytest.param(8, "scale and shift", marks=pytest.mark.slow),
        (12, "scale and shift"),
    ],
)
def test_resnet_block_is_a_complete_layer(channels, time, tmp_path):
    kwargs = {"channels": channels, "norm_groups": 4, "norm_epsilon": 1e-5}
    if time == "scale and shift":
        kwargs["time_scale_shift"] = True
    inputs = [normal(2, 6, 5, 8)] + ([normal(2, 10, seed=1)] if time else [])
    layer = check_layer(ResnetBlock, kwargs, inputs, tmp_path)
    assert (layer.shortcut is not None) == (channels != 8), "a shortcut only where channels change"


def test_zero_init_resnet_block_is_a_complete_layer(tmp_path):
    kwargs = {"channels": 8, "norm_groups": 4, "zero_init": True, "dropout": 0.25}
    silent = [f"{part}/{w}" for part in ("norm1", "norm2") for w in ("gamma", "beta")]
    silent += [f"conv1/conv/{w}" for w in ("kernel", "bias")]
    check_layer(ResnetBlock, kwargs, normal(2, 6, 5, 8), tmp_path, gradient_free=silent)


@pytest.mark.parametrize("num_heads", [1, 4])
def test_attention_block_is_a_complete_layer(num_heads, tmp_path):
    # The softmax ignores a constant added to every score of a row: a key's bias has no gradient.
    kwargs = {"num_heads": num_heads, "norm_groups": 4, "norm_epsilon": 1e-5}
    check_layer(AttentionBlock, kwargs, normal(2, 3, 5, 8), tmp_path, ["key/bias"])


def test_gradients_are_checked():
    """The check itself can fail: a weight that is not used is found."""

    class Deaf(keras.layers.Layer):
        def build(self, shape):
            self.used = self.add_weight(shape=(), name="used", initializer="ones")
            self.deaf = self.add_weight(shape=(), name="deaf")

        def call(self, inputs):
            return inputs * self.used

    with pytest.raises(AssertionError, match="deaf"):
        check_gradients(Deaf(), [normal(2, 3)])


# --- PaddedConv2D --------------------------------------------------------------------------


def numpy_convolution(images, kernel, bias, stride):
    """A valid convolution written as its sum: images (B, H, W, c), kernel (k, k, c, d)."""
    size = kernel.shape[0]
    height, width = (1 + (side - size) // stride for side in images.shape[1:3])
    result = np.zeros((len(images), height, width, kernel.shape[-1]))
    for row in range(height):
        for column in range(width):
            top, left = row * stride, column * stride
            window = images[:, top : top + size, left : left + size]
            result[:, row, column] = np.einsum("bijc,ijcd->bd", window, kernel)
    return result + bias


@pytest.mark.parametrize(
    ("kernel", "padding", "stride"),
    [
        (3, 0, 1),
        (3, 1, 1),
        (3, 2, 1),
        (1, 0, 1),
        (5, 2, 1),
        (2, 1, 1),
        (3, 1, 2),
        (3, DOWN, 2),
        (3, ((1, 0), (0, 2)), 1),
        (3, ((1, 1), (1, 1)), 1),
    ],
)
@pytest.mark.parametrize("size", [(8, 6), (7, 9)])
def test_padding_is_zeros_then_a_valid_convolution(kernel, padding, stride, size):
    layer = PaddedConv2D(5, kernel, padding, stride)
    images = normal(2, *size, 3)
    layer.build(images.shape)
    randomise(layer)
    sides = ((padding, padding),) * 2 if isinstance(padding, int) else padding
    padded = np.pad(images.astype("float64"), ((0, 0), *sides, (0, 0)))
    expected = numpy_convolution(padded, *layer.get_weights(), stride)
    np.testing.assert_allclose(
        layer(images), expected, rtol=1e-5, atol=1e-5, err_msg="not np.pad + valid convolution"
    )


def test_down_sampling_halves_even_sides():
    shape = PaddedConv2D(5, 3, DOWN, 2).compute_output_shape((None, 64, 48, 3))
    assert shape == (None, 32, 24, 5), f"expected (None, 32, 24, 5), got {shape}"


def test_zero_init_starts_from_zero():
    outputs = np.asarray(PaddedConv2D(5, 3, 1, zero_init=True)(normal(2, 4, 4, 3)))
    assert not outputs.any(), "expected zeros from a zero-initialised convolution"


# --- Upsample ------------------------------------------------------------------------------


def test_upsample_repeats_every_pixel_before_its_convolution():
    layer = Upsample(3)
    images = normal(2, 3, 4, 3)
    layer.build(images.shape)
    kernel = np.zeros((3, 3, 3, 3), "float32")
    kernel[1, 1] = np.eye(3)  # the convolution that changes nothing
    layer.set_weights([kernel, np.zeros(3)])
    np.testing.assert_array_equal(
        layer(images), images.repeat(2, 1).repeat(2, 2), err_msg="not nearest-neighbour x2"
    )


@pytest.mark.parametrize("shape", [(2, 5, 7, 6), (1, 1, 3, 4)])
def test_upsample_is_the_convolution_of_the_repeated_image(shape):
    layer = Upsample(3)
    images = normal(*shape)
    layer(images)
    layer.conv.conv.bias.assign(normal(3))
    expected = layer.conv(images.repeat(2, 1).repeat(2, 2))
    np.testing.assert_allclose(
        layer(images), expected, atol=2e-6, err_msg="not the 3×3 convolution after repeating"
    )


# --- ResnetBlock ---------------------------------------------------------------------------


def test_zero_init_makes_a_resnet_block_the_identity():
    images, time = normal(2, 6, 4, 8), normal(2, 5, seed=1)
    block = ResnetBlock(8, norm_groups=4, zero_init=True)
    np.testing.assert_array_equal(block(images, time), images, err_msg="not the identity")
    wider = ResnetBlock(12, norm_groups=4, zero_init=True)
    outputs = wider(images)
    np.testing.assert_allclose(
        outputs, wider.shortcut(images), atol=1e-6, err_msg="not the shortcut alone"
    )


def group_norm(array, groups, epsilon, gamma, beta):
    parts = array.reshape(*array.shape[:-1], groups, -1)
    mean = parts.mean((1, 2, 4), keepdims=True)
    variance = parts.var((1, 2, 4), keepdims=True)
    return ((parts - mean) / np.sqrt(variance + epsilon)).reshape(array.shape) * gamma + beta


def silu(array):
    return array / (1 + np.exp(-array))


@pytest.mark.parametrize("scale_shift", [False, True])
def test_resnet_block_is_its_formula(scale_shift):
    block = ResnetBlock(12, norm_groups=4, norm_epsilon=1e-2, time_scale_shift=scale_shift)
    images, time = normal(2, 5, 4, 8), normal(2, 3, seed=1)
    block.build(images.shape, time.shape)
    randomise(block)
    w = {v.path.split("/", 1)[1]: np.asarray(v, "float64") for v in block.weights}
    same = ((0, 0), (1, 1), (1, 1), (0, 0))

    def conv(array, name):
        kernel, bias = w[f"{name}/conv/kernel"], w[f"{name}/conv/bias"]
        padded = np.pad(array, same) if kernel.shape[0] == 3 else array
        return numpy_convolution(padded, kernel, bias, 1)

    def norm(array, name):
        return group_norm(array, 4, 1e-2, w[f"{name}/gamma"], w[f"{name}/beta"])

    hidden = conv(silu(norm(images.astype("float64"), "norm1")), "conv1")
    time_ = (silu(time) @ w["time/kernel"] + w["time/bias"])[:, None, None]
    if scale_shift:
        scale, shift = time_[..., :12], time_[..., 12:]
        hidden = norm(hidden, "norm2") * (1 + scale) + shift
    else:
        hidden = norm(hidden + time_, "norm2")
    expected = conv(silu(hidden), "conv2") + conv(images, "shortcut")
    np.testing.assert_allclose(
        block(images, time), expected, rtol=1e-4, atol=1e-4, err_msg="not norm-silu-conv twice"
    )


def test_dropout_acts_in_training_only():
    block = ResnetBlock(8, norm_groups=4, dropout=0.5)
    images = normal(2, 6, 4, 8)
    first, second = block(images), block(images)
    np.testing.assert_array_equal(first, second, err_msg="inference is not deterministic")
    assert np.abs(block(images, training=True) - first).max() > 0, "dropout did nothing"


# --- AttentionBlock ------------------------------------------------------------------------


@pytest.mark.parametrize("num_heads", [1, 4])
def test_attention_does_not_know_where_a_position_is(num_heads):
    block = AttentionBlock(num_heads, norm_groups=4)
    images = normal(2, 3, 4, 8)
    block.build(images.shape)
    randomise(block)
    order = np.random.default_rng(1).permutation(12)

    def permute(array):
        flat = np.asarray(array).reshape(2, 12, 8)[:, order]
        return flat.reshape(2, 3, 4, 8)

    outputs = np.asarray(block(images))
    assert np.abs(outputs - images).max() > 0.1, "the block did nothing, so the test shows nothing"
    np.testing.assert_allclose(
        block(permute(images)), permute(outputs), atol=1e-5, err_msg="not equivariant"
    )


@pytest.mark.parametrize("num_heads", [1, 2, 4])
def test_attention_is_its_formula(num_heads):
    query, key, value = (normal(2, length, 8, seed=length) for length in (5, 7, 7))
    expected = np.zeros((2, 5, 8))
    depth = 8 // num_heads
    for head in range(num_heads):
        part = slice(head * depth, (head + 1) * depth)
        scores = query[..., part] @ key[..., part].transpose(0, 2, 1) / np.sqrt(depth)
        weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
        expected[..., part] = weights @ value[..., part]
    np.testing.assert_allclose(
        attention(query, key, value, num_heads), expected, atol=1e-5, err_msg="not softmax(qk)v"
    )


def test_softmax_runs_in_float32_under_bfloat16():
    array = tf.TensorSpec((1, 6, 8), "bfloat16")
    graph = tf.function(lambda q, k, v: attention(q, k, v, 2)).get_concrete_function(*[array] * 3)
    types = [op.inputs[0].dtype for op in graph.graph.get_operations() if op.type == "Softmax"]
    assert types == [tf.float32], f"expected one float32 softmax, got {types}"
    assert graph.outputs[0].dtype == tf.bfloat16, (
        f"expected bfloat16, got {graph.outputs[0].dtype}"
    )


def test_zero_init_makes_attention_the_identity():
    images = normal(2, 3, 4, 8)
    block = AttentionBlock(2, norm_groups=4, zero_init=True)
    np.testing.assert_array_equal(block(images), images, err_msg="not the identity")


# --- Errors --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("block", "channels", "divisor"),
    [
        (lambda: ResnetBlock(10, norm_groups=4), 10, 4),
        (lambda: ResnetBlock(8, norm_groups=4)(normal(1, 4, 4, 6)), 6, 4),
        (lambda: AttentionBlock(1, norm_groups=4)(normal(1, 4, 4, 6)), 6, 4),
        (lambda: AttentionBlock(3, norm_groups=4)(normal(1, 4, 4, 8)), 8, 3),
    ],
    ids=["outputs", "inputs", "attention groups", "heads"],
)
def test_groups_and_heads_that_do_not_divide_are_refused(block, channels, divisor):
    with pytest.raises(ValueError, match=f"={divisor} does not divide {channels} channels"):
        block()


def test_blank_weights_start_at_zero_and_only_there():
    with blank_weights():
        blank = ResnetBlock(8, norm_groups=4)
        blank(normal(1, 4, 4, 4), normal(1, 6))
    kernels = [w for w in blank.weights if w.name == "kernel"]
    assert len(kernels) == 4, f"{len(kernels)} kernels, expected conv1, time, conv2, shortcut"
    assert not any(np.any(w.numpy()) for w in kernels), "a kernel was drawn at random"
    usual = ResnetBlock(8, norm_groups=4)
    usual(normal(1, 4, 4, 4))
    assert np.any(usual.conv1.conv.kernel.numpy()), "kernels stay blank outside"
