"""An autoencoder's half run in horizontal strips, layer by layer: the whole image's answer in a
fraction of the memory.

Cutting an image into tiles and blending them changes it: group norm takes its moments over the
whole image, and the attention in the middle looks at all of it. Here every layer is finished on
all strips before the next one starts, so that both are as for the whole:

    3×3 convolution   a strip with one row of each neighbour, cropped afterwards
    group norm        moments of the strips, merged (Chan, Golub & LeVeque 1983), in float64
                          n = n₁ + n₂    δ = μ₂ − μ₁    μ = μ₁ + δ n₂/n    M = M₁ + M₂ + δ² n₁n₂/n
    attention         queries of a strip, keys and values of all

What differs from one pass is the order of summation, about 1e-5. Feature maps wait in main
memory, whole, at most two of them (a block's input and what is between its convolutions), and a
layer that keeps the shape writes over its input; the device holds a strip. The double-sized input
of a level's first block, the largest of all, is made three times and never kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import layers, ops
from tqdm import tqdm

from latentddpm.models.attention import AttentionBlock, attention
from latentddpm.models.layers import GroupNormalization, PaddedConv2D, ResnetBlock, Upsample

MOST_SCORES = 1 << 24
"""Of queries with keys, at a time: TensorFlow keeps the memory that its operations once needed."""


def run_in_strips(
    network: keras.Model, inputs: np.ndarray, rows: int, progress: bool = False
) -> np.ndarray:
    """`network(inputs)` of an `Encoder` or a `Decoder`, in strips of `rows` input rows.

    Args:
        inputs: (B, H, W, C).
        rows: a multiple of the encoder's downsample factor; a decoder takes any number.
        progress: show a bar on stderr when it takes over two seconds.

    Returns:
        float32, the shape that one call would give.

    Raises:
        TypeError: the network has a layer that is not known here.
    """
    source = _Map(inputs.copy(), rows)
    chain = [one for one in network.layers if not isinstance(one, layers.InputLayer)]
    bar = tqdm(chain, "strips", unit="layer", delay=2, disable=not progress, leave=False)
    with np.errstate(over="ignore", invalid="ignore"):  # as in one pass; the caller looks
        for layer in bar:
            if isinstance(layer, Upsample):
                source = source._replace(upsample=layer)
            else:
                source = _rule(layer)(layer, source)
    return source.values.astype(np.float32, copy=False)


class _Map(NamedTuple):
    """A feature map (B, H, W, C) to be read in strips of so many rows from top to bottom, doubled
    on the way by `upsample`.

    One array for the map: where every strip is memory of its own, what is freed lies between what
    is still in use and does not go back to the system.
    """

    values: np.ndarray
    rows: int
    upsample: Upsample | None = None

    def own(self) -> Iterator[Any]:
        """Each strip as it is."""
        for strip, above, below in self.padded():
            yield strip[:, above : strip.shape[1] - below]

    def padded(self, above: bool = True) -> Iterator[tuple[Any, int, int]]:
        """Each strip with a row of the neighbour above and below, and how many rows these are.

        At the image's edges there is none: there the convolution's own zeros are right. A strip
        may be written over once it was read.
        """
        height = self.values.shape[1]
        edge = self.values[:, :0]
        for top in range(0, height, self.rows):
            padded = np.concatenate([edge, self.values[:, top : top + self.rows + 1]], axis=1)
            before, after = edge.shape[1], int(top + self.rows < height)
            if above:
                edge = padded[:, padded.shape[1] - after - 1 : padded.shape[1] - after].copy()
            if self.upsample is not None:  # of two doubled rows the outer one lacks its neighbour
                padded = self.upsample(padded)
                padded = padded[:, before : padded.shape[1] - after]
            yield padded, before, after

    def filled(self, strips: Iterator[np.ndarray], keep: bool = False) -> _Map:
        """The map made of `strips`, one for each strip of this one.

        Args:
            keep: write it beside this map; else over it, where shape and type are the same.
        """
        values, top = self.values, 0
        for strip in strips:
            if top == 0:
                rows = strip.shape[1]
                height = values.shape[1] * rows // min(self.rows, values.shape[1])
                shape = (len(strip), height, *strip.shape[2:])
                if keep or (shape, strip.dtype) != (values.shape, values.dtype):
                    values = np.empty(shape, strip.dtype)
            values[:, top : top + strip.shape[1]] = strip
            top += strip.shape[1]
        return _Map(values, rows)


class _Moments:
    """Mean and variance of every channel over strips that come one after the other."""

    def __init__(self) -> None:
        self.count, self.mean, self.squares = 0, 0.0, 0.0

    def add(self, strip: Any) -> None:
        values = ops.cast(strip, "float32")
        mean, variance = ops.moments(values, axes=(1, 2))  # (B, C)
        mean, variance = np.float64(mean), np.float64(variance)
        count = strip.shape[1] * strip.shape[2]
        total, delta = self.count + count, mean - self.mean
        self.mean = self.mean + delta * count / total
        self.squares = self.squares + variance * count + delta**2 * self.count * count / total
        self.count = total

    def normaliser(self, norm: GroupNormalization) -> Callable[[Any], Any]:
        """`norm` with these moments, for any strip."""
        batch, channels = self.mean.shape
        groups = (batch, norm.groups, channels // norm.groups)
        channel_mean = self.mean.reshape(groups)
        mean = channel_mean.mean(axis=2, keepdims=True)
        spread = (self.squares / self.count).reshape(groups) + (channel_mean - mean) ** 2
        variance = spread.mean(axis=2, keepdims=True)
        gamma, beta = (np.float64(v).reshape(groups[1:]) for v in (norm.gamma, norm.beta))
        scale = gamma / np.sqrt(variance + norm.epsilon)
        shift = beta - mean * scale
        scale, shift = (v.reshape(batch, 1, 1, channels).astype("float32") for v in (scale, shift))

        def normalise(strip: Any) -> Any:
            return ops.cast(ops.cast(strip, "float32") * scale + shift, norm.compute_dtype)

        return normalise


# --- The rules, one for each kind of layer -------------------------------------------------


def _rule(layer: layers.Layer) -> Callable[[Any, _Map], _Map]:
    for kind, rule in RULES.items():
        if isinstance(layer, kind):
            return rule
    raise TypeError(f"{layer.name}: no rule to run a {type(layer).__name__} in strips")


def _convolution(layer: PaddedConv2D, source: _Map) -> _Map:
    # The padding of a stride is below: the row above is not looked at.
    padded = source.padded(above=layer.stride == 1)
    if layer.stride > 1:
        return source.filled(np.asarray(layer(strip)) for strip, *_ in padded)
    return source.filled(_inner(layer(strip), above, below) for strip, above, below in padded)


def _resnet_block(block: ResnetBlock, source: _Map) -> _Map:
    moments = _Moments()

    def first(normalise: Callable[[Any], Any]) -> Iterator[np.ndarray]:
        for strip, above, below in source.padded():
            convolved = _inner(block.conv1(ops.silu(normalise(strip))), above, below)
            moments.add(convolved)
            yield convolved

    def second(normalise: Callable[[Any], Any]) -> Iterator[np.ndarray]:
        for (strip, above, below), own in zip(hidden.padded(), source.own(), strict=True):
            convolved = _inner(block.conv2(ops.silu(normalise(strip))), above, below)
            yield np.asarray(own if block.shortcut is None else block.shortcut(own)) + convolved

    hidden = source.filled(first(_normaliser(block.norm1, source)), keep=True)
    return hidden.filled(second(moments.normaliser(block.norm2)))


def _attention_block(block: AttentionBlock, source: _Map) -> _Map:
    normalise = _normaliser(block.norm, source)
    batch, height, width, channels = source.values.shape

    def tokens(strip: Any) -> Any:
        return ops.reshape(normalise(strip), (batch, -1, channels))

    def gathered(projection: layers.Layer) -> Any:
        hidden = (np.asarray(projection(normalise(strip))) for strip in source.own())
        values = source.filled(hidden, keep=True).values
        return ops.convert_to_tensor(values.reshape(batch, -1, channels))

    keys, values = gathered(block.key), gathered(block.value)

    def attended(strip: Any) -> np.ndarray:
        mixed = attention(block.query(tokens(strip)), keys, values, block.num_heads)
        return np.asarray(strip + ops.reshape(block.out(mixed), strip.shape))

    scores_of_a_row = batch * block.num_heads * width * height * width
    few = source._replace(rows=min(source.rows, max(MOST_SCORES // scores_of_a_row, 1)))
    return few.filled(map(attended, few.own()))._replace(rows=source.rows)


def _group_norm(norm: GroupNormalization, source: _Map) -> _Map:
    return _pointwise(_normaliser(norm, source), source)


def _pointwise(function: Callable[[Any], Any], source: _Map) -> _Map:
    return source.filled(np.asarray(function(strip)) for strip in source.own())


def _normaliser(norm: GroupNormalization, source: _Map) -> Callable[[Any], Any]:
    moments = _Moments()
    for strip in source.own():
        moments.add(strip)
    return moments.normaliser(norm)


def _inner(strip: Any, above: int, below: int) -> np.ndarray:
    """A strip's own rows, in main memory."""
    return np.asarray(strip)[:, above : strip.shape[1] - below]


RULES = {
    PaddedConv2D: _convolution,
    ResnetBlock: _resnet_block,
    AttentionBlock: _attention_block,
    GroupNormalization: _group_norm,
    layers.Activation: _pointwise,
}
