"""Layers and blocks of the autoencoder and the UNet.

    ResnetBlock     h = inputs + conv(silu(norm(conv(silu(norm(inputs))) + time)))
    or              h = inputs + conv(silu(norm(conv(silu(norm(inputs)))) · (1 + scale) + shift))

as in Ho et al. 2020 (appendix B) and Rombach et al. 2022 (appendix E), or with the AdaGN of
Dhariwal & Nichol 2021 (§3.1). Attention is in `models.attention`, upsampling in `models.resample`.

Everything is channels-last, and works in one, two and three dimensions: (B, L, C), (B, H, W, C)
and (B, D, H, W, C). The rank of its input tells a layer which. `PaddedConv2D` is named after two,
because archives number layers by the names of their classes.

Every block has `build` and `compute_output_shape`, so that a network is built by arithmetic on
shapes. Without them Keras traces the `call` of each block once more while building, which took
most of the time to a first training step.
"""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import layers, ops

from latentddpm.models.shapes import positions_of, shape_of
from latentddpm.utils.machine.memory import count_weights, is_blank

PACKAGE = "latentddpm"
Shape = tuple[int | None, ...]


@keras.saving.register_keras_serializable(package=PACKAGE)
class GroupNormalization(layers.GroupNormalization):
    """Group normalisation over the last axis of (B, …, C), faster than Keras's own.

    `keras.layers.GroupNormalization` computes the moments of (B, H, W, G, C/G) over three axes at
    once, which TensorFlow does slowly on a CPU, and inexactly in float32: at 256×256×128 with an
    error of 2e-4. Here the moments of each channel come first, and those of a group follow from
    them (law of total variance):

        μ_g = mean of μ_c          σ_g² = mean of σ_c² + (μ_c − μ_g)²

    It has the same arguments, weights and outputs, and is three times as fast. All is computed in
    float32, from weights in half precision too.
    The class has the name of Keras's class because archives number layers by their class names.

    Args:
        kwargs: see `keras.layers.GroupNormalization`.
    """

    def call(self, inputs):
        grouped = (self.groups, inputs.shape[-1] // self.groups)  # (G, C/G)
        hidden = ops.cast(inputs, "float32")
        hidden = ops.reshape(hidden, positions_of(inputs, *grouped))  # (B, P, G, C/G)
        channel_mean = ops.mean(hidden, axis=1, keepdims=True)  # (B, 1, G, C/G)
        channel_variance = ops.mean(ops.square(hidden - channel_mean), axis=1, keepdims=True)
        mean = ops.mean(channel_mean, axis=3, keepdims=True)  # (B, 1, G, 1)
        spread = channel_variance + ops.square(channel_mean - mean)
        variance = ops.mean(spread, axis=3, keepdims=True)
        gamma, beta = (ops.cast(one, "float32") for one in (self.gamma, self.beta))
        scale = ops.rsqrt(variance + self.epsilon) * ops.reshape(gamma, grouped)
        shift = ops.reshape(beta, grouped) - mean * scale  # (B, 1, G, C/G)
        hidden = ops.reshape(hidden * scale + shift, shape_of(inputs))
        return ops.cast(hidden, self.compute_dtype)


def group_norm(channels: int, groups: int, epsilon: float, **kwargs: Any) -> layers.Layer:
    """Group normalisation of `channels` channels in `groups` groups.

    Args:
        channels: of the input.
        groups: a divisor of `channels`.
        epsilon: added to the variance.
        kwargs: see `keras.layers.Layer`.

    Raises:
        ValueError: `groups` does not divide `channels`.
    """
    if channels % groups:
        raise ValueError(f"norm_groups={groups} does not divide {channels} channels")
    return GroupNormalization(groups=groups, epsilon=epsilon, **kwargs)


def zeros_or_default(zero_init: bool = False, default: str = "glorot_uniform") -> Any:
    """Kernel initializer: Glorot uniform or another default, or zeros.

    Args:
        zero_init: zeros. A residual block whose last kernel is zero is the identity.
        default: name of the initializer without `zero_init`.
    """
    if is_blank():
        return _counted_zeros
    return "zeros" if zero_init else default


def _counted_zeros(shape: Shape, dtype: Any = None) -> Any:
    count_weights(math.prod(shape))
    return ops.zeros(shape, dtype)


def of_rank(name: str, dims: int) -> type[layers.Layer]:
    """Keras's layer class for a number of dimensions.

    Args:
        name: of the class, with braces for the number, such as "Conv{}D".
        dims: 1, 2 or 3.

    Raises:
        ValueError: another number of dimensions.
    """
    if dims not in (1, 2, 3):
        raise ValueError(f"spatial_dims={dims}, expected 1, 2 or 3")
    return getattr(layers, name.format(dims))


@keras.saving.register_keras_serializable(package=PACKAGE)
class Dense(layers.Dense):
    """Dense layer that multiplies one matrix, (B·L, C), whatever the rank of its input (B, …, C).

    Keras's own asks for every unknown size, and adds the bias where TensorFlow cannot fuse it. It
    has the name of Keras's class because archives number layers by their class names.

    Args:
        kwargs: see `keras.layers.Dense`.
    """

    def call(self, inputs, training=None):
        if len(inputs.shape) == 2:
            return super().call(inputs, training=training)
        flat = ops.reshape(inputs, (-1, inputs.shape[-1]))
        outputs = super().call(flat, training=training)
        return ops.reshape(outputs, (*shape_of(inputs)[:-1], self.units))


def dense(units: int, zero_init: bool = False, **kwargs: Any) -> layers.Layer:
    """Dense layer with `units` outputs.

    Args:
        units: width of the output.
        zero_init: start from a zero kernel.
        kwargs: see `keras.layers.Dense`.
    """
    return Dense(units, kernel_initializer=zeros_or_default(zero_init), **kwargs)


@keras.saving.register_keras_serializable(package=PACKAGE)
class PaddedConv2D(layers.Layer):
    """Convolution after explicit zero padding, which places strides as PyTorch does.

    Args:
        channels: output channels.
        kernel: side of the kernel, equal in all dimensions.
        padding: zeros before and after, one number for all sides or a pair for each dimension,
            such as `((top, bottom), (left, right))`; "same" places them as TensorFlow does.
        stride: step of the convolution.
        zero_init: start from a zero kernel.

    Call arguments:
        inputs: (B, L, C), (B, H, W, C) or (B, D, H, W, C).
    """

    def __init__(
        self,
        channels: int,
        kernel: int = 3,
        padding: int | str | tuple[tuple[int, int], ...] = 0,
        stride: int = 1,
        zero_init: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.channels = channels
        self.kernel = kernel
        self.padding = padding
        if not isinstance(padding, int | str):
            self.padding = tuple(map(tuple, padding))
        self.stride = stride
        self.zero_init = zero_init
        self.sides: tuple[tuple[int, int], ...] = ()
        self.same = False

    def build(self, input_shape: Shape) -> None:
        dims = len(input_shape) - 2
        self.sides = self._sides(dims)
        # With stride 1 and (kernel - 1) / 2 zeros on every side, "same" is the identical
        # convolution without the copy that an explicit padding makes.
        half = (self.kernel // 2,) * 2
        self.same = self.stride == 1 and self.kernel % 2 == 1 and self.sides == (half,) * dims
        self.same = self.same or self.padding == "same"
        self.conv = of_rank("Conv{}D", dims)(
            self.channels,
            self.kernel,
            strides=self.stride,
            padding="same" if self.same else "valid",
            kernel_initializer=zeros_or_default(self.zero_init),
            name="conv",
            dtype=self.dtype_policy,
        )
        self.conv.build(input_shape)
        self.built = True

    def call(self, inputs):
        if not self.same and any(map(any, self.sides)):
            inputs = ops.pad(inputs, ((0, 0), *self.sides, (0, 0)))
        padding = "same" if self.same else "valid"
        outputs = ops.conv(inputs, self.conv.kernel, self.stride, padding, "channels_last")
        # A bias of one dimension takes three operations less than that of Keras's layer.
        return ops.add(outputs, self.conv.bias)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        batch, *sides, _ = input_shape
        if self.padding == "same":
            sides = (None if side is None else -(-side // self.stride) for side in sides)
            return (batch, *sides, self.channels)
        sides = (
            None if side is None else (side + sum(zeros) - self.kernel) // self.stride + 1
            for side, zeros in zip(sides, self._sides(len(sides)), strict=True)
        )
        return (batch, *sides, self.channels)

    def _sides(self, dims: int) -> tuple[tuple[int, int], ...]:
        """Zeros before and after each of `dims` dimensions."""
        padding = 0 if self.padding == "same" else self.padding
        return ((padding, padding),) * dims if isinstance(padding, int) else padding

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "channels": self.channels,
            "kernel": self.kernel,
            "padding": self.padding,
            "stride": self.stride,
            "zero_init": self.zero_init,
        }


class Recomputable:
    """Mixin of blocks that can be made in a `keras.RematScope`.

    Keras passes `training` as a keyword argument, which TensorFlow's `recompute_grad` does not
    accept in a graph. Here it is bound to the call first.
    """

    def rematerialized_call(self, layer_call: Any, *_: Any, **__: Any) -> Any:
        def call(*tensors: Any, **settings: Any) -> Any:
            return keras.remat(lambda *inner: layer_call(*inner, **settings))(*tensors)

        return call


@keras.saving.register_keras_serializable(package=PACKAGE)
class ResnetBlock(Recomputable, layers.Layer):
    """Residual block: norm → SiLU → conv3 → [+ time] → norm → SiLU → conv3, plus its input.

    Args:
        channels: output channels. If the input has another number, a 1×1 convolution adapts it.
        norm_groups, norm_epsilon: of both group norms.
        dropout: rate before the last convolution.
        zero_init: start as the identity, with the kernel of the last convolution at zero.
        time_scale_shift: the time embedding multiplies and shifts the second norm's output.

    Call arguments:
        inputs: (B, …, C) → (B, …, channels).
        time_embedding: (B, E); SiLU and a dense layer project it to (B, channels), which is added
            at every position, or to twice as many, scale and shift. The autoencoder has none.
    """

    def __init__(
        self,
        channels: int,
        norm_groups: int = 32,
        norm_epsilon: float = 1e-6,
        dropout: float = 0.0,
        zero_init: bool = False,
        time_scale_shift: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.channels = channels
        self.norm_groups = norm_groups
        self.norm_epsilon = norm_epsilon
        self.dropout_rate = dropout
        self.zero_init = zero_init
        self.time_scale_shift = time_scale_shift
        dtype = {"dtype": self.dtype_policy}
        self.norm1 = GroupNormalization(norm_groups, epsilon=norm_epsilon, name="norm1", **dtype)
        self.conv1 = PaddedConv2D(channels, 3, padding=1, name="conv1", **dtype)
        self.norm2 = group_norm(channels, norm_groups, norm_epsilon, name="norm2", **dtype)
        self.dropout = layers.Dropout(dropout, name="dropout", **dtype) if dropout else None
        self.conv2 = PaddedConv2D(
            channels, 3, padding=1, zero_init=zero_init, name="conv2", **dtype
        )
        self.time = None
        self.shortcut = None

    def build(self, inputs_shape: Shape, time_embedding_shape: Shape | None = None) -> None:
        if inputs_shape[-1] % self.norm_groups:
            raise ValueError(
                f"norm_groups={self.norm_groups} does not divide {inputs_shape[-1]} channels"
            )
        hidden_shape = (*inputs_shape[:-1], self.channels)
        self.norm1.build(inputs_shape)
        self.conv1.build(inputs_shape)
        self.norm2.build(hidden_shape)
        self.conv2.build(hidden_shape)
        if time_embedding_shape is not None:
            outputs = (1 + self.time_scale_shift) * self.channels
            self.time = dense(outputs, name="time", dtype=self.dtype_policy)
            self.time.build(time_embedding_shape)
        if inputs_shape[-1] != self.channels:
            self.shortcut = PaddedConv2D(
                self.channels, 1, name="shortcut", dtype=self.dtype_policy
            )
            self.shortcut.build(inputs_shape)
        self.built = True

    def call(self, inputs, time_embedding=None, training=None):
        hidden = self.conv1(ops.silu(self.norm1(inputs)))
        if time_embedding is None:
            hidden = self.norm2(hidden)
        else:
            time = self.time(ops.silu(time_embedding))
            time = ops.expand_dims(time, tuple(range(1, len(inputs.shape) - 1)))
            if self.time_scale_shift:
                scale, shift = ops.split(time, 2, axis=-1)
                hidden = self.norm2(hidden) * (1 + scale) + shift
            else:
                hidden = self.norm2(hidden + time)
        hidden = ops.silu(hidden)
        if self.dropout is not None:
            hidden = self.dropout(hidden, training=training)
        hidden = self.conv2(hidden)
        return hidden + (inputs if self.shortcut is None else self.shortcut(inputs))

    def compute_output_shape(
        self, inputs_shape: Shape, time_embedding_shape: Shape | None = None
    ) -> Shape:
        return (*inputs_shape[:-1], self.channels)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "channels": self.channels,
            "norm_groups": self.norm_groups,
            "norm_epsilon": self.norm_epsilon,
            "dropout": self.dropout_rate,
            "zero_init": self.zero_init,
            "time_scale_shift": self.time_scale_shift,
        }
