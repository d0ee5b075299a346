"""Endpoints of exported models, and the check of what was exported.

    encode       images                              → mean, logvar (unscaled)
    denoise      noisy_latents, timesteps[, context]
                 [, conditions by their names]       → prediction
    decode       latents (scaled)                    → images
    encode_text  token_ids                           → context

An endpoint is a function of named tensors, its signature, and the network that it runs. The batch
size, the height and width, and the length of a context are free. A model of pixels has neither
`encode` nor `decode`: its latents are its images. What was written is run and
compared with the function, for two batch sizes and two sizes of images, before it gets its final
name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from latentddpm.models.autoencoder.pixel_space import PixelSpace
from latentddpm.models.denoisers.base import Denoiser
from latentddpm.models.denoisers.told import CONCAT
from latentddpm.pipeline.latent_diffusion import LatentDiffusion

TOLERANCE = 1e-4
DEFAULT_SIZE = (64, 64)  # pixels, for a model without an `image_size`
CONTEXT_LENGTH = 77  # that of CLIP, for a UNet without its text encoder

# Names of the free axes of every input and output. If there is one more axis, it has a fixed size.
AXES = {
    "images": ("batch", "height", "width"),
    "mean": ("batch", "latent_height", "latent_width"),
    "logvar": ("batch", "latent_height", "latent_width"),
    "latents": ("batch", "latent_height", "latent_width"),
    "noisy_latents": ("batch", "latent_height", "latent_width"),
    "prediction": ("batch", "latent_height", "latent_width"),
    "timesteps": ("batch",),
    "context": ("batch", "length"),
    "token_ids": ("batch",),
}

Arrays = dict[str, np.ndarray]
Run = Callable[[Arrays], Arrays]  # inputs by name → outputs by name


@dataclass(frozen=True)
class Endpoint:
    """Endpoint: a function of an exported model.

    Attributes:
        name: of the function, such as "encode".
        part: name of its file, such as "encoder".
        network: with its weights.
        function: tensors in the order of `inputs` → tensors by the names of `outputs`.
        inputs: the signature, of specs with names.
        outputs: names, in order.
        told: free axes of those inputs that are conditions, by name.
    """

    name: str
    part: str
    network: keras.Model
    function: Callable[..., dict[str, tf.Tensor]]
    inputs: tuple[tf.TensorSpec, ...]
    outputs: tuple[str, ...]
    told: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def axes(self, name: str) -> tuple[str, ...]:
        """Names of the free axes of an input or output; one more axis has a fixed size."""
        return self.told[name] if name in self.told else AXES[name]

    @property
    def bytes(self) -> int:
        """Size of the weights in float32, in bytes."""
        return 4 * self.network.count_params()


def endpoints(model: LatentDiffusion) -> dict[str, Endpoint]:
    """Endpoints of a `model`, by name: those whose networks it has."""
    autoencoder, unet, text_encoder = model.autoencoder, model.unet, model.text_encoder

    def encode(images: tf.Tensor) -> dict[str, tf.Tensor]:
        mean, logvar = autoencoder.encode(images)
        return {"mean": mean, "logvar": logvar}

    def decode(latents: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"images": autoencoder.decode(latents)}

    def encode_text(token_ids: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"context": text_encoder({"token_ids": token_ids})}

    found = []
    if not isinstance(autoencoder, PixelSpace):
        images = _floats("images", autoencoder.image_channels)
        latents = _floats("latents", autoencoder.latent_channels)
        encoder, decoder = autoencoder.encoder, autoencoder.decoder
        found = [
            Endpoint("encode", "encoder", encoder, encode, (images,), ("mean", "logvar")),
            Endpoint("decode", "decoder", decoder, decode, (latents,), ("images",)),
        ]
    if unet is not None:
        found.append(_denoise(unet, autoencoder.latent_channels))
    if text_encoder is not None:
        ids = tf.TensorSpec((None, text_encoder.context_length), tf.int32, "token_ids")
        found.append(
            Endpoint(
                "encode_text", "text_encoder", text_encoder, encode_text, (ids,), ("context",)
            )
        )
    return {endpoint.name: endpoint for endpoint in found}


def _denoise(unet: Denoiser, latent_channels: int) -> Endpoint:
    """Endpoint of a UNet, which takes its conditions after the inputs that all have."""
    timesteps = tf.TensorSpec((None,), unet.input["timesteps"].dtype, "timesteps")
    inputs = [_floats("noisy_latents", latent_channels), timesteps]
    if unet.context_dim is not None:
        inputs.append(_floats("context", unet.context_dim))
    told = {}
    for one in unet.conditions:
        name = one["name"]
        told[name] = AXES["noisy_latents" if one["enters"] == CONCAT else "timesteps"]
        inputs.append(tf.TensorSpec((*[None] * len(told[name]), one["size"]), tf.float32, name))
    names = [spec.name for spec in inputs]

    def denoise(*tensors: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"prediction": unet(dict(zip(names, tensors, strict=True)))}

    return Endpoint("denoise", "unet", unet, denoise, tuple(inputs), ("prediction",), told)


def _floats(name: str, channels: int) -> tf.TensorSpec:
    return tf.TensorSpec((*[None] * len(AXES[name]), channels), tf.float32, name)


def check(endpoint: Endpoint, run: Run, model: LatentDiffusion) -> float:
    """Check an exported endpoint against the model.

    Args:
        endpoint: of the model.
        run: runs the exported endpoint.
        model: that was exported.

    Returns:
        The largest absolute difference of an output.

    Raises:
        ArithmeticError: it is above `TOLERANCE`, or an output has another name or shape.
    """
    differences = []
    for inputs in examples(endpoint, model):
        expected = endpoint.function(*map(tf.constant, inputs.values()))
        found = run(inputs)
        for name in endpoint.outputs:
            differences.append(_difference(endpoint, name, found, expected[name]))
    difference = float(np.max(differences))  # NaN if one of them is
    if not difference <= TOLERANCE:
        raise ArithmeticError(
            f"endpoint {endpoint.name} differs from the model by {difference:.2g}, "
            f"allowed {TOLERANCE:.0e}"
        )
    return difference


def _difference(endpoint: Endpoint, name: str, found: Arrays, expected: Any) -> float:
    expected = keras.ops.convert_to_numpy(expected)
    shape = found[name].shape if name in found else None
    if shape != expected.shape:
        raise ArithmeticError(
            f"endpoint {endpoint.name}: {name} has the shape {shape}, the model's {expected.shape}"
        )
    return float(np.abs(found[name] - expected).max())


def examples(endpoint: Endpoint, model: LatentDiffusion) -> Iterator[Arrays]:
    """Random inputs of an endpoint, by name: one image of the model's size, then two small ones.

    The small size is not square. It is two and three times the smallest that the strides of the
    networks allow, so that not all positions are at an edge, and a little more, which the strides
    of the UNet do not divide.

    Args:
        endpoint: of the model.
        model: whose sizes count.
    """
    factor = model.autoencoder.downsample_factor
    coarsest = factor * (model.unet.downsample_factor if model.unet is not None else 1)
    length = CONTEXT_LENGTH if model.text_encoder is None else model.text_encoder.context_length
    numbers = np.random.default_rng(0)
    for batch, (height, width), tokens in (
        (1, model.image_size or DEFAULT_SIZE, length),
        (2, (2 * coarsest, 3 * coarsest + factor), 7),
    ):
        axes = {
            "batch": batch,
            "height": height,
            "width": width,
            "latent_height": height // factor,
            "latent_width": width // factor,
            "length": tokens,
        }
        yield {
            spec.name: _random(
                spec, [axes[axis] for axis in endpoint.axes(spec.name)], model, numbers
            )
            for spec in endpoint.inputs
        }


def _random(
    spec: tf.TensorSpec, sizes: list[int], model: LatentDiffusion, numbers: np.random.Generator
) -> np.ndarray:
    """Random values of an input, in its range."""
    shape = (*sizes, *spec.shape[len(sizes) :])
    if spec.name == "token_ids":
        values = numbers.integers(0, model.text_encoder.vocabulary_size, shape)
    elif spec.name == "timesteps":
        last = 999 if model.schedule is None else model.schedule.last_timestep
        values = numbers.uniform(0, last, shape)
    elif spec.name == "images":
        values = numbers.uniform(-1, 1, shape)
    else:
        values = numbers.standard_normal(shape)
    return values.astype(spec.dtype.as_numpy_dtype)
