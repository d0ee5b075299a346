"""Text encoder: CLIP's text transformer, from token ids to the context of the UNet.

    token_ids (B, L) → token + position embeddings (B, L, d)
                     → num_layers × [x + attention(norm(x)); x + mlp(norm(x))], causal
                     → final norm → context (B, L, d)

Attention is causal: position k sees the positions 0 .. k. Padding is at the end of a row, so it
needs no mask, as in the text encoder of Stable Diffusion.

Weights have the names and shapes of KerasHub's `CLIPTextEncoder`, which is imported for presets
alone. Its final norm has an epsilon of 1e-6 where CLIP's is 1e-5.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras

from latentddpm.clip.tokenizer import CLIPTokenizer
from latentddpm.clip.transformer import (
    LAYER_NORM_EPSILON,
    CLIPEncoderLayer,
    TokenAndPositionEmbedding,
)
from latentddpm.errors import UserError, check_choice
from latentddpm.utils.machine.memory import count_weights

ACTIVATIONS = ("quick_gelu", "gelu")  # CLIP and SD 1.x; OpenCLIP and SD 2.x (exact, by erf)


@keras.saving.register_keras_serializable(package="latentddpm")
class TextEncoder(keras.Model):
    """Text encoder: CLIP's text transformer, from token ids to the context of a UNet.

    Args:
        hidden_dim: width d, divisible by `num_heads`.
        num_layers: transformer blocks.
        num_heads: attention heads of each block.
        intermediate_dim: hidden width of the feed-forward part; None for 4 × `hidden_dim`.
        activation: "quick_gelu" (CLIP) or "gelu" (OpenCLIP).
        context_length: number of positions.
        vocabulary_size: number of tokens.
        dtype: dtype or dtype policy of the layers.

    Call arguments:
        inputs: `{"token_ids": int32 (B, L)}`, L at most `context_length`.

    Returns:
        The context: states after the final norm, (B, L, hidden_dim).

    Raises:
        UserError: a size is not a positive whole number, the heads do not divide the width,
            or the activation is unknown.

    Example:
        >>> encoder = latentddpm.TextEncoder(
        ...     hidden_dim=16, num_layers=1, num_heads=2, context_length=8
        ... )
        >>> token_ids = latentddpm.CLIPTokenizer(8)(["a cat", "a dog"])
        >>> tuple(encoder({"token_ids": token_ids}).shape)
        (2, 8, 16)
    """

    def __init__(
        self,
        *,
        hidden_dim: int,
        num_layers: int,
        num_heads: int,
        intermediate_dim: int | None = None,
        activation: str = "quick_gelu",
        context_length: int = 77,
        vocabulary_size: int = 49_408,
        dtype: Any = None,
        **kwargs: Any,
    ) -> None:
        sizes = {
            "hidden_dim": hidden_dim,
            "num_layers": num_layers,
            "num_heads": num_heads,
            "context_length": context_length,
            "vocabulary_size": vocabulary_size,
        }
        if intermediate_dim is not None:
            sizes["intermediate_dim"] = intermediate_dim
        check_sizes(sizes)
        intermediate_dim = sizes.setdefault("intermediate_dim", 4 * hidden_dim)
        check_choice("activation", activation, ACTIVATIONS)
        count_weights((vocabulary_size + context_length) * hidden_dim)
        count_weights(num_layers * hidden_dim * (4 * hidden_dim + 2 * intermediate_dim))

        # === Functional Model ===
        inputs = keras.Input((None,), name="token_ids", dtype="int32")
        hidden = TokenAndPositionEmbedding(
            vocabulary_size, context_length, hidden_dim, dtype=dtype, name="embedding"
        )(inputs)
        for block in range(num_layers):
            hidden = CLIPEncoderLayer(
                hidden_dim,
                num_heads,
                intermediate_dim,
                activation,
                dtype=dtype,
                name=f"encoder_block_{block}",
            )(hidden)
        norm = keras.layers.LayerNormalization(
            epsilon=LAYER_NORM_EPSILON, dtype=dtype, name="layer_norm"
        )
        super().__init__(inputs={"token_ids": inputs}, outputs=norm(hidden), **kwargs)
        self.dtype_policy = norm.dtype_policy if dtype is None else keras.dtype_policies.get(dtype)

        # === Config ===
        self.hidden_dim = hidden_dim
        self.num_layers = num_layers
        self.num_heads = num_heads
        self.intermediate_dim = intermediate_dim
        self.activation = activation
        self.context_length = context_length
        self.vocabulary_size = vocabulary_size

    def get_config(self) -> dict[str, Any]:
        # Without `super()`: the config of a functional model is its graph of layers.
        return {
            "hidden_dim": self.hidden_dim,
            "num_layers": self.num_layers,
            "num_heads": self.num_heads,
            "intermediate_dim": self.intermediate_dim,
            "activation": self.activation,
            "context_length": self.context_length,
            "vocabulary_size": self.vocabulary_size,
            "name": self.name,
            "trainable": self.trainable,
            "dtype": keras.dtype_policies.serialize(self.dtype_policy),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> TextEncoder:
        dtype = config.get("dtype")
        policy = keras.dtype_policies.get(dtype) if isinstance(dtype, dict) else dtype
        return cls(**{**config, "dtype": policy})


def build_text_encoder(
    *,
    hidden_dim: int,
    num_layers: int,
    num_heads: int,
    intermediate_dim: int | None = None,
    context_length: int = 77,
    vocabulary_size: int = 49_408,
) -> TextEncoder:
    """Text encoder with new weights, to be trained together with a UNet.

    Args:
        hidden_dim, num_layers, num_heads, intermediate_dim, context_length, vocabulary_size: see
            `TextEncoder`.

    Raises:
        UserError: see `TextEncoder`.
    """
    return TextEncoder(
        hidden_dim=hidden_dim,
        num_layers=num_layers,
        num_heads=num_heads,
        intermediate_dim=intermediate_dim,
        context_length=context_length,
        vocabulary_size=vocabulary_size,
    )


def load_preset(name: str) -> tuple[TextEncoder, CLIPTokenizer]:
    """Text encoder of a KerasHub preset of CLIP, and CLIP's tokenizer for it.

    Args:
        name: a built-in preset ("clip_vit_large_patch14" is the encoder of Stable Diffusion 1.x),
            a `kaggle://` or `hf://` handle, or a folder written by `save_to_preset`. All but
            the folder are downloaded.

    Raises:
        UserError: the preset cannot be loaded, or has no CLIP text encoder.
    """
    from keras_hub.models import Backbone, CLIPBackbone, CLIPTextEncoder

    if "/" not in name and not Path(name).is_dir():
        check_choice("preset", name, (*CLIPBackbone.presets, *CLIPTextEncoder.presets))
    try:
        source = Backbone.from_preset(name)
    except Exception as error:  # every download client has its own exceptions
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"preset {name!r} could not be loaded: {reason}") from error
    source = getattr(source, "text_encoder", source)
    if not isinstance(source, CLIPTextEncoder):
        raise UserError(f"preset {name!r} is a {type(source).__name__}; expected CLIP")
    tokenizer = CLIPTokenizer(source.max_sequence_length)
    if source.vocabulary_size != tokenizer.vocabulary_size:
        raise UserError(
            f"preset {name!r} has {source.vocabulary_size} tokens; "
            f"CLIP's tokenizer has {tokenizer.vocabulary_size}"
        )
    encoder = TextEncoder(
        hidden_dim=source.hidden_dim,
        num_layers=source.num_layers,
        num_heads=source.num_heads,
        intermediate_dim=source.intermediate_dim,
        activation=source.intermediate_activation,
        context_length=source.max_sequence_length,
        vocabulary_size=source.vocabulary_size,
    )
    blocks = [encoder.get_layer(f"encoder_block_{i}") for i in range(encoder.num_layers)]
    ours = [encoder.get_layer("embedding"), *blocks, encoder.get_layer("layer_norm")]
    theirs = [source.embedding, *source.encoder_layers, source.layer_norm]
    for mine, other in zip(ours, theirs, strict=True):
        mine.set_weights(other.get_weights())
    return encoder, tokenizer


def check_sizes(sizes: dict[str, Any]) -> None:
    """Check the sizes of a text encoder: positive whole numbers, heads that divide the width.

    Args:
        sizes: argument of `TextEncoder` → its value.

    Raises:
        UserError: one is not valid.
    """
    for name, size in sizes.items():
        if type(size) is not int or size < 1:
            raise UserError(f"{name}: expected a positive whole number, got {size!r}")
    if sizes["hidden_dim"] % sizes["num_heads"]:
        raise UserError(
            f"hidden_dim {sizes['hidden_dim']} is not divisible by num_heads {sizes['num_heads']}"
        )
