"""Weight map of diffusers' tensors to Keras variables, used for reading and for writing.

The map is generated from the arguments of a network, before the network is built, so that the
shapes in a file can be checked first. It is a generator: for arguments of an absurd size it ends
at the first tensor that the file does not have.

Layouts in diffusers → in Keras (PyTorch is channels-first, Keras channels-last):

    vector      (n,)                (n,)
    dense       (out, in)           (in, out)
    pointwise   (out, in, 1, 1)     (in, out): a 1×1 convolution and a dense layer
    conv        (out, in, h, w)     (h, w, in, out)
    table       (n, width)          (n, width): rows that are looked up
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from latentddpm.errors import UserError
from latentddpm.interop.diffusers.conditions import map_channels
from latentddpm.models.denoisers.told import CONCAT

Shape = tuple[int, ...]

AUTOENCODER_SIZES = (
    "channels",
    "channel_multipliers",
    "num_res_blocks",
    "latent_channels",
    "image_channels",
    "quant_conv",
)
UNET_SIZES = (
    "channels",
    "channel_multipliers",
    "num_res_blocks",
    "latent_channels",
    "attention_levels",
    "context_dim",
    "learned_variance",
    "conditions",
    "time_scale_shift",
)
SKIP = r"down_\d+_(block_\d+/conv2|downsample)/conv/bias"
"""Path of the last bias before a skip connection, but for that of the first convolution."""
LINEAR = ("dense", "pointwise", "conv")
"""Layouts of linear maps, which a LoRA can change."""


@dataclass(frozen=True)
class TensorMapping:
    """Mapping of a tensor of diffusers to a variable: a row of the weight map.

    Attributes:
        key: name of the tensor.
        shape: of the tensor.
        path: of the variable: names of layers and attributes below the model, with slashes.
        layout: "vector", "table", or one of `LINEAR`.
    """

    key: str
    shape: Shape
    path: str
    layout: str

    @property
    def old_key(self) -> str:
        """Name of the tensor in early versions of diffusers; most are the same."""
        for new, old in OLD_NAMES.items():
            if f".{new}." in self.key:
                return self.key.replace(f".{new}.", f".{old}.")
        return self.key


OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def to_ours(array: np.ndarray, layout: str) -> np.ndarray:
    """Array of diffusers of some `layout`, as a view with the layout of Keras."""
    if layout == "conv":
        return array.transpose(2, 3, 1, 0)
    if layout == "pointwise":
        return array[:, :, 0, 0].T
    return array.T if layout == "dense" else array


def to_theirs(array: np.ndarray, layout: str) -> np.ndarray:
    """Array of Keras of some `layout`, as a view with the layout of diffusers."""
    if layout == "conv":
        return array.transpose(3, 2, 0, 1)
    if layout == "pointwise":
        return array.T[:, :, None, None]
    return array.T if layout == "dense" else array


def rows_of_class(
    kind: str, arguments: Mapping[str, Any], linear: bool = False
) -> Iterator[TensorMapping]:
    """Weight map of a network, by its class and the arguments of its constructor.

    Args:
        kind: name of the class, "Autoencoder", "UNet" or "ControlNet".
        arguments: of the constructor.
        linear: see `unet_rows`.

    Raises:
        UserError: another class, or a UNet that diffusers has none like.
    """
    if kind == "Autoencoder":
        return autoencoder_rows(**{k: arguments[k] for k in AUTOENCODER_SIZES if k in arguments})
    if kind == "ControlNet":
        return control_rows(arguments, linear)
    if kind != "UNet" or arguments.get("spatial_dims", 2) != 2:
        raise UserError(f"diffusers and LoRAs know no {kind} like this; expected a UNet")
    return unet_rows(**{k: arguments[k] for k in UNET_SIZES if k in arguments}, linear=linear)


def autoencoder_rows(
    channels: int,
    channel_multipliers: Sequence[int],
    num_res_blocks: int,
    latent_channels: int,
    image_channels: int,
    quant_conv: bool = True,
) -> Iterator[TensorMapping]:
    """Weight map of `AutoencoderKL` and `Autoencoder`.

    Args:
        channels, channel_multipliers, num_res_blocks, latent_channels, image_channels,
            quant_conv: see `Autoencoder`.
    """
    widths = [channels * multiplier for multiplier in channel_multipliers]
    last = len(widths) - 1
    moments = 2 * latent_channels

    yield from _conv("encoder.conv_in", "encoder/conv_in", image_channels, channels)
    width = channels
    for level, wide in enumerate(widths):
        theirs, ours = f"encoder.down_blocks.{level}", f"encoder/down_{level}"
        for block in range(num_res_blocks):
            yield from _resnet(f"{theirs}.resnets.{block}", f"{ours}_block_{block}", width, wide)
            width = wide
        if level < last:
            yield from _conv(f"{theirs}.downsamplers.0.conv", f"{ours}_downsample", width, width)
    yield from _autoencoder_middle("encoder", width)
    yield from _norm("encoder.conv_norm_out", "encoder/norm_out", width)
    yield from _conv("encoder.conv_out", "encoder/conv_out", width, moments)
    if quant_conv:
        yield from _conv("quant_conv", "encoder/quant", moments, moments, 1)
        own = latent_channels
        yield from _conv("post_quant_conv", "decoder/post_quant", own, own, 1)

    width = widths[-1]
    yield from _conv("decoder.conv_in", "decoder/conv_in", latent_channels, width)
    yield from _autoencoder_middle("decoder", width)
    for level in range(last, -1, -1):
        theirs, ours = f"decoder.up_blocks.{last - level}", f"decoder/up_{level}"
        for block in range(num_res_blocks + 1):
            yield from _resnet(
                f"{theirs}.resnets.{block}", f"{ours}_block_{block}", width, widths[level]
            )
            width = widths[level]
        if level > 0:
            yield from _conv(f"{theirs}.upsamplers.0.conv", f"{ours}_upsample/conv", width, width)
    yield from _norm("decoder.conv_norm_out", "decoder/norm_out", width)
    yield from _conv("decoder.conv_out", "decoder/conv_out", width, image_channels)


def unet_rows(
    channels: int,
    channel_multipliers: Sequence[int],
    num_res_blocks: int,
    attention_levels: Sequence[int],
    context_dim: int | None,
    latent_channels: int,
    learned_variance: bool = False,
    conditions: Sequence[Mapping[str, Any]] | None = None,
    time_scale_shift: bool = False,
    linear: bool = False,
) -> Iterator[TensorMapping]:
    """Weight map of `UNet2DModel` or, with `context_dim`, `UNet2DConditionModel`, and `UNet`.

    Args:
        channels, channel_multipliers, num_res_blocks, attention_levels, context_dim,
            latent_channels, learned_variance, conditions, time_scale_shift: see `UNet`.
        linear: the projections of transformer blocks are stored as dense layers
            (`use_linear_projection`), not as 1×1 convolutions.
    """
    widths = [channels * multiplier for multiplier in channel_multipliers]
    last = len(widths) - 1
    time = 4 * channels
    resnet = functools.partial(_resnet, time=time, projections=1 + time_scale_shift)

    def attention(theirs: str, ours: str, width: int) -> Iterator[TensorMapping]:
        if context_dim is None:
            return _attention_block(theirs, ours, width)
        return _transformer(theirs, ours, width, context_dim, "dense" if linear else "pointwise")

    inputs = latent_channels + map_channels(conditions or ())
    yield from _conv("conv_in", "conv_in", inputs, channels)
    yield from _dense("time_embedding.linear_1", "time_0", channels, time)
    yield from _dense("time_embedding.linear_2", "time_1", time, time)
    yield from _class_embeddings(conditions or (), channels, time)
    width, skips = channels, [channels]
    for level, wide in enumerate(widths):
        theirs, ours = f"down_blocks.{level}", f"down_{level}"
        for block in range(num_res_blocks):
            yield from resnet(f"{theirs}.resnets.{block}", f"{ours}_block_{block}", width, wide)
            width = wide
            if level in attention_levels:
                yield from attention(
                    f"{theirs}.attentions.{block}", f"{ours}_attention_{block}", width
                )
            skips.append(width)
        if level < last:
            yield from _conv(f"{theirs}.downsamplers.0.conv", f"{ours}_downsample", width, width)
            skips.append(width)

    yield from resnet("mid_block.resnets.0", "mid_block_0", width, width)
    yield from attention("mid_block.attentions.0", "mid_attention", width)
    yield from resnet("mid_block.resnets.1", "mid_block_1", width, width)

    for level in range(last, -1, -1):
        theirs, ours = f"up_blocks.{last - level}", f"up_{level}"
        for block in range(num_res_blocks + 1):
            yield from resnet(
                f"{theirs}.resnets.{block}",
                f"{ours}_block_{block}",
                width + skips.pop(),
                widths[level],
            )
            width = widths[level]
            if level in attention_levels:
                yield from attention(
                    f"{theirs}.attentions.{block}", f"{ours}_attention_{block}", width
                )
        if level > 0:
            yield from _conv(f"{theirs}.upsamplers.0.conv", f"{ours}_upsample/conv", width, width)
    yield from _norm("conv_norm_out", "norm_out", width)
    outputs = (1 + learned_variance) * latent_channels
    yield from _conv("conv_out", "conv_out", width, outputs)


def control_rows(arguments: Mapping[str, Any], linear: bool = False) -> Iterator[TensorMapping]:
    """Weight map of `ControlNetModel` and `ControlNet`: the way down of a UNet, and its own parts.

    Args:
        arguments: of `ControlNet`.
        linear: see `unet_rows`.
    """
    way_down = unet_rows(**{k: arguments[k] for k in UNET_SIZES if k in arguments}, linear=linear)
    skips = []
    for row in itertools.takewhile(lambda row: not row.key.startswith("up_blocks."), way_down):
        yield row
        if row.path == "conv_in/conv/bias" or re.fullmatch(SKIP, row.path):
            skips.append(row.shape[0])
    theirs, hint = "controlnet_cond_embedding", arguments["hint_channels"]
    widths = [arguments["image_channels"], hint[0]]
    for width, wider in itertools.pairwise(hint):
        widths += [width, wider]
    for number, (width, wider) in enumerate(itertools.pairwise(widths)):
        name = f"blocks.{number - 1}" if number else "conv_in"
        yield from _conv(f"{theirs}.{name}", f"hint_{number}", width, wider)
    yield from _conv(f"{theirs}.conv_out", "hint_out", hint[-1], arguments["channels"])
    for number, width in enumerate(skips):
        theirs = f"controlnet_down_blocks.{number}"
        yield from _conv(theirs, f"residual_{number}_conv", width, width, 1)
    middle = arguments["channels"] * arguments["channel_multipliers"][-1]
    yield from _conv("controlnet_mid_block", "residual_mid_conv", middle, middle, 1)


def _class_embeddings(
    conditions: Sequence[Mapping[str, Any]], channels: int, time: int
) -> Iterator[TensorMapping]:
    """Weights of the vectors among the conditions; diffusers has names for those of one."""
    vectors = [one for one in conditions if one["enters"] != CONCAT]
    for one in vectors:
        ours, enters, size = one["name"], one["enters"], one["size"]
        theirs = "class_embedding" if len(vectors) == 1 else f"class_embedding.{ours}"
        if enters == "rows":
            yield TensorMapping(f"{theirs}.weight", (size, time), f"{ours}_rows/kernel", "table")
        elif enters != "identity":
            inputs = channels if enters == "timestep" else size
            yield from _dense(f"{theirs}.linear_1", f"{ours}_0", inputs, time)
            yield from _dense(f"{theirs}.linear_2", f"{ours}_1", time, time)


def _conv(
    theirs: str, ours: str, inputs: int, outputs: int, side: int = 3
) -> Iterator[TensorMapping]:
    shape = (outputs, inputs, side, side)
    yield TensorMapping(f"{theirs}.weight", shape, f"{ours}/conv/kernel", "conv")
    yield TensorMapping(f"{theirs}.bias", (outputs,), f"{ours}/conv/bias", "vector")


def _dense(
    theirs: str, ours: str, inputs: int, outputs: int, layout: str = "dense", bias: bool = True
) -> Iterator[TensorMapping]:
    shape = (outputs, inputs, 1, 1) if layout == "pointwise" else (outputs, inputs)
    yield TensorMapping(f"{theirs}.weight", shape, f"{ours}/kernel", layout)
    if bias:
        yield TensorMapping(f"{theirs}.bias", (outputs,), f"{ours}/bias", "vector")


def _norm(theirs: str, ours: str, width: int) -> Iterator[TensorMapping]:
    yield TensorMapping(f"{theirs}.weight", (width,), f"{ours}/gamma", "vector")
    yield TensorMapping(f"{theirs}.bias", (width,), f"{ours}/beta", "vector")


def _resnet(
    theirs: str,
    ours: str,
    inputs: int,
    outputs: int,
    time: int | None = None,
    projections: int = 1,
) -> Iterator[TensorMapping]:
    yield from _norm(f"{theirs}.norm1", f"{ours}/norm1", inputs)
    yield from _conv(f"{theirs}.conv1", f"{ours}/conv1", inputs, outputs)
    if time is not None:
        projected = projections * outputs
        yield from _dense(f"{theirs}.time_emb_proj", f"{ours}/time", time, projected)
    yield from _norm(f"{theirs}.norm2", f"{ours}/norm2", outputs)
    yield from _conv(f"{theirs}.conv2", f"{ours}/conv2", outputs, outputs)
    if inputs != outputs:
        yield from _conv(f"{theirs}.conv_shortcut", f"{ours}/shortcut", inputs, outputs, 1)


def _autoencoder_middle(half: str, width: int) -> Iterator[TensorMapping]:
    theirs, ours = f"{half}.mid_block", f"{half}/mid"
    yield from _resnet(f"{theirs}.resnets.0", f"{ours}_block_0", width, width)
    yield from _attention_block(f"{theirs}.attentions.0", f"{ours}_attention", width)
    yield from _resnet(f"{theirs}.resnets.1", f"{ours}_block_1", width, width)


def _attention_block(theirs: str, ours: str, width: int) -> Iterator[TensorMapping]:
    yield from _norm(f"{theirs}.group_norm", f"{ours}/norm", width)
    for name, layer in PROJECTIONS.items():
        yield from _dense(f"{theirs}.{name}", f"{ours}/{layer}", width, width)


PROJECTIONS = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "out"}


def _transformer(
    theirs: str, ours: str, width: int, context_dim: int, projection: str
) -> Iterator[TensorMapping]:
    yield from _norm(f"{theirs}.norm", f"{ours}/norm", width)
    yield from _dense(f"{theirs}.proj_in", f"{ours}/proj_in", width, width, projection)
    inner = f"{theirs}.transformer_blocks.0"
    attentions = (("attn1", "self_attention", width), ("attn2", "cross_attention", context_dim))
    for number, (attention, layer, source) in enumerate(attentions, start=1):
        yield from _norm(f"{inner}.norm{number}", f"{ours}/norm{number}", width)
        for name, dense in PROJECTIONS.items():
            yield from _dense(
                f"{inner}.{attention}.{name}",
                f"{ours}/{layer}/{dense}",
                source if dense in ("key", "value") else width,
                width,
                bias=dense == "out",
            )
    yield from _norm(f"{inner}.norm3", f"{ours}/norm3", width)
    yield from _dense(f"{inner}.ff.net.0.proj", f"{ours}/ff_in", width, 8 * width)
    yield from _dense(f"{inner}.ff.net.2", f"{ours}/ff_out", 4 * width, width)
    yield from _dense(f"{theirs}.proj_out", f"{ours}/proj_out", width, width, projection)
