"""Autoencoder: images ⇄ latents, by default at 1/8 of the size (KL-f8), the first stage.

An `Encoder` gives the mean and log-variance of a diagonal Gaussian over raw latents. A `Decoder`
maps raw latents back to an image (Kingma & Welling 2014; Rombach et al. 2022, §3.1 and
appendix G):

    q(raw_latents | image) = N(mean, exp(logvar))
    latents                = (raw_latents − shift_factor) · scaling_factor

Diffusion sees latents of about unit variance. `LatentSpace` shifts and scales; callers never do.
0.18215 is the factor of Stable Diffusion's weights, which have no shift. Those of a model trained
here are measured over its training set.

The loss is in `training.step.autoencoder_trainer`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import keras
import numpy as np
from keras import ops

from latentddpm.errors import UserError
from latentddpm.models.autoencoder.encoder_decoder import Decoder, Encoder
from latentddpm.models.autoencoder.facts import LOGVAR_RANGE, AutoencoderFacts
from latentddpm.models.autoencoder.inputs import as_images
from latentddpm.models.autoencoder.latent_space import Factor
from latentddpm.models.layers import PACKAGE
from latentddpm.utils.pixels import from_pixels

LATER = {"shift_factor": 0.0, "quant_conv": True}
"""Defaults of arguments that older models do not have: left out of the config, which keeps their
digest."""


@keras.saving.register_keras_serializable(package=PACKAGE)
class Autoencoder(AutoencoderFacts, keras.Model):
    """Autoencoder: an encoder, a decoder, and the scaling of the latents between them.

    Args:
        channels: width at the highest resolution.
        channel_multipliers: width of each level in units of `channels`; every further level
            halves the resolution, so the `downsample_factor` f is 2 ** (levels − 1).
        num_res_blocks: ResnetBlocks per level; the decoder has one more.
        latent_channels: channels c of the latents.
        scaling_factor: multiplies raw latents; one number, or one for each channel. The default
            is that of Stable Diffusion.
        norm_groups, norm_epsilon: of every group norm.
        image_channels: 3 for RGB.
        latent_statistics: count, mean and std of the raw latents of the training set, all and
            per channel, from which the scaling factor was computed. Saved with the model.
        shift_factor: subtracted from raw latents before they are scaled; one number, or one for
            each channel.
        quant_conv: have a 1×1 convolution on both sides of the latents. Stable Diffusion 1 and 2
            have it, 3 and Flux do not.

    `predict`, `fit` and `evaluate` also take images alone, see `inputs.as_images`. The last two
    compare them with their reconstruction by the loss given to `compile`, such as "mse". Without
    the KL term this is a plain autoencoder; `AutoencoderTrainer` has the whole loss.

    Call arguments:
        inputs: `{"images": (B, H, W, 3) in [-1, 1]}` and, for a sample of the posterior instead
            of its mode, `"noise"`: (B, h, w, c), standard normal. Noise is an input, so the
            model is a deterministic function. Without noise the images alone will do; whole
            numbers are pixels 0 … 255.

    Returns:
        `{"reconstruction": (B, H, W, 3), "mean": (B, h, w, c), "logvar": (B, h, w, c)}`, with
        mean and log-variance unscaled.

    Raises:
        ValueError: no level, a scaling factor that is not positive, scaling or shift of another
            number of channels, or `norm_groups` that do not divide a width.

    Example:
        >>> autoencoder = latentddpm.Autoencoder(
        ...     channels=8, channel_multipliers=(1, 2), norm_groups=4
        ... )
        >>> images = np.zeros((1, 16, 16, 3), "float32")
        >>> mean, logvar = autoencoder.encode(images)
        >>> latents = autoencoder.to_latents(mean)  # scaled, for diffusion
        >>> tuple(latents.shape), tuple(autoencoder.decode(latents).shape)
        ((1, 8, 8, 4), (1, 16, 16, 3))
    """

    def __init__(
        self,
        channels: int = 128,
        channel_multipliers: Sequence[int] = (1, 2, 4, 4),
        num_res_blocks: int = 2,
        latent_channels: int = 4,
        scaling_factor: Factor = 0.18215,
        norm_groups: int = 32,
        norm_epsilon: float = 1e-6,
        image_channels: int = 3,
        latent_statistics: dict[str, Any] | None = None,
        shift_factor: Factor = 0.0,
        quant_conv: bool = True,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("name", "autoencoder")
        # Images, noise and losses stay float32; the encoder and the decoder cast their inputs.
        super().__init__(autocast=False, **kwargs)
        if not channel_multipliers:
            raise ValueError("channel_multipliers: empty, expected one number a level")
        self.channels = channels
        self.channel_multipliers = tuple(channel_multipliers)
        self.num_res_blocks = num_res_blocks
        self.latent_channels = latent_channels
        self.scaling_factor = scaling_factor
        self.shift_factor = shift_factor
        self.quant_conv = quant_conv
        self.norm_groups = norm_groups
        self.norm_epsilon = norm_epsilon
        self.image_channels = image_channels
        self.latent_statistics = latent_statistics
        sizes = {
            "channels": channels,
            "channel_multipliers": self.channel_multipliers,
            "num_res_blocks": num_res_blocks,
            "latent_channels": latent_channels,
            "norm_groups": norm_groups,
            "norm_epsilon": norm_epsilon,
            "image_channels": image_channels,
            "quant_conv": quant_conv,
            "dtype": self.dtype_policy,
        }
        for name, value in asdict(self.latent_space).items():
            if np.ndim(value) and len(value) != latent_channels:
                raise ValueError(
                    f"{name}: {len(value)} numbers for {latent_channels} latent_channels"
                )
        self.encoder = Encoder(**sizes)
        self.decoder = Decoder(**sizes)
        self.built = True

    def call(self, inputs, training=None):
        if not isinstance(inputs, Mapping):
            inputs = {"images": inputs}
        mean, logvar = self._moments(inputs["images"], training)
        raw_latents = mean
        if "noise" in inputs:
            raw_latents = mean + ops.exp(0.5 * logvar) * inputs["noise"]
        reconstruction = self.decoder(raw_latents, training=training)
        return {"reconstruction": reconstruction, "mean": mean, "logvar": logvar}

    def _moments(self, images: Any, training: bool | None = None) -> tuple[Any, Any]:
        if "int" in keras.backend.standardize_dtype(images.dtype):
            images = from_pixels(images, ops.cast)
        self.check_size(*images.shape[1:3])
        mean, logvar = ops.split(self.encoder(images, training=training), 2, axis=-1)
        return mean, ops.clip(logvar, *LOGVAR_RANGE)

    def encode(self, images: Any) -> tuple[Any, Any]:
        """Posterior of images: mean and log-variance of their raw latents.

        Args:
            images: float (B, H, W, 3) in [-1, 1], or as of `inputs.as_images`; H and W are
                multiples of f.

        Returns:
            mean and logvar, (B, h, w, c) each, unscaled.

        Raises:
            UserError: no images, or a height or width that is not a multiple of f.
        """
        images = as_images(images)
        dtype = keras.backend.standardize_dtype(getattr(images, "dtype", "string"))
        if len(getattr(images, "shape", ())) != 4 or "float" not in dtype:
            found = f"{dtype} {tuple(images.shape)}" if hasattr(images, "shape") else type(images)
            raise UserError(
                f"images: {found}, expected floating point (B, H, W, {self.image_channels}) in "
                "[-1, 1], uint8, or PIL images"
            )
        return self._moments(ops.convert_to_tensor(images, "float32"))

    def encode_on_batch(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Posterior of images, as `encode` but compiled, for loops over batches of one shape.

        Args:
            images: float32 (B, H, W, 3) in [-1, 1].

        Returns:
            mean and logvar, NumPy (B, h, w, c) each, unscaled.

        Raises:
            UserError: H or W is not a multiple of f.
        """
        self.check_size(*images.shape[1:3])
        mean, logvar = np.split(self.encoder.predict_on_batch(images), 2, axis=-1)
        return mean, np.clip(logvar, *LOGVAR_RANGE)

    def decode(self, latents: Any) -> Any:
        """Images of latents.

        Args:
            latents: scaled, (B, h, w, c).

        Returns:
            float32 (B, h·f, w·f, 3), about [-1, 1].
        """
        latents = ops.convert_to_tensor(latents, "float32")
        return self.decoder(self.latent_space.to_raw(latents))

    def predict(self, x: Any, *args: Any, **kwargs: Any) -> dict[str, np.ndarray]:
        return super().predict(as_images(x), *args, **kwargs)

    def fit(self, x: Any = None, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        return super().fit(*_with_targets(x, y), *args, **kwargs)

    def evaluate(self, x: Any = None, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        return super().evaluate(*_with_targets(x, y), *args, **kwargs)

    def compile(self, optimizer: Any = "rmsprop", loss: Any = None, **kwargs: Any) -> None:
        if loss is not None and not isinstance(loss, Mapping | list | tuple):
            loss = {"reconstruction": loss}
        super().compile(optimizer, loss, **kwargs)

    def export(self, filepath: Any, *args: Any, **kwargs: Any) -> None:
        shape = (None, None, None, self.image_channels)
        signature = [{"images": keras.InputSpec(shape=shape, dtype="float32")}]
        super().export(filepath, *args, **{"input_signature": signature, **kwargs})

    def get_config(self) -> dict[str, Any]:
        later = {"shift_factor": _plain(self.shift_factor), "quant_conv": self.quant_conv}
        for name, default in LATER.items():
            if later[name] == default:
                del later[name]
        return {
            "name": self.name,
            "dtype": self.dtype_policy.name,
            "channels": self.channels,
            "channel_multipliers": list(self.channel_multipliers),
            "num_res_blocks": self.num_res_blocks,
            "latent_channels": self.latent_channels,
            "scaling_factor": _plain(self.scaling_factor),
            "norm_groups": self.norm_groups,
            "norm_epsilon": self.norm_epsilon,
            "image_channels": self.image_channels,
            "latent_statistics": self.latent_statistics,
            **later,
        }


def _plain(factor: Factor) -> Factor:
    """Factor of a latent space as plain JSON types."""
    return [float(one) for one in factor] if np.ndim(factor) else factor


def _with_targets(x: Any, y: Any) -> tuple[Any, Any]:
    """Inputs and targets of images: themselves, unless there are others."""
    x = as_images(x)
    if y is None and isinstance(x, np.ndarray):
        return {"images": x}, {"reconstruction": x}
    return x, y
