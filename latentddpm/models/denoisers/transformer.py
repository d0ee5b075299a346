"""Transformer block: cross-attention from a feature map to text (Rombach et al. 2022, §3.3).

    tokens = proj_in(norm(inputs))                       (B, L, C)
    tokens += self_attention(norm(tokens))
    tokens += cross_attention(norm(tokens), context)     queries from tokens, keys from text
    tokens += out(a · gelu(b)),  a, b = in(norm(tokens)) GEGLU (Shazeer 2020)
    return inputs + proj_out(tokens)

as in appendix E.2.1 of Rombach et al. 2022.

Different texts may be told to different parts of the feature map, the regions r:

    cross_attention(q)_p = out(Σ_r w_r(p) · softmax(q_p K_rᵀ / √d) V_r),   Σ_r w_r(p) = 1

A position that lies in one region attends to its text alone, which is masked attention; the
output at a position that several share is their mean, weighted by their shares of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
from keras import layers, ops

from latentddpm.models.attention import attention
from latentddpm.models.layers import (
    PACKAGE,
    GroupNormalization,
    Recomputable,
    Shape,
    dense,
    of_rank,
)
from latentddpm.models.shapes import positions_of, shape_of


@keras.saving.register_keras_serializable(package=PACKAGE)
class Attention(layers.Layer):
    """Multi-head attention of a sequence to a context, or to itself.

    Queries, keys and values have no bias; the output projection has one.

    Args:
        num_heads: number of heads, a divisor of C.

    Call arguments:
        inputs: (B, L, C) → the same shape.
        context: (B, M, D); None for self-attention. With `weights` (B, R, M, D), a context for
            each of R regions.
        weights: of the regions at each position, (B, L, R); None for one context everywhere.
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

    def call(self, inputs, context=None, weights=None):
        query = self.query(inputs)

        def attend(source):
            return attention(query, self.key(source), self.value(source), self.num_heads)

        if weights is None:
            return self.out(attend(inputs if context is None else context))
        regions = range(weights.shape[-1])
        mixed, *others = (weights[..., r : r + 1] * attend(context[:, r]) for r in regions)
        for other in others:
            mixed = mixed + other
        return self.out(mixed)

    def compute_output_shape(
        self,
        inputs_shape: Shape,
        context_shape: Shape | None = None,
        weights_shape: Shape | None = None,
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
        context: text encodings, (B, L, D); with `region_weights` (B, R, L, D).
        region_weights: of R regions at each position, (B, …, R), of sum 1; None for one text.
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

    def call(self, inputs, context, region_weights=None):
        told = [context]
        if region_weights is not None:
            weights = positions_of(region_weights, region_weights.shape[-1])
            told.append(ops.reshape(region_weights, weights))
        tokens = ops.reshape(self.norm(inputs), positions_of(inputs, inputs.shape[-1]))
        tokens = self.proj_in(tokens)
        tokens = tokens + self.self_attention(self.norm1(tokens))
        tokens = tokens + self.cross_attention(self.norm2(tokens), *told)
        hidden, gate = ops.split(self.ff_in(self.norm3(tokens)), 2, axis=-1)
        tokens = tokens + self.ff_out(hidden * ops.gelu(gate, approximate=False))
        tokens = self.proj_out(tokens)
        return inputs + ops.reshape(tokens, shape_of(inputs))

    def compute_output_shape(
        self, inputs_shape: Shape, context_shape: Shape, region_weights_shape: Shape | None = None
    ) -> Shape:
        return inputs_shape

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "norm_groups": self.norm_groups,
            "zero_init": self.zero_init,
        }


def texts_by_level(inputs: Mapping[str, Any], num_levels: int) -> list[tuple[Any, ...]] | None:
    """Texts that the transformer blocks of each level are told, and where.

    Each level has half the positions of the one above it, ⌈n/2⌉ of n, and the weight of a region
    in one of them is the mean over those that it stands for.

    Args:
        inputs: of a denoiser, Keras tensors by name; see `denoiser_inputs`.
        num_levels: of the network.

    Returns:
        For each level the arguments of a `TransformerBlock` after the feature map; None for a
        network without text.
    """
    if "context" not in inputs:
        return None
    weights = inputs.get("region_weights")
    if weights is None:
        return [(inputs["context"],)] * num_levels
    halve = of_rank("AveragePooling{}D", len(weights.shape) - 2)
    levels = [weights]
    for level in range(1, num_levels):
        halved = halve(2, padding="same", dtype="float32", name=f"region_weights_{level}")
        levels.append(halved(levels[-1]))
    return [(inputs["context"], each) for each in levels]
