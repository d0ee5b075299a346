"""Attention, and a residual block of self-attention over a feature map.

    attention       softmax(q kᵀ / √d) v,  head by head                (Vaswani et al. 2017, eq. 1)
    AttentionBlock  h = inputs + out(attention(q, k, v)),  q, k, v from norm(inputs)

as in Ho et al. 2020 (appendix B) and Rombach et al. 2022 (appendix E). The blocks with
cross-attention, in `models.denoisers.transformer`, use the same `attention`.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import layers, ops

from latentddpm.models.layers import (
    PACKAGE,
    GroupNormalization,
    Recomputable,
    Shape,
    dense,
    positions_of,
    shape_of,
)


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

    It uses `ops.matmul`. `ops.dot_product_attention` uses an einsum, which takes TensorFlow 1.1 to
    1.7 times as long on a CPU, and divides the (L, M) scores by √d instead of the smaller queries.

    Args:
        query: (B, L, C).
        key, value: (B, M, C).
        num_heads: N, a divisor of C; d = C / N.

    Returns:
        (B, L, C).
    """

    def split(array):  # (B, L, C) → (B, N, L, d)
        batch, length, channels = ops.shape(array)
        array = ops.reshape(array, (batch, length, num_heads, channels // num_heads))
        return ops.transpose(array, (0, 2, 1, 3))

    scale = (query.shape[-1] // num_heads) ** -0.5
    query, key, value = split(query * scale), split(key), split(value)
    scores = ops.matmul(query, ops.transpose(key, (0, 1, 3, 2)))  # (B, N, L, M)
    scores = ops.cast(scores, "float32")
    # The softmax of a single score is 1; Keras would warn about it.
    weights = ops.ones_like(scores) if scores.shape[-1] == 1 else ops.softmax(scores)
    weights = ops.cast(weights, value.dtype)
    mixed = ops.transpose(ops.matmul(weights, value), (0, 2, 1, 3))  # (B, L, N, d)
    batch, length, heads, depth = ops.shape(mixed)
    return ops.reshape(mixed, (batch, length, heads * depth))
