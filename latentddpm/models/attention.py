"""Attention, and a residual block of self-attention over a feature map.

    attention       softmax(q kᵀ / √d) v,  head by head                (Vaswani et al. 2017, eq. 1)
    AttentionBlock  h = inputs + out(attention(q, k, v)),  q, k, v from norm(inputs)

as in Ho et al. 2020 (appendix B) and Rombach et al. 2022 (appendix E). The blocks with
cross-attention, in `models.denoisers.transformer`, use the same `attention`.

The scores of n positions are n² numbers. Where they are many, they are computed for a block of
queries at a time, so that memory does not grow with the square; a row of scores is whole in its
block, and so is its softmax. The gradient keeps none of them, but computes each block again
(Rabe & Staats 2021; Dao et al. 2022, algorithm 4):

    P = softmax(q kᵀ)    D = g vᵀ    S = P ∘ (D − rowsum(P ∘ D))
    ∂q = S k             ∂k = Σ Sᵀ q             ∂v = Σ Pᵀ g             sums over the blocks

with the gradient g of the output. Sizes that are known while tracing decide in Python, others in
the graph.
"""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import layers, ops

from latentddpm.models.layers import PACKAGE, GroupNormalization, Recomputable, Shape, dense
from latentddpm.models.shapes import positions_of, shape_of
from latentddpm.utils.machine.memory import MOST_SCORES

KEPT_SCORES = 1 << 23
"""Most scores that are kept for the gradient: 32 MiB. Computing them again takes a quarter more
time of attention and its gradient (docs/benchmarks.md)."""


@keras.saving.register_keras_serializable(package=PACKAGE)
class AttentionBlock(Recomputable, layers.Layer):
    """Attention block: self-attention over the positions of a feature map, plus its input.

    Args:
        num_heads: number of heads; the autoencoder has one.
        norm_groups, norm_epsilon: of the group norm before the attention.
        zero_init: start as the identity, with the kernel of the output projection at zero.

    Call arguments:
        inputs: (B, …, C) → the same shape.
    """

    def __init__(
        self,
        num_heads: int = 1,
        norm_groups: int = 32,
        norm_epsilon: float = 1e-6,
        zero_init: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.norm_groups = norm_groups
        self.norm_epsilon = norm_epsilon
        self.zero_init = zero_init
        self.norm = GroupNormalization(
            norm_groups, epsilon=norm_epsilon, name="norm", dtype=self.dtype_policy
        )

    def build(self, inputs_shape: Shape) -> None:
        channels = inputs_shape[-1]
        for divisor, name in ((self.norm_groups, "norm_groups"), (self.num_heads, "num_heads")):
            if channels % divisor:
                raise ValueError(f"{name}={divisor} does not divide {channels} channels")
        dtype = {"dtype": self.dtype_policy}
        self.query = dense(channels, name="query", **dtype)
        self.key = dense(channels, name="key", **dtype)
        self.value = dense(channels, name="value", **dtype)
        self.out = dense(channels, self.zero_init, name="out", **dtype)
        self.norm.build(inputs_shape)
        for projection in (self.query, self.key, self.value, self.out):
            projection.build((inputs_shape[0], None, channels))
        self.built = True

    def call(self, inputs):
        hidden = ops.reshape(self.norm(inputs), positions_of(inputs, inputs.shape[-1]))
        hidden = self.out(
            attention(self.query(hidden), self.key(hidden), self.value(hidden), self.num_heads)
        )
        return inputs + ops.reshape(hidden, shape_of(inputs))

    def compute_output_shape(self, inputs_shape: Shape) -> Shape:
        return inputs_shape

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "norm_groups": self.norm_groups,
            "norm_epsilon": self.norm_epsilon,
            "zero_init": self.zero_init,
        }


def attention(query, key, value, num_heads: int):
    """Multi-head attention softmax(q kᵀ / √d) v; the softmax is computed in float32.

    On TensorFlow it uses `ops.matmul`, in blocks where the scores are many. Keras has
    `ops.dot_product_attention` compute an einsum there, which takes 1.1 to 1.7 times as long on a
    CPU, and divides the (L, M) scores by √d instead of the smaller queries. On the other backends
    that operation is their own fused attention.

    Args:
        query: (B, L, C).
        key, value: (B, M, C).
        num_heads: N, a divisor of C; d = C / N.

    Returns:
        (B, L, C).
    """
    channels = query.shape[-1]
    depth = channels // num_heads

    def split(array):  # (B, L, C) → (B, L, N, d)
        batch, length, _ = ops.shape(array)
        return ops.reshape(array, (batch, length, num_heads, depth))

    def swap(array):  # (B, L, N, d) ⇄ (B, N, L, d)
        return ops.transpose(array, (0, 2, 1, 3))

    if keras.backend.backend() == "tensorflow":
        query, key, value = (swap(split(array)) for array in (query * depth**-0.5, key, value))
        sizes = (*ops.shape(query)[:3], ops.shape(key)[2])
        few = _known(*sizes) and math.prod(sizes) <= KEPT_SCORES
        mixed = swap((_attend if few else _attend_in_blocks)(query, key, value))
    else:
        mixed = ops.dot_product_attention(split(query), split(key), split(value))
    batch, length, *_ = ops.shape(mixed)
    return ops.reshape(mixed, (batch, length, channels))


