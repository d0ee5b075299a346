"""Models for other programs: `.keras` archives and a TensorFlow SavedModel.

The SavedModel needs no latentddpm to run. Its endpoints, each with a free batch size:

    encode(images)                                  → mean, logvar (unscaled)
    denoise(noisy_latents, timesteps[, context])    → prediction
    decode(latents)                                 → images; latents are scaled
    encode_text(token_ids)                          → context

A SavedModel is loaded again and compared with the model it came from before it takes its name.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from latentddpm.errors import UserError, check_choice
from latentddpm.files import atomic_folder
from latentddpm.pipeline import LatentDiffusion

FORMATS = ("keras", "saved-model")
TOLERANCE = 1e-4


def export(
    model: LatentDiffusion, out: str | Path, format: str, storage: str = "float32"
) -> dict[str, float]:
    """Write `model` in `format` below `out`.

    Args:
        storage: precision of the weights in `.keras` archives, see `archive.STORAGE`.

    Returns:
        For a SavedModel the largest difference of each endpoint to the model, else nothing.

    Raises:
        UserError: an unknown format, or `out` exists.
        ArithmeticError: what was written does not compute what the model does.
        OSError: the disk is full, or the folder cannot be written.
    """
    check_choice("format", format, FORMATS)
    out = Path(out)
    if out.exists():
        raise UserError(f"{out}: exists already; name a new folder")
    if format == "keras":
        model.save(out, storage)
        return {}
    return save_saved_model(model, out)


def save_saved_model(model: LatentDiffusion, out: Path) -> dict[str, float]:
    """Write the SavedModel and check every endpoint; returns the largest differences."""
    if keras.backend.backend() != "tensorflow":
        raise UserError("export: a SavedModel needs Keras's TensorFlow backend")
    functions = endpoints(model)
    archive = keras.export.ExportArchive()
    for part in (model.autoencoder, model.unet, model.text_encoder):
        if part is not None:
            archive.track(part)
    for name, (function, signature) in functions.items():
        archive.add_endpoint(name, function, signature)
    with atomic_folder(out) as staged:
        try:
            archive.write_out(str(staged), verbose=False)
        except tf.errors.OpError as error:
            raise OSError(f"{out}: {error.message}") from None
        differences = compare(staged, model, functions)
    return differences


def endpoints(model: LatentDiffusion) -> dict[str, tuple[Callable[..., Any], list[tf.TensorSpec]]]:
    """Name → function and input signature."""
    autoencoder, unet = model.autoencoder, model.unet
    channels = autoencoder.latent_channels
    latents = tf.TensorSpec((None, None, None, channels), tf.float32, "latents")
    images = tf.TensorSpec((None, None, None, autoencoder.image_channels), tf.float32, "images")

    def encode(images: tf.Tensor) -> dict[str, tf.Tensor]:
        moments = autoencoder({"images": images})
        return {"mean": moments["mean"], "logvar": moments["logvar"]}

    functions = {
        "encode": (encode, [images]),
        "decode": (lambda latents: autoencoder.decode(latents), [latents]),
    }
    if unet is not None:
        noisy = tf.TensorSpec((None, None, None, channels), tf.float32, "noisy_latents")
        timesteps = tf.TensorSpec((None,), tf.int32, "timesteps")
        if unet.context_dim is None:

            def denoise(noisy_latents: tf.Tensor, timesteps: tf.Tensor) -> tf.Tensor:
                return unet({"noisy_latents": noisy_latents, "timesteps": timesteps})

            functions["denoise"] = (denoise, [noisy, timesteps])
        else:
            context = tf.TensorSpec((None, None, unet.context_dim), tf.float32, "context")

            def denoise_with_text(
                noisy_latents: tf.Tensor, timesteps: tf.Tensor, context: tf.Tensor
            ) -> tf.Tensor:
                return unet(
                    {"noisy_latents": noisy_latents, "timesteps": timesteps, "context": context}
                )

            functions["denoise"] = (denoise_with_text, [noisy, timesteps, context])
    if model.text_encoder is not None:
        token_ids = tf.TensorSpec((None, model.text_encoder.context_length), tf.int32, "token_ids")
        functions["encode_text"] = (
            lambda token_ids: model.text_encoder({"token_ids": token_ids}),
            [token_ids],
        )
    return functions


def compare(
    folder: Path,
    model: LatentDiffusion,
    functions: dict[str, tuple[Callable[..., Any], list[tf.TensorSpec]]],
) -> dict[str, float]:
    """Largest absolute difference of each endpoint to the model itself, on random input.

    Raises:
        ArithmeticError: one is above `TOLERANCE`.
    """
    loaded = tf.saved_model.load(str(folder))
    numbers = np.random.default_rng(0)
    height, width = model.image_size or (64, 64)
    factor = model.autoencoder.downsample_factor
    sides = {"images": (height, width), "latents": (height // factor, width // factor)}
    sides["noisy_latents"] = sides["latents"]

    def example(spec: tf.TensorSpec) -> tf.Tensor:
        if spec.dtype == tf.int32:
            shape = [2, *spec.shape[1:]]
            return tf.constant(numbers.integers(0, 1000, shape), tf.int32)
        shape = [2, *sides.get(spec.name, (7,)), spec.shape[-1]]
        return tf.constant(numbers.standard_normal(shape), tf.float32)

    differences = {}
    for name, (function, signature) in functions.items():
        inputs = [example(spec) for spec in signature]
        expected = tf.nest.flatten(function(*inputs))
        found = tf.nest.flatten(getattr(loaded, name)(*inputs))
        differences[name] = max(
            float(np.abs(np.asarray(a) - np.asarray(b)).max())
            for a, b in zip(expected, found, strict=True)
        )
        if not differences[name] <= TOLERANCE:
            raise ArithmeticError(
                f"endpoint {name} differs from the model by {differences[name]:.2g}, "
                f"allowed {TOLERANCE:.0e}"
            )
    return differences
