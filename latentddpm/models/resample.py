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
    enlarged input in memory. The layer's weights are those of the 3×3 convolution. An odd size has
    no such kernel: of 2n − 1 positions the last one is not repeated, and past it are zeros.

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
        self.conv.build(
            (*self.compute_output_shape(inputs_shape, like_shape)[:-1], inputs_shape[-1])
        )
        self.built = True

    def call(self, inputs, like=None):
        if like is None:
            return self._twice(inputs)
        small, large = ops.shape(inputs)[1:-1], ops.shape(like)[1:-1]
        known = all(isinstance(side, int) for side in (*small, *large))
        pairs = list(zip(small, large, strict=True))
        if known:
            even = all(2 * side == other for side, other in pairs)
            return self._twice(inputs) if even else self._cropped(inputs, like)
        # Sizes are known in training and sampling; unknown ones are those of exported models.
        even = ops.all(ops.stack([ops.equal(2 * side, other) for side, other in pairs]))
        return ops.cond(even, lambda: self._twice(inputs), lambda: self._cropped(inputs, like))

    def _twice(self, inputs):
        """Output of twice the size, by a transposed convolution."""
        dims = len(inputs.shape) - 2
        kernel = ops.flip(self.conv.conv.kernel, axis=tuple(range(dims)))  # (3, 3, c, channels)
        shifts = [
            (*((a, 1 - a) for a in corner), (0, 0), (0, 0))
            for corner in itertools.product((0, 1), repeat=dims)
        ]
        kernel = sum(ops.pad(kernel, shift) for shift in shifts)
        kernel = ops.swapaxes(kernel, -2, -1)  # (4, 4, channels, c)
        return ops.conv_transpose(inputs, kernel, 2, "same") + self.conv.conv.bias

    def _cropped(self, inputs, like):
        """Output of the size of `like`, by repeating, cropping and convolving."""
        for axis in range(1, len(inputs.shape) - 1):
            inputs = ops.repeat(inputs, 2, axis=axis)
        return self.conv(crop(inputs, like))

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
