"""UNet: the denoiser, from noisy latents, timesteps and, if conditional, text to a prediction.

A U-Net of ResnetBlocks with attention at some levels (Ho et al. 2020, appendix B; Rombach et al.
2022, §3.3). An unconditional one has self-attention, as diffusers' `UNet2DModel`. A conditional
one has transformer blocks with cross-attention, as the `UNet2DConditionModel` of Stable Diffusion
1.x. The schedule says what it predicts: noise, v or the clean latents.

    timestep embedding: [cos(t·f), sin(t·f)],  f_i = 10000^(−i / (d/2)),  i = 0 .. d/2 − 1
                        → Dense → SiLU → Dense, added in every ResnetBlock
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from latentddpm.models.attention import AttentionBlock
from latentddpm.models.denoisers.transformer import TransformerBlock
from latentddpm.models.functional import FunctionalModel, constructor_arguments
from latentddpm.models.layers import (
    PACKAGE,
    PaddedConv2D,
    ResnetBlock,
    Shape,
    Upsample,
    dense,
    group_norm,
)

NORM_EPSILON = 1e-5
MAX_PERIOD = 10_000.0


@keras.saving.register_keras_serializable(package=PACKAGE)
class TimestepEmbedding(layers.Layer):
    """Timestep embedding: cosines, then sines, of the timestep times geometric frequencies.

    Args:
        dim: width of the embedding, an even number.

    Call arguments:
        timesteps: (B,) → float32 (B, dim).

    Raises:
        ValueError: an odd `dim`.
    """

    def __init__(self, dim: int, **kwargs: Any) -> None:
        kwargs["dtype"] = "float32"
        super().__init__(**kwargs)
        if dim % 2:
            raise ValueError(f"dim={dim} of a timestep embedding must be even")
        self.dim = dim
        exponents = -math.log(MAX_PERIOD) * np.arange(dim // 2) / (dim // 2)
        self.frequencies = np.exp(exponents).astype(np.float32)

    def call(self, timesteps):
        angles = ops.cast(timesteps, "float32")[:, None] * self.frequencies[None, :]
        return ops.concatenate([ops.cos(angles), ops.sin(angles)], axis=-1)

    def compute_output_shape(self, timesteps_shape: Shape) -> Shape:
        return (*timesteps_shape, self.dim)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "dim": self.dim}


@keras.saving.register_keras_serializable(package=PACKAGE)
class UNet(FunctionalModel):
    """UNet: the denoiser of latents, unconditional or conditioned on text.

    Args:
        channels: width at the highest resolution.
        channel_multipliers: width of each level in units of `channels`; every further level
            halves the resolution.
        num_res_blocks: ResnetBlocks per level on the way down; there is one more on the way up.
        attention_levels: levels with attention, where 0 is the highest resolution. The middle
            always has attention.
        num_heads: attention heads, one number or one for each level; the middle has those of
            the last level.
        context_dim: width of the text encodings; None for an unconditional network.
        latent_channels: channels of the input and of the prediction.
        norm_groups: of every group norm.
        dropout: rate inside the ResnetBlocks.
        zero_init: start with zeros as the output of every residual branch and of the network.
        norm_epsilon: of the group norms, except those in transformer blocks (1e-6).
        recompute: compute activations again in the backward pass instead of keeping them. In
            training an example takes a third of the memory and a step a fifth more time
            (measured, see docs/benchmarks.md). Not saved with the model.
        dtype: dtype or dtype policy of the layers.
        name: of the Keras model.

    Call arguments:
        inputs: `{"noisy_latents": (B, h, w, c), "timesteps": (B,)}` and, with `context_dim`,
            `"context"`: (B, L, context_dim). h and w are multiples of 2 ** (levels − 1).
            Timesteps are whole numbers, or float32 numbers between them as some samplers need.

    Returns:
        The prediction, float32 (B, h, w, c).

    Raises:
        ValueError: `norm_groups` or `num_heads` does not divide a width, an attention level
            does not exist, or `num_heads` is a list without a number for each level.

    Example:
        >>> unet = latentddpm.UNet(  # Stable Diffusion 1.x: 320 channels, context_dim=768
        ...     channels=16, channel_multipliers=(1, 2), attention_levels=(1,), num_heads=2,
        ...     norm_groups=4,
        ... )
        >>> noisy_latents, timesteps = np.zeros((2, 8, 8, 4), "float32"), np.array([0, 999])
        >>> tuple(unet({"noisy_latents": noisy_latents, "timesteps": timesteps}).shape)
        (2, 8, 8, 4)
    """

    def __init__(
        self,
        channels: int = 320,
        channel_multipliers: Sequence[int] = (1, 2, 4, 4),
        num_res_blocks: int = 2,
        attention_levels: Sequence[int] = (0, 1, 2),
        num_heads: int | Sequence[int] = 8,
        context_dim: int | None = None,
        latent_channels: int = 4,
        norm_groups: int = 32,
        dropout: float = 0.0,
        zero_init: bool = True,
        norm_epsilon: float = NORM_EPSILON,
        recompute: bool = False,
        dtype: Any = None,
        name: str = "unet",
    ) -> None:
        config = constructor_arguments(locals())
        if norm_epsilon == NORM_EPSILON:
            del config["norm_epsilon"]  # older models, without this argument, keep their digest
        del config["recompute"]  # it changes the training, not the network
        num_levels = len(channel_multipliers)
        heads = [num_heads] * num_levels if isinstance(num_heads, int) else list(num_heads)
        if len(heads) != num_levels:
            raise ValueError(
                f"num_heads {heads}: expected one number or {num_levels}, one a level"
            )
        unknown = sorted(set(attention_levels) - set(range(num_levels)))
        if unknown:
            raise ValueError(
                f"attention_levels {unknown} do not exist; levels are 0 … {num_levels - 1}"
            )

        # === Inputs ===
        inputs = {
            "noisy_latents": keras.Input(
                (None, None, latent_channels), name="noisy_latents", dtype="float32"
            ),
            "timesteps": keras.Input((), name="timesteps", dtype="float32"),
        }
        context = None
        if context_dim is not None:
            context = keras.Input((None, context_dim), name="context", dtype="float32")
            inputs["context"] = context

        # === Blocks ===
        def make(kind: Any, *arguments: Any, name: str) -> Any:
            if not recompute:
                return kind(*arguments, dtype=dtype, name=name)
            with keras.RematScope("list_of_layers", layer_names=[name]):
                return kind(*arguments, dtype=dtype, name=name)

        def resnet(hidden: Any, width: int, name: str) -> Any:
            layer = make(
                ResnetBlock, width, norm_groups, norm_epsilon, dropout, zero_init, name=name
            )
            return layer(hidden, time_embedding)

        def attend(hidden: Any, level: int, name: str) -> Any:
            if context is not None:
                layer = make(TransformerBlock, heads[level], norm_groups, zero_init, name=name)
                return layer(hidden, context)
            layer = make(
                AttentionBlock, heads[level], norm_groups, norm_epsilon, zero_init, name=name
            )
            return layer(hidden)

        # === Graph ===
        time_embedding = TimestepEmbedding(channels, name="timestep_embedding")(
            inputs["timesteps"]
        )
        for layer in (
            dense(4 * channels, dtype=dtype, name="time_0"),
            layers.Activation("silu", dtype=dtype, name="time_act"),
            dense(4 * channels, dtype=dtype, name="time_1"),
        ):
            time_embedding = layer(time_embedding)

        hidden = PaddedConv2D(channels, 3, padding=1, dtype=dtype, name="conv_in")(
            inputs["noisy_latents"]
        )
        skips = [hidden]
        for level, multiplier in enumerate(channel_multipliers):
            width = channels * multiplier
            for block in range(num_res_blocks):
                hidden = resnet(hidden, width, f"down_{level}_block_{block}")
                if level in attention_levels:
                    hidden = attend(hidden, level, f"down_{level}_attention_{block}")
                skips.append(hidden)
            if level < num_levels - 1:
                hidden = PaddedConv2D(
                    width, 3, padding=1, stride=2, dtype=dtype, name=f"down_{level}_downsample"
                )(hidden)
                skips.append(hidden)

        width = channels * channel_multipliers[-1]
        hidden = resnet(hidden, width, "mid_block_0")
        hidden = attend(hidden, num_levels - 1, "mid_attention")
        hidden = resnet(hidden, width, "mid_block_1")

        for level in reversed(range(num_levels)):
            width = channels * channel_multipliers[level]
            for block in range(num_res_blocks + 1):
                hidden = layers.Concatenate(dtype=dtype, name=f"up_{level}_skip_{block}")(
                    [hidden, skips.pop()]
                )
                hidden = resnet(hidden, width, f"up_{level}_block_{block}")
                if level in attention_levels:
                    hidden = attend(hidden, level, f"up_{level}_attention_{block}")
            if level > 0:
                hidden = Upsample(width, dtype=dtype, name=f"up_{level}_upsample")(hidden)
        assert not skips, "every skip connection is used"

        hidden = group_norm(channels, norm_groups, norm_epsilon, dtype=dtype, name="norm_out")(
            hidden
        )
        hidden = layers.Activation("silu", dtype=dtype, name="act_out")(hidden)
        prediction = PaddedConv2D(
            latent_channels, 3, padding=1, zero_init=zero_init, dtype="float32", name="conv_out"
        )(hidden)
        super().__init__(inputs, prediction, config, name=name)

    @property
    def downsample_factor(self) -> int:
        """Positions of the latents per position at the lowest resolution, along a side."""
        return 2 ** (len(self._arguments["channel_multipliers"]) - 1)

    @property
    def context_dim(self) -> int | None:
        """Width of the text encodings; None for an unconditional network."""
        return self._arguments["context_dim"]
