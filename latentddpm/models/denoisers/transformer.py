"""Transformer block: cross-attention from a feature map to text (Rombach et al. 2022, §3.3).

    tokens = proj_in(norm(inputs))                       (B, L, C)
    tokens += self_attention(norm(tokens))
    tokens += cross_attention(norm(tokens), context)     queries from tokens, keys from text
    tokens += out(a · gelu(b)),  a, b = in(norm(tokens)) GEGLU (Shazeer 2020)
    return inputs + proj_out(tokens)

as in appendix E.2.1 of Rombach et al. 2022.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import layers, ops

from latentddpm.models.attention import attention
from latentddpm.models.layers import PACKAGE, GroupNormalization, Recomputable, Shape, dense
from latentddpm.models.shapes import positions_of, shape_of


@keras.saving.register_keras_serializable(package=PACKAGE)
class Attention(layers.Layer):
    """Multi-head attention of a sequence to a context, or to itself.

    Queries, keys and values have no bias; the output projection has one.

    Args:
        num_heads: number of heads, a divisor of C.

    Call arguments:
        inputs: (B, L, C) → the same shape.
        context: (B, M, D); None for self-attention.
    """

    def __init__(self, num_heads: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_heads = num_heads

    def build(self, inputs_shape: Shape, context_shape: Shape | None = None) -> None:
        channels = inputs_shape[-1]
        if channels % self.num_heads:
            raise ValueError(f"num_heads={self.num_heads} does not divide {channels} channels")
        dtype = {"dtype": self.dtype_policy}
        self.query = dense(channels, use_bias=False, name="query", **dtype)
        self.key = dense(channels, use_bias=False, name="key", **dtype)
        self.value = dense(channels, use_bias=False, name="value", **dtype)
        self.out = dense(channels, name="out", **dtype)
        self.query.build(inputs_shape)
        self.key.build(context_shape or inputs_shape)
        self.value.build(context_shape or inputs_shape)
        self.out.build(inputs_shape)
        self.built = True

    def call(self, inputs, context=None):
        source = inputs if context is None else context
        mixed = attention(self.query(inputs), self.key(source), self.value(source), self.num_heads)
        return self.out(mixed)

    def compute_output_shape(
        self, inputs_shape: Shape, context_shape: Shape | None = None
    ) -> Shape:
        return inputs_shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "num_heads": self.num_heads}


@keras.saving.register_keras_serializable(package=PACKAGE)
class TransformerBlock(Recomputable, layers.Layer):
    """Transformer block over a feature map: self-attention, cross-attention and feed-forward.

    Args:
        num_heads: heads of both attentions.
        norm_groups: of the group norm before them, whose epsilon is 1e-6.
        zero_init: start as the identity, with the kernel of `proj_out` at zero.

    Call arguments:
        inputs: (B, …, C) → the same shape.
        context: text encodings, (B, L, D).
    """

    def __init__(
        self, num_heads: int, norm_groups: int = 32, zero_init: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.norm_groups = norm_groups
        self.zero_init = zero_init

    def build(self, inputs_shape: Shape, context_shape: Shape) -> None:
        channels = inputs_shape[-1]
        tokens_shape = (inputs_shape[0], None, channels)
        dtype = {"dtype": self.dtype_policy}
        if channels % self.norm_groups:
            raise ValueError(f"norm_groups={self.norm_groups} does not divide {channels} channels")
        self.norm = GroupNormalization(self.norm_groups, epsilon=1e-6, name="norm", **dtype)
        self.norm.build(inputs_shape)
        self.proj_in = dense(channels, name="proj_in", **dtype)
        self.norm1 = layers.LayerNormalization(epsilon=1e-5, name="norm1", **dtype)
        self.norm2 = layers.LayerNormalization(epsilon=1e-5, name="norm2", **dtype)
        self.norm3 = layers.LayerNormalization(epsilon=1e-5, name="norm3", **dtype)
        self.self_attention = Attention(self.num_heads, name="self_attention", **dtype)
        self.cross_attention = Attention(self.num_heads, name="cross_attention", **dtype)
        self.ff_in = dense(8 * channels, name="ff_in", **dtype)
        self.ff_out = dense(channels, name="ff_out", **dtype)
        self.proj_out = dense(channels, self.zero_init, name="proj_out", **dtype)
        for layer in (
            self.proj_in,
            self.norm1,
            self.norm2,
            self.norm3,
            self.self_attention,
            self.ff_in,
            self.proj_out,
        ):
            layer.build(tokens_shape)
        self.cross_attention.build(tokens_shape, context_shape)
        self.ff_out.build((*tokens_shape[:-1], 4 * channels))
        self.built = True

    def call(self, inputs, context):
        tokens = ops.reshape(self.norm(inputs), positions_of(inputs, inputs.shape[-1]))
        tokens = self.proj_in(tokens)
        tokens = tokens + self.self_attention(self.norm1(tokens))
        tokens = tokens + self.cross_attention(self.norm2(tokens), context)
        hidden, gate = ops.split(self.ff_in(self.norm3(tokens)), 2, axis=-1)
        tokens = tokens + self.ff_out(hidden * ops.gelu(gate, approximate=False))
        tokens = self.proj_out(tokens)
        return inputs + ops.reshape(tokens, shape_of(inputs))

    def compute_output_shape(self, inputs_shape: Shape, context_shape: Shape) -> Shape:
        return inputs_shape

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "norm_groups": self.norm_groups,
            "zero_init": self.zero_init,
        }
