"""Perceptual distance between two images, from features of a VGG16 (LPIPS).

Both images pass through the thirteen convolutions of VGG16 (Simonyan & Zisserman 2015). After each
of its five blocks the features f, (h, w, C), are scaled to unit length at every position. Their
squared differences are weighted by channel, averaged over positions and summed over the blocks
(Zhang et al. 2018, eq. 1):

    f̂ = f / (‖f‖ + 1e-10)          d(x, y) = Σ_blocks mean_hw Σ_c w_c (f̂_c(x) − f̂_c(y))²

The weights w, called heads, were fitted to human judgements for the convolutions of torchvision's
VGG16. With these the distance is LPIPS. In another VGG16, such as that of its authors (in Caffe,
and so in Keras Applications), channel c has another meaning. There all channels of a block have
the same weight, and the distance is not called LPIPS. `label` is the name to print. `interop.vgg`
reads the weights.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import keras
from keras import layers, ops

from latentddpm.models.functional import FunctionalModel, constructor_arguments
from latentddpm.models.layers import PACKAGE, zeros_or_default

BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
"""Width and number of convolutions of each block of VGG16."""

SMALLEST_SIDE = 2 ** (len(BLOCKS) - 1)
EPSILON = 1e-10


@keras.saving.register_keras_serializable(package=PACKAGE)
class VGG16Features(FunctionalModel):
    """Features of VGG16 after the last ReLU of every block.

    Args:
        mean, std: of each channel of RGB in [-1, 1], to standardise the inputs by.
        dtype: dtype or dtype policy of the layers.
        name: of the Keras model.

    Call arguments:
        inputs: (B, H, W, 3) in [-1, 1], sides of at least 16.

    Returns:
        Five arrays, (B, H / 2ᵇ, W / 2ᵇ, C) for b = 0 .. 4.
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        dtype: Any = None,
        name: str = "vgg16",
    ) -> None:
        config = constructor_arguments(locals())
        inputs = keras.Input((None, None, 3), name="images", dtype="float32")
        hidden = (inputs - ops.array(mean, "float32")) / ops.array(std, "float32")
        features = []
        for block, (width, count) in enumerate(BLOCKS, start=1):
            if features:
                hidden = layers.MaxPooling2D(2, name=f"block{block}_pool", dtype=dtype)(hidden)
            for place in range(1, count + 1):
                hidden = layers.Conv2D(
                    width,
                    3,
                    padding="same",
                    activation="relu",
                    kernel_initializer=zeros_or_default(),
                    name=f"block{block}_conv{place}",
                    dtype=dtype,
                )(hidden)
            features.append(hidden)
        super().__init__(inputs, features, config, name=name)

    def convolutions(self) -> list[layers.Conv2D]:
        """Layers of the thirteen convolutions, in order."""
        return [layer for layer in self.layers if isinstance(layer, layers.Conv2D)]


@keras.saving.register_keras_serializable(package=PACKAGE)
class PerceptualDistance(keras.Model):
    """Perceptual distance between images; its weights are never trained.

    Args:
        label: name of the distance, such as "LPIPS (vgg16)".
        mean, std: of each channel of RGB in [-1, 1], by which the inputs of the convolutions were
            standardised in their training.

    Attributes:
        term: name of the distance in logs, such as "lpips_vgg16".

    Call arguments:
        images, references: (B, H, W, 3) in [-1, 1], sides of at least 16. Gradients flow into
            both. Other channels: see `three_channels`.

    Returns:
        float32 (B,), 0 for equal images.
    """

    def __init__(
        self, label: str, mean: Sequence[float], std: Sequence[float], **kwargs: Any
    ) -> None:
        kwargs.setdefault("name", "perceptual_distance")
        super().__init__(autocast=False, trainable=False, **kwargs)
        self.label = label
        self.term = re.sub(r"[^a-z0-9]+", "_", label.lower()).strip("_")
        self.mean, self.std = list(mean), list(std)
        self.features = VGG16Features(mean, std, dtype=self.dtype_policy)
        self.features.trainable = False
        self.heads = [
            self.add_weight((width,), "ones", "float32", trainable=False, name=f"head_{block}")
            for block, (width, _) in enumerate(BLOCKS)
        ]
        self.built = True

    def call(self, images: Any, references: Any) -> Any:
        images, references = three_channels(images), three_channels(references)
        # In two calls, so that an image without need of a gradient has none computed.
        pairs = zip(self.features(images), self.features(references), strict=True)
        total = 0.0
        for head, (ours, theirs) in zip(self.heads, pairs, strict=True):
            difference = ops.square(_unit(ours) - _unit(theirs))
            total = total + ops.mean(ops.sum(difference * head, axis=-1), axis=(1, 2))
        return total

    def get_config(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "dtype": self.dtype_policy.name,
            "label": self.label,
            "mean": self.mean,
            "std": self.std,
        }

    def get_compile_config(self) -> None:
        """None: the model is never trained."""


def three_channels(images: Any) -> Any:
    """Images with three channels, as VGG16 takes them: gray is repeated, of more the first three.

    Args:
        images: (B, H, W, C); of two channels the first one is repeated.
    """
    channels = images.shape[-1]
    if channels == 3:
        return images
    return ops.repeat(images[..., :1], 3, axis=-1) if channels < 3 else images[..., :3]


def _unit(features: Any) -> Any:
    """Features scaled to unit length at every position, in float32; all zeros stay zeros.

    The square root has no finite derivative at zero, so its argument is at least ε².
    """
    features = ops.cast(features, "float32")
    squares = ops.sum(ops.square(features), axis=-1, keepdims=True)
    return features / (ops.sqrt(ops.maximum(squares, EPSILON**2)) + EPSILON)
