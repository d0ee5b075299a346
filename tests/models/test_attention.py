"""Attention in blocks: the numbers and gradients of the plain form, in memory that is bounded.

The plain form itself is held against its formula in `test_layers.py`.
"""

import itertools
import math
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from latentddpm.models import attention as module
from latentddpm.models.attention import AttentionBlock, attention

HEADS, CHANNELS = 2, 8
SIZES = {"self": (2, 12, 12), "odd": (3, 13, 13), "text": (1, 9, 77), "one query": (2, 1, 5)}


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def arrays(batch, length, keys):
    """Queries, keys, values and a gradient of the outputs."""
    lengths = (length, keys, keys, length)
    return [normal(batch, size, CHANNELS, seed=k) for k, size in enumerate(lengths)]


def with_gradients(query, key, value, upstream):
    """Output of attention, and the gradients of its three inputs."""
    with tf.GradientTape() as tape:
        tape.watch([query, key, value])
        mixed = attention(query, key, value, HEADS)
    return mixed, *tape.gradient(mixed, [query, key, value], output_gradients=upstream)


def in_float64(query, key, value, upstream):
    """The same by the formulas of Dao et al. 2022, appendix B, in float64."""

    def split(array):
        heads = array.reshape(*array.shape[:2], HEADS, -1).astype("float64")
        return heads.transpose(0, 2, 1, 3)

    def join(array):
        return array.transpose(0, 2, 1, 3).reshape(len(array), array.shape[2], CHANNELS)

    query, key, value, upstream = map(split, (query, key, value, upstream))
    scale = query.shape[-1] ** -0.5
    weights = np.exp(scale * query @ key.swapaxes(-1, -2))
    weights /= weights.sum(-1, keepdims=True)
    spread = upstream @ value.swapaxes(-1, -2)
    slopes = scale * weights * (spread - (spread * weights).sum(-1, keepdims=True))
    return [
        join(array)
        for array in (
            weights @ value,
            slopes @ key,
            slopes.swapaxes(-1, -2) @ query,
            weights.swapaxes(-1, -2) @ upstream,
        )
    ]


def in_blocks(monkeypatch, scores):
    """Keep no scores for the gradient, and compute at most `scores` at a time."""
    monkeypatch.setattr(module, "KEPT_SCORES", 0)
    monkeypatch.setattr(module, "MOST_SCORES", scores)


def check(found, expected, tolerance=1e-5):
    for name, one, other in zip(("output", "query", "key", "value"), found, expected, strict=True):
        error = np.abs(np.asarray(one, "float64") - np.asarray(other, "float64")).max()
        assert error <= tolerance, f"{name}: expected float64's to {tolerance}, off by {error:.1e}"


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("rows", [1, 5, 100], ids=["row by row", "blocks", "whole"])
def test_blocks_give_the_numbers_and_gradients_of_float64(size, rows, monkeypatch):
    inputs = arrays(*size)
    in_blocks(monkeypatch, rows * size[0] * HEADS * size[2])
    check(with_gradients(*map(tf.constant, inputs)), in_float64(*inputs))


@pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "XLA"])
def test_sizes_may_be_free(jit_compile, monkeypatch):
    """As in a graph that is traced once for all sizes; sizes that are known then decide there."""
    in_blocks(monkeypatch, 5 * 2 * HEADS * 13)
    spec = tf.TensorSpec((None, None, CHANNELS))
    graph = tf.function(with_gradients, input_signature=[spec] * 4, jit_compile=jit_compile)
    sizes = [(2, 13, 13)] if jit_compile else SIZES.values()
    for size in sizes:
        inputs = arrays(*size)
        check(graph(*inputs), in_float64(*inputs))
    assert graph.experimental_get_tracing_count() == 1, "expected one trace for all sizes"


