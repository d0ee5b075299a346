"""Layers that change the size of a feature map back: nearest ×2 with a convolution, and a crop.

On the way down n positions become ⌈n/2⌉. On the way up ⌈n/2⌉ become 2⌈n/2⌉, one too many where n
is odd. Both layers here then take the size of the skip connection, so that any size comes out as
it went in. diffusers does the same in its `UNet2DConditionModel`.
"""

from __future__ import annotations

import itertools
from typing import Any

import keras
from keras import layers, ops

from latentddpm.models.layers import PACKAGE, PaddedConv2D, Shape


@keras.saving.register_keras_serializable(package=PACKAGE)
class Upsample(layers.Layer):
    """Upsampling: nearest neighbour ×2, then a 3×3 convolution.

    Every input pixel becomes four equal ones, so the weights of the kernel that multiply the same
    input pixel can be added up first. That gives a transposed convolution of stride 2 with the
    kernel

        K₄[u, v] = Σ_{a, b ∈ {0, 1}} K₃[u − a, v − b]      (K₃ turned by 180°, zero outside)

    The output is the same, with 16 instead of 36 multiplications per input pixel and without the
    enlarged input in memory. The layer's weights are those of the 3×3 convolution.

    Of an odd size 2n − 1 the last position is not repeated. What the copy past the end has added
    to that position, by the kernel's last row or column, is taken away again; where both sides
    are odd, what was taken away twice at the corner is given back. Sizes that are not known before
    run time, those of exported models, are treated as odd, times 0 where they are even.

    Args:
        channels: output channels.

    Call arguments:
        inputs: (B, h, w, c) → (B, 2h, 2w, channels); also in one and three dimensions.
        like: feature map whose size the output takes, 2h or 2h − 1 along each side.
    """

    def __init__(self, channels: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.channels = channels
        self.conv = PaddedConv2D(channels, 3, padding=1, name="conv", dtype=self.dtype_policy)

    def build(self, inputs_shape: Shape, like_shape: Shape | None = None) -> None:
        enlarged = self.compute_output_shape(inputs_shape, like_shape)[:-1]
        self.conv.build((*enlarged, inputs_shape[-1]))
        self.built = True

    def call(self, inputs, like=None):
        outputs, bias = self._transposed(inputs), self.conv.conv.bias
        if like is None:
            return outputs + bias
        twice = [2 * side for side in ops.shape(inputs)[1:-1]]
        sides = ops.shape(like)[1:-1]
        excess = {
            axis: large - small
            for axis, (large, small) in enumerate(zip(twice, sides, strict=True))
            if not (isinstance(large, int) and large == small)
        }
        if not excess:
            return outputs + bias
        outputs = crop(outputs, like)
        for count in range(1, len(excess) + 1):
            for axes in itertools.combinations(excess, count):
                added = self._transposed(inputs, axes)
                zeros = [(0, 0)] * len(inputs.shape)
                for axis in axes:
                    added = added * ops.cast(excess[axis], added.dtype)
                    zeros[axis + 1] = (sides[axis] - 1, 0)
                added = crop(ops.pad(added, zeros), like)
                outputs = outputs + added if count % 2 == 0 else outputs - added
        return outputs + bias

    def _transposed(self, inputs, ends: tuple[int, ...] = ()):
        """Transposed convolution; along the axes `ends` only what is past the end adds to it."""
        dims = range(len(inputs.shape) - 2)
        others = [axis for axis in dims if axis not in ends]
        kernel = self.conv.conv.kernel  # (3, 3, c, channels)
        if ends:
            last = tuple(slice(-1 if axis in ends else 0, None) for axis in dims)
            inputs, kernel = inputs[(slice(None), *last)], kernel[last]
        if others:
            kernel = ops.flip(kernel, axis=tuple(others))
        shifts = itertools.product(*([(0, 0)] if k in ends else [(0, 1), (1, 0)] for k in dims))
        kernel = sum(ops.pad(kernel, (*shift, (0, 0), (0, 0))) for shift in shifts)
        kernel = ops.swapaxes(kernel, -2, -1)  # (4, 4, channels, c)
        strides = tuple(1 if axis in ends else 2 for axis in dims)
        return ops.conv_transpose(inputs, kernel, strides, "same")

    def compute_output_shape(self, inputs_shape: Shape, like_shape: Shape | None = None) -> Shape:
        batch, *sides, _ = inputs_shape
        if like_shape is not None:
            return (batch, *like_shape[1:-1], self.channels)
        return (batch, *(None if side is None else 2 * side for side in sides), self.channels)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "channels": self.channels}


@keras.saving.register_keras_serializable(package=PACKAGE)
class CropLike(layers.Layer):
    """Crop to the size of another feature map, at the ends.

    Call arguments:
        inputs: (B, …, C) → (B, size of `like`, C).
        like: (B, …, D), no larger than `inputs`.
    """

    def call(self, inputs, like):
        return crop(inputs, like)

    def compute_output_shape(self, inputs_shape: Shape, like_shape: Shape) -> Shape:
        return (inputs_shape[0], *like_shape[1:-1], inputs_shape[-1])


def crop(inputs, like):
    """Feature map `inputs` cropped at the ends to the size of `like`."""
    sides = ops.shape(like)[1:-1]
    return inputs[(slice(None), *(slice(0, side) for side in sides))]