def _known(*sizes) -> bool:
    """True where all sizes are known while tracing."""
    return all(isinstance(size, int) for size in sizes)


def _weights(query, key):
    """Softmax of the scores q kᵀ, (B, N, L, M), float32."""
    scores = ops.cast(ops.matmul(query, _turned(key)), "float32")
    # The softmax of a single score is 1; Keras would warn about it.
    return ops.ones_like(scores) if scores.shape[-1] == 1 else ops.softmax(scores)


def _attend(query, key, value):
    """Attention of (B, N, L, d) to (B, N, M, d), whose gradient keeps the scores."""
    return ops.matmul(ops.cast(_weights(query, key), value.dtype), value)


@ops.custom_gradient
def _attend_in_blocks(query, key, value):
    """Attention like `_attend`, a block of queries at a time; its gradient keeps no scores."""
    rows = _rows(query, key)

    def gradient(upstream):
        def turn(block):
            queries, above = ops.split(block, 2, axis=-1)
            weights = _weights(queries, key)
            spread = ops.cast(ops.matmul(above, _turned(value)), "float32")
            inner = ops.sum(spread * weights, axis=-1, keepdims=True)
            slopes = ops.cast((spread - inner) * weights, key.dtype)
            below = ops.matmul(slopes, key)
            weights = ops.cast(weights, above.dtype)
            # Turned are the narrow factors, not the scores: half the time at d = 8.
            return (
                ops.concatenate([below, above], axis=-1),
                _turned(ops.matmul(_turned(queries), slopes)),
                _turned(ops.matmul(_turned(above), weights)),
            )

        both = ops.concatenate([query, upstream], axis=-1)
        both, to_key, to_value = _in_turns(turn, rows, both, key, value)
        return ops.split(both, 2, axis=-1)[0], to_key, to_value

    (mixed,) = _in_turns(lambda block: (_attend(block, key, value),), rows, query)
    return mixed, gradient


def _turned(array):
    """Matrices (…, L, M) → (…, M, L)."""
    return ops.swapaxes(array, -1, -2)


def _rows(query, key):
    """Number of queries in a block, of equal blocks with at most `MOST_SCORES` scores."""
    batch, heads, length, _ = ops.shape(query)
    most = MOST_SCORES // (batch * heads * ops.shape(key)[2])
    most = max(most, 1) if _known(most) else ops.maximum(most, 1)
    return _turns(length, _turns(length, most))


def _turns(length, rows):
    """Turns of `rows` rows that `length` rows take: ⌈length / rows⌉.

    As a division of numbers above zero, because ONNX rounds towards zero.
    """
    return (length + rows - 1) // rows


def _in_turns(function, rows, queue, *sums):
    """Apply a function to `rows` rows of a queue after the other, the next when one is done.

    Each turn takes its rows from the front of the queue and puts its result at the end, so that
    no turn can begin before the last is done. TensorFlow runs loops of independent turns ten at
    a time, which would take ten times the memory.

    Args:
        function: (B, N, rows, D) → the same shape, and what it adds to each of `sums`.
        rows: number of rows of a turn.
        queue: (B, N, L, D).
        sums: arrays of the shape and type of the sums; they are computed in float32.

    Returns:
        (B, N, L, D) and the sums.
    """
    batch, heads, length, width = ops.shape(queue)
    if _known(rows, length) and rows == length:
        return function(queue)
    turns = _turns(length, rows)
    queue = ops.pad(queue, ((0, 0), (0, 0), (0, turns * rows - length), (0, 0)))
    queue = ops.reshape(queue, (batch, heads, turns * rows, width))
    types = [array.dtype for array in sums]

    def turn(index, queue, *sums):
        block, *added = function(queue[:, :, :rows])
        queue = ops.concatenate([queue[:, :, rows:], block], axis=2)
        sums = (total + ops.cast(one, "float32") for total, one in zip(sums, added, strict=True))
        return index + 1, queue, *sums

    state = (0, queue, *(ops.zeros_like(array, dtype="float32") for array in sums))
    _, queue, *sums = ops.while_loop(lambda index, *_: index < turns, turn, state)
    sums = map(ops.cast, sums, types)
    return queue[:, :, :length], *sums