def test_few_scores_are_kept(monkeypatch):
    """Up to the limit the gradient uses the scores again, beyond it computes them again."""
    inputs = [tf.constant(array) for array in arrays(2, 12, 12)]
    for kept, expected in ((2 * HEADS * 12 * 12, 1), (2 * HEADS * 12 * 12 - 1, 2)):
        monkeypatch.setattr(module, "KEPT_SCORES", kept)
        graph = tf.function(with_gradients).get_concrete_function(*inputs).graph
        kinds = [operation.type for operation in graph.get_operations()]
        assert kinds.count("Softmax") == expected, f"expected {expected} softmaxes, got {kinds}"
        assert "While" not in " ".join(kinds), "expected no loop for a single block"


def largest(positions, batch=1):
    """Numbers in the largest array of a training step of attention, loops included."""
    specs = [tf.TensorSpec((batch, positions, CHANNELS))] * 4
    graph = tf.function(with_gradients).get_concrete_function(*specs).graph
    definition = graph.as_graph_def(add_shapes=True)
    nodes = itertools.chain(
        definition.node, *(function.node_def for function in definition.library.function)
    )
    return max(
        math.prod(side.size for side in shape.dim)
        for node in nodes
        for shape in node.attr["_output_shapes"].list.shape
        if not shape.unknown_rank
    )


def test_memory_does_not_grow_with_the_square(monkeypatch):
    most = 1 << 14
    plain = [largest(positions) for positions in (512, 1024)]
    assert plain == [HEADS * 512**2, HEADS * 1024**2], f"expected all scores, got {plain}"
    in_blocks(monkeypatch, most)
    few, many = largest(512), largest(1024)
    assert few <= most, f"expected at most {most} numbers at a time, got {few}"
    assert many <= 2 * few, f"twice the positions need {many / few:.1f} times the memory"


def test_the_softmax_of_a_block_is_float32(monkeypatch):
    inputs = arrays(2, 12, 12)
    in_blocks(monkeypatch, 5 * 2 * HEADS * 12)
    halves = [tf.constant(array, "bfloat16") for array in inputs]
    found = with_gradients(*halves)
    assert {array.dtype for array in found} == {tf.bfloat16}, "expected the type of the inputs"
    check([tf.cast(one, "float32") for one in found], in_float64(*inputs), 0.1)


def test_blocks_and_recomputation_work_together(monkeypatch):
    """A layer made in a `RematScope` gives the gradients of one without."""
    inputs = tf.constant(normal(1, 3, 4, CHANNELS))

    def gradients(mode, weights=None):
        with keras.RematScope(mode=mode):
            layer = AttentionBlock(HEADS, norm_groups=4)
        layer.build(inputs.shape)
        if weights:
            layer.set_weights(weights)

        @tf.function(autograph=False)
        def run():
            with tf.GradientTape() as tape:
                loss = keras.ops.sum(keras.ops.square(layer(inputs)))
            return tape.gradient(loss, [weight.value for weight in layer.trainable_weights])

        return run(), layer.get_weights()

    expected, weights = gradients(None)
    in_blocks(monkeypatch, 5 * HEADS * 12)
    for found, wanted in zip(gradients("full", weights)[0], expected, strict=True):
        np.testing.assert_allclose(found, wanted, atol=2e-5, rtol=1e-5, err_msg="other gradients")


UNDER_TORCH = """
import sys, keras, numpy as np
from latentddpm.models.attention import attention
assert keras.backend.backend() == "torch"
data = np.load(sys.argv[1])
mixed = attention(*(keras.ops.convert_to_tensor(data[name]) for name in ("q", "k", "v")), 2)
print(float(np.abs(keras.ops.convert_to_numpy(mixed) - data["expected"]).max()))
"""


@pytest.mark.slow
def test_the_fused_attention_of_pytorch(tmp_path):
    pytest.importorskip("torch")
    inputs = arrays(*SIZES["text"])
    query, key, value, _ = inputs
    np.savez(tmp_path / "d.npz", q=query, k=key, v=value, expected=in_float64(*inputs)[0])
    done = subprocess.run(
        [sys.executable, "-c", UNDER_TORCH, tmp_path / "d.npz"],
        env=os.environ | {"KERAS_BACKEND": "torch"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"under PyTorch: {done.stderr[-2000:]}"
    assert float(done.stdout.split()[-1]) < 1e-5, f"expected float64's, off by {done.stdout}"
