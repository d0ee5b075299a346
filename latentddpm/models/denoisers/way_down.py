"""Way down of a UNet: its inputs to the middle and to the skip connections.

    noisy latents ─► conv_in [+ hint] ─► blocks, level by level ─► middle
                          │                   │
                          └──► skips ◄────────┘

A UNet goes on from here, up again; a `ControlNet` is a trained copy of this part (Zhang 2023).
Both make it with `Blocks`, so their layers have the same names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import layers

from latentddpm.models.attention import AttentionBlock
from latentddpm.models.denoisers.time_embedding import embed_time
from latentddpm.models.denoisers.told import embed_conditions, with_maps
from latentddpm.models.denoisers.transformer import TransformerBlock, texts_by_level
from latentddpm.models.layers import PaddedConv2D, ResnetBlock

RESIDUAL, MIDDLE_RESIDUAL = "residual_{}", "residual_mid"
"""Names of what is added to the skip connections, counted from the first, and to the middle."""


class Blocks:
    """Blocks of a UNet, made from its sizes, and the embedding of the timestep, with the
    vectors of conditions, that all of them take.

    Args:
        arguments: of the constructor of `UNet`, or those of them that shape the way down.
        inputs: see `base.denoiser_inputs`.

    Raises:
        ValueError: an attention level does not exist, or `num_heads` is a list without a number
            for each level.
    """

    def __init__(self, arguments: Mapping[str, Any], inputs: Mapping[str, Any]) -> None:
        self.inputs, self.arguments = inputs, arguments
        self.dtype = arguments["dtype"]
        self.channels = arguments["channels"]
        self.widths = [self.channels * one for one in arguments["channel_multipliers"]]
        self.heads = self._heads(arguments["num_heads"])
        self.attention_levels = arguments["attention_levels"]
        if unknown := sorted(set(self.attention_levels) - set(range(len(self.widths)))):
            raise ValueError(
                f"attention_levels {unknown} do not exist; levels are 0 … {len(self.widths) - 1}"
            )
        self.told = arguments["conditions"] or ()
        self.texts = texts_by_level(inputs, len(self.widths))
        sizes = self.channels, 4 * self.channels, "silu", self.dtype, arguments["original_ddpm"]
        time_embedding = embed_time(inputs["timesteps"], *sizes)
        self.time_embedding = embed_conditions(
            inputs, self.told, time_embedding, self.channels, "silu", self.dtype
        )

    def _heads(self, heads: Any) -> list[int]:
        levels = len(self.widths)
        heads = [heads] * levels if isinstance(heads, int) else list(heads)
        if len(heads) != levels:
            raise ValueError(f"num_heads {heads}: expected one number or {levels}, one a level")
        return heads

    def way_down(self, hint: Any = None) -> tuple[Any, list[Any]]:
        """Graph from the inputs to the middle.

        Args:
            hint: Keras tensor (B, h, w, channels) that is added after the first convolution; None
                for none.

        Returns:
            Output of the middle, and those of the skip connections, from the first to the last.
        """
        own = self.arguments
        strided = {"padding": "same" if own["original_ddpm"] else 1, "stride": 2}
        hidden = PaddedConv2D(self.channels, 3, padding=1, dtype=self.dtype, name="conv_in")(
            with_maps(self.inputs["noisy_latents"], self.inputs, self.told, self.dtype)
        )
        if hint is not None:
            hidden = layers.Add(dtype=self.dtype, name="hint_add")([hidden, hint])
        skips, last = [hidden], len(self.widths) - 1
        for level, width in enumerate(self.widths):
            for block in range(own["num_res_blocks"]):
                hidden = self.resnet(hidden, width, f"down_{level}_block_{block}")
                if level in self.attention_levels:
                    hidden = self.attend(hidden, level, f"down_{level}_attention_{block}")
                skips.append(hidden)
            if level < last:
                hidden = PaddedConv2D(
                    width, 3, **strided, dtype=self.dtype, name=f"down_{level}_downsample"
                )(hidden)
                skips.append(hidden)
        hidden = self.resnet(hidden, self.widths[-1], "mid_block_0")
        hidden = self.attend(hidden, last, "mid_attention")
        return self.resnet(hidden, self.widths[-1], "mid_block_1"), skips

    def resnet(self, hidden: Any, width: int, name: str) -> Any:
        """Residual block with the timestep.

        Args:
            hidden: its input.
            width: channels of its output.
            name: of the layer.
        """
        own = self.arguments
        keys = "norm_groups", "norm_epsilon", "dropout", "zero_init", "time_scale_shift"
        sizes = (own[key] for key in keys)
        return self._make(ResnetBlock, width, *sizes, name=name)(hidden, self.time_embedding)

    def attend(self, hidden: Any, level: int, name: str) -> Any:
        """Attention, to the text too where there is text.

        Args:
            hidden: its input.
            level: whose number of heads it has.
            name: of the layer.
        """
        own, heads = self.arguments, self.heads[level]
        if self.texts is not None:
            sizes = heads, own["norm_groups"], own["zero_init"]
            return self._make(TransformerBlock, *sizes, name=name)(hidden, *self.texts[level])
        sizes = heads, own["norm_groups"], own["norm_epsilon"], own["zero_init"]
        return self._make(AttentionBlock, *sizes, name=name)(hidden)

    def _make(self, kind: Any, *arguments: Any, name: str) -> Any:
        if not self.arguments["recompute"]:
            return kind(*arguments, dtype=self.dtype, name=name)
        with keras.RematScope("list_of_layers", layer_names=[name]):
            return kind(*arguments, dtype=self.dtype, name=name)


def add_residuals(tensors: Sequence[Any], dtype: Any) -> tuple[dict[str, Any], list[Any]]:
    """Graph that adds further inputs to the skip connections of a UNet and to its middle.

    Args:
        tensors: of the skip connections, and last that of the middle.
        dtype: dtype or dtype policy of the sums.

    Returns:
        The inputs by name, `"residual_0"` … and `"residual_mid"`, float32 and of the shapes of
        `tensors`, and the sums.
    """
    names = [*map(RESIDUAL.format, range(len(tensors) - 1)), MIDDLE_RESIDUAL]
    inputs = {
        name: keras.Input(one.shape[1:], name=name, dtype="float32")
        for name, one in zip(names, tensors, strict=True)
    }
    sums = [
        layers.Add(dtype=dtype, name=f"{name}_add")([one, inputs[name]])
        for name, one in zip(names, tensors, strict=True)
    ]
    return inputs, sums
