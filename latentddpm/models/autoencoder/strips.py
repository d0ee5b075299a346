"""Strips: an encoder or decoder run in horizontal strips of an image, with little memory.

Cutting an image into tiles and blending the results changes the image, because a group norm takes
its moments over all of it and the attention in the middle sees all of it. Here every layer is
finished on all strips before the next layer starts, so that both are those of the whole image:

    3×3 convolution   of a strip with one row of each neighbour, which is then cropped
    group norm        with the merged moments of all strips (Chan, Golub & LeVeque 1983), float64
                          n = n₁ + n₂    δ = μ₂ − μ₁    μ = μ₁ + δ n₂/n    M = M₁ + M₂ + δ² n₁n₂/n
    attention         of the queries of a strip to the keys and values of all strips

The result differs from that of one pass by the order of summation, about 1e-5. Feature maps are in
main memory, at most two of them: the input of a block, and the features between its convolutions.
A layer that keeps the shape overwrites its input. The device holds one strip. The upsampled input
of the first block of a level, the largest array of all, is computed three times and never stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import layers, ops
from tqdm import tqdm

from latentddpm.models.attention import AttentionBlock, attention
from latentddpm.models.layers import GroupNormalization, PaddedConv2D, ResnetBlock
from latentddpm.models.resample import Upsample


def run_in_strips(
    network: keras.Model, inputs: np.ndarray, rows: int, progress: bool = False
) -> np.ndarray:
    """Output `network(inputs)` of an encoder or decoder, computed in strips.

    Args:
        network: an `Encoder` or a `Decoder`.
        inputs: (B, H, W, C).
        rows: input rows of a strip; for an encoder a multiple of its downsample factor.
        progress: show a progress bar on stderr when it takes more than two seconds.

    Returns:
        float32, the shape of `network(inputs)`.

    Raises:
        TypeError: the network has a layer of another kind than those in `RULES`.
    """
    source = _Map(inputs.copy(), rows)
    chain = [one for one in network.layers if not isinstance(one, layers.InputLayer)]
    bar = tqdm(chain, "strips", unit="layer", delay=2, disable=not progress, leave=False)
    with np.errstate(over="ignore", invalid="ignore"):  # as in one pass; the caller checks
        for layer in bar:
            if isinstance(layer, Upsample):
                source = source._replace(upsample=layer)
            else:
                source = _rule(layer)(layer, source)
    return source.values.astype(np.float32, copy=False)


class _Map(NamedTuple):
    """Feature map (B, H, W, C) that is read in strips, from top to bottom.

    It is a single array: if every strip had its own memory, freed strips would lie between used
    ones, and their memory would not go back to the system.

    Attributes:
        values: the feature map.
        rows: number of rows of a strip.
        upsample: layer that is applied to every strip when it is read.
    """

    values: np.ndarray
    rows: int
    upsample: Upsample | None = None

    def own(self) -> Iterator[Any]:
        """Strips without rows of their neighbours."""
        for strip, above, below in self.padded():
            yield strip[:, above : strip.shape[1] - below]

    def padded(self, above: bool = True) -> Iterator[tuple[Any, int, int]]:
        """Strips with the adjacent row of each neighbour, and how many rows were added.

        At the edges of the image no row is added; there the convolution pads with zeros. After a
        strip was read its rows in `values` may be overwritten.

        Args:
            above: add the row of the upper neighbour too.

        Returns:
            An iterator of (strip, rows added above, rows added below).
        """
        height = self.values.shape[1]
        edge = self.values[:, :0]
        for top in range(0, height, self.rows):
            padded = np.concatenate([edge, self.values[:, top : top + self.rows + 1]], axis=1)
            before, after = edge.shape[1], int(top + self.rows < height)
            if above:
                edge = padded[:, padded.shape[1] - after - 1 : padded.shape[1] - after].copy()
            if self.upsample is not None:  # the outer one of two upsampled rows lacks a neighbour
                padded = self.upsample(padded)
                padded = padded[:, before : padded.shape[1] - after]
            yield padded, before, after

    def filled(self, strips: Iterator[np.ndarray], keep: bool = False) -> _Map:
        """Feature map that consists of `strips`, one for each strip of this map.

        Args:
            strips: arrays of equal height, but for the last.
            keep: do not overwrite this map, even if shape and type are equal.
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
    """Moments, the mean and variance of every channel, accumulated over strips."""

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
        """Function that applies `norm` with these moments to a strip."""
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


# --- Rules: how each kind of layer is computed in strips -----------------------------------


def _rule(layer: layers.Layer) -> Callable[[Any, _Map], _Map]:
    for kind, rule in RULES.items():
        if isinstance(layer, kind):
            return rule
    raise TypeError(f"{layer.name}: no rule to run a {type(layer).__name__} in strips")


def _convolution(layer: PaddedConv2D, source: _Map) -> _Map:
    # A strided convolution pads below and on the right, and needs no row above.
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
    batch, *_, channels = source.values.shape

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

    return source.filled(map(attended, source.own()))


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
    """Rows of a strip without those added from its neighbours, in main memory."""
    return np.asarray(strip)[:, above : strip.shape[1] - below]


RULES = {
    PaddedConv2D: _convolution,
    ResnetBlock: _resnet_block,
    AttentionBlock: _attention_block,
    GroupNormalization: _group_norm,
    layers.Activation: _pointwise,
}
