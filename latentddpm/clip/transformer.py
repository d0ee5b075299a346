"""Layers of CLIP's text transformer: the embedding of tokens and positions, and its blocks.

    embedding   token_ids (B, L) → token[token_ids] + position[0 … L−1]              (B, L, d)
    block       x + attention(norm(x)), causal; then x + mlp(norm(x))                (B, L, d)

after Radford et al. 2021, §2.4 (https://arxiv.org/abs/2103.00020). Classes and attributes have the
names, and weights the shapes, of KerasHub's layers, because archives name weights after them: its
import took half a second and 145 MB of memory.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import layers, ops

from latentddpm.utils.machine.memory import is_blank

PACKAGE = "latentddpm"
LAYER_NORM_EPSILON = 1e-5


def _initializer(name: str) -> str:
    """Name of an initializer, or of zeros where weights are read next."""
    return "zeros" if is_blank() else name


def quick_gelu(inputs: Any) -> Any:
    """CLIP's approximation of GELU: x · sigmoid(1.702 x).

    Args:
        inputs: tensor of any shape.
    """
    return inputs * ops.sigmoid(1.702 * inputs)


@keras.saving.register_keras_serializable(package=PACKAGE)
class TokenAndPositionEmbedding(layers.Layer):
    """Embedding of token ids, plus that of their positions.

    Args:
        vocabulary_size: number of tokens.
        context_length: number of positions.
        hidden_dim: width d.
        kwargs: see `keras.layers.Layer`.

    Call arguments:
        inputs: int32 (B, L), L at most `context_length` → (B, L, d).
    """

    def __init__(
        self, vocabulary_size: int, context_length: int, hidden_dim: int, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.vocabulary_size = vocabulary_size
        self.context_length = context_length
        self.hidden_dim = hidden_dim
        options = {"embeddings_initializer": _initializer("uniform"), "dtype": self.dtype_policy}
        self.token_embedding = layers.Embedding(
            vocabulary_size, hidden_dim, name="token_embedding", **options
        )
        self.position_embedding = layers.Embedding(
            context_length, hidden_dim, name="position_embedding", **options
        )

    def build(self, inputs_shape: tuple[int | None, ...]) -> None:
        self.token_embedding.build(inputs_shape)
        self.position_embedding.build(inputs_shape)
        self.built = True

    def call(self, inputs):
        length = ops.shape(inputs)[1]
        positions = ops.cast(self.position_embedding.embeddings, self.compute_dtype)[:length]
        return self.token_embedding(inputs) + positions

    def compute_output_shape(self, inputs_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return (*inputs_shape, self.hidden_dim)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "vocabulary_size": self.vocabulary_size,
            "context_length": self.context_length,
            "hidden_dim": self.hidden_dim,
        }


@keras.saving.register_keras_serializable(package=PACKAGE)
class CLIPEncoderLayer(layers.Layer):
    """Block of CLIP's text transformer: causal self-attention, then two dense layers.

    Args:
        hidden_dim: width d, divisible by `num_heads`.
        num_heads: attention heads.
        intermediate_dim: width between the two dense layers.
        activation: between them, "quick_gelu" or a name that Keras knows.
        kwargs: see `keras.layers.Layer`.

    Call arguments:
        inputs: (B, L, d) → the same shape.
    """

    def __init__(
        self,
        hidden_dim: int,
        num_heads: int,
        intermediate_dim: int,
        activation: str = "quick_gelu",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.hidden_dim = hidden_dim
        self.num_heads = num_heads
        self.intermediate_dim = intermediate_dim
        self.activation = activation
        dtype = {"dtype": self.dtype_policy}
        norm = {"epsilon": LAYER_NORM_EPSILON, **dtype}
        weights = {"kernel_initializer": _initializer("glorot_uniform"), **dtype}
        self.layer_norm_1 = layers.LayerNormalization(name="layer_norm_1", **norm)
        self.attention = layers.MultiHeadAttention(
            num_heads, hidden_dim // num_heads, name="attention", **weights
        )
        self.layer_norm_2 = layers.LayerNormalization(name="layer_norm_2", **norm)
        self.dense_1 = layers.Dense(intermediate_dim, name="dense_1", **weights)
        self.dense_2 = layers.Dense(hidden_dim, name="dense_2", **weights)

    def build(self, inputs_shape: tuple[int | None, ...]) -> None:
        self.layer_norm_1.build(inputs_shape)
        self.attention.build(inputs_shape, inputs_shape, inputs_shape)
        self.layer_norm_2.build(inputs_shape)
        self.dense_1.build(inputs_shape)
        self.dense_2.build((*inputs_shape[:-1], self.intermediate_dim))
        self.built = True

    def call(self, inputs):
        hidden = self.layer_norm_1(inputs)
        hidden = inputs + self.attention(hidden, hidden, hidden, use_causal_mask=True)
        inner = self.dense_1(self.layer_norm_2(hidden))
        quick = self.activation == "quick_gelu"
        inner = quick_gelu(inner) if quick else keras.activations.get(self.activation)(inner)
        return hidden + self.dense_2(inner)

    def compute_output_shape(self, inputs_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return inputs_shape

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "hidden_dim": self.hidden_dim,
            "num_heads": self.num_heads,
            "intermediate_dim": self.intermediate_dim,
            "activation": self.activation,
        }
