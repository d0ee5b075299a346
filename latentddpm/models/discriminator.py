"""Discriminator of patches (PatchGAN): a logit for each patch of an image, real or not.

Strided 4×4 convolutions give one logit per patch (Isola et al. 2017, appendix 6.1.2; with the
widths of Esser et al. 2021, who added it to an autoencoder). With three layers a logit sees 70×70
pixels:

    conv4 s2 → LeakyReLU → (conv4 s2 → norm → LeakyReLU) × (layers − 1)
                         → conv4 s1 → norm → LeakyReLU → conv4 s1

Published discriminators use batch norm, with which the output for an image depends on the other
images of its batch: real and generated images, replicas and micro-batches would each have their
own statistics. Here it is group norm; instance norm is group norm with one channel per group.

Spectral normalisation divides each kernel W, as a matrix (in · 16, out), by its largest singular
value σ (Miyato et al. 2018, algorithm 1). It follows from vectors u and v, which one power
iteration per training step refines:

    v ← W u / ‖W u‖        u ← Wᵀ v / ‖Wᵀ v‖        σ = vᵀ W u        W̄ = W / σ

Gradients flow through σ, not through u and v.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import initializers, layers, ops

from latentddpm.errors import check_choice
from latentddpm.models.functional import FunctionalModel, constructor_arguments
from latentddpm.models.layers import PACKAGE, Shape, group_norm

NORMS = ("group", "instance", "none")
LEAK = 0.2
MAX_WIDTH = 8
"""Width of the widest layer, in units of `channels`."""


@keras.saving.register_keras_serializable(package=PACKAGE)
class SpectralConv2D(layers.Conv2D):
    """Convolution with spectral normalisation: `keras.layers.Conv2D`, with W / σ for its kernel.

    Only `refine` changes u, so that a call is a function of the weights and the inputs.

    Args:
        kwargs: see `keras.layers.Conv2D`.
    """

    def build(self, input_shape: Shape) -> None:
        super().build(input_shape)
        self.direction = self.add_weight(
            (self.filters,),
            initializers.RandomNormal(seed=0),
            trainable=False,
            name="direction",
            # Every replica computes the same vector from the same weights.
            aggregation="only_first_replica",
        )

    def refine(self) -> None:
        """Refine u by one power iteration."""
        self.direction.assign(self._vectors()[1])

    def call(self, inputs):
        left, right = (ops.stop_gradient(vector) for vector in self._vectors())
        matrix = self._matrix()
        matrix = matrix / ops.sum(left * ops.matmul(matrix, right))
        kernel = ops.reshape(ops.cast(matrix, self.compute_dtype), self.kernel.shape)
        outputs = self.convolution_op(inputs, kernel)
        return outputs if self.bias is None else outputs + self.bias

    # Those of a Keras convolution store the kernel and the bias only.
    def save_own_variables(self, store: Any) -> None:
        layers.Layer.save_own_variables(self, store)

    def load_own_variables(self, store: Any) -> None:
        layers.Layer.load_own_variables(self, store)

    def _vectors(self) -> tuple[Any, Any]:
        """Vectors v and u after one power iteration from the stored u."""
        matrix = self._matrix()
        left = _unit(ops.matmul(matrix, ops.cast(self.direction, "float32")))
        return left, _unit(ops.matmul(ops.transpose(matrix), left))

    def _matrix(self) -> Any:
        """Matrix W, in float32 whatever the dtype policy."""
        return ops.cast(ops.reshape(self.kernel, (-1, self.filters)), "float32")


@keras.saving.register_keras_serializable(package=PACKAGE)
class PatchDiscriminator(FunctionalModel):
    """Discriminator of patches (PatchGAN): images to a logit for each of their patches.

    Args:
        channels: width of the first layer; every further layer is twice as wide, at most eight
            times `channels`.
        num_layers: number of layers of stride 2.
        norm: "group", "instance" or "none".
        norm_groups: groups of the group norms; at most one per channel.
        spectral_norm: divide every kernel by its largest singular value.
        image_channels: 3 for RGB.
        dtype: dtype or dtype policy of the layers.
        name: of the Keras model.

    Call arguments:
        inputs: (B, H, W, image_channels) in [-1, 1], sides of at least 4 · 2^num_layers.

    Returns:
        Logits (B, h, w, 1), float32; large where a patch looks real.

    Raises:
        ValueError: sizes that are not positive, or `norm_groups` that do not divide a width.
        UserError: an unknown `norm`.

    Example:
        >>> discriminator = latentddpm.PatchDiscriminator(channels=8, num_layers=2, norm_groups=4)
        >>> tuple(discriminator(np.zeros((1, 32, 32, 3), "float32")).shape)
        (1, 6, 6, 1)
    """

    def __init__(
        self,
        channels: int = 64,
        num_layers: int = 3,
        norm: str = "group",
        norm_groups: int = 32,
        spectral_norm: bool = False,
        image_channels: int = 3,
        dtype: Any = None,
        name: str = "discriminator",
    ) -> None:
        config = constructor_arguments(locals())
        check_choice("norm", norm, NORMS)
        if min(channels, num_layers, norm_groups, image_channels) < 1:
            raise ValueError(
                "channels, num_layers, norm_groups, image_channels: expected 1 or more"
            )
        inputs = keras.Input((None, None, image_channels), name="images", dtype="float32")
        hidden = inputs
        for level in range(num_layers + 1):
            width = channels * min(2**level, MAX_WIDTH)
            stride = 1 if level == num_layers else 2
            hidden = _convolution(hidden, width, stride, spectral_norm, dtype, f"conv_{level}")
            if level > 0 and norm != "none":
                groups = width if norm == "instance" else min(norm_groups, width)
                hidden = group_norm(width, groups, 1e-5, dtype=dtype, name=f"norm_{level}")(hidden)
            # LeakyReLU as a maximum: TensorFlow warns of the layer's gradient inside a condition.
            hidden = ops.maximum(hidden, LEAK * hidden)
        logits = _convolution(hidden, 1, 1, spectral_norm, "float32", "logits")
        super().__init__(inputs, logits, config, name=name)

    def refine(self) -> None:
        """Refine the vectors of spectral normalisation, once per training step."""
        for layer in self.layers:
            if isinstance(layer, SpectralConv2D):
                layer.refine()


def _convolution(
    hidden: Any, width: int, stride: int, spectral_norm: bool, dtype: Any, name: str
) -> Any:
    """Output of a 4×4 convolution, zero padding of 1, kernel from N(0, 0.02²)."""
    kind = SpectralConv2D if spectral_norm else layers.Conv2D
    hidden = layers.ZeroPadding2D(1, dtype=dtype, name=f"{name}_pad")(hidden)
    return kind(
        width,
        4,
        strides=stride,
        kernel_initializer=initializers.RandomNormal(stddev=0.02),
        dtype=dtype,
        name=name,
    )(hidden)


def _unit(vector: Any) -> Any:
    return vector / (ops.sqrt(ops.sum(ops.square(vector))) + 1e-12)
