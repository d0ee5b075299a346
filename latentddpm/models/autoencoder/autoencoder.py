"""Autoencoder, the first stage: images ⇄ latents at 1/8 of the size (KL-f8).

An `Encoder` gives the mean and log-variance of a diagonal Gaussian over raw latents, a
`Decoder` maps raw latents back to an image (Kingma & Welling 2014; Rombach et al. 2022,
§3.1 and appendix G):

    q(raw | image) = N(mean, exp(logvar))
    latents        = raw · scaling_factor

`Autoencoder` is the only place that knows the scaling factor: diffusion sees latents of
about unit variance, callers never multiply by it. 0.18215 belongs to Stable Diffusion's
own weights; a model trained here gets its factor measured over its training set.

`training.step.autoencoder_trainer` has the loss that it is trained with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from latentddpm.errors import UserError
from latentddpm.models.autoencoder.encoder_decoder import Decoder, Encoder
from latentddpm.models.autoencoder.latent_space import LatentSpace
from latentddpm.models.layers import PACKAGE

LOGVAR_RANGE = (-30.0, 20.0)


@keras.saving.register_keras_serializable(package=PACKAGE)
class Autoencoder(keras.Model):
    """Autoencoder: an encoder, a decoder, and the scaling of the latents between them.

    Args:
        channels: width of the highest resolution.
        channel_multipliers: width of each level in units of `channels`; every further level
            halves the resolution, so the `downsample_factor` is 2 ** (levels - 1).
        num_res_blocks: ResnetBlocks a level (one more in the decoder).
        latent_channels: channels of a latent.
        scaling_factor: multiplies raw latents. The default is Stable Diffusion's.
        norm_groups, norm_epsilon: of every group norm.
        image_channels: 3 for RGB.
        latent_statistics: what was measured over the training set when `scaling_factor`
            was (count, mean, std, per channel), kept with the model.

    Call arguments:
        inputs: `{"images": (B, H, W, 3) in [-1, 1]}` and, for a posterior sample instead of
            its mode, `"noise"`: (B, h, w, c) of standard normal numbers. Noise enters with
            the data, so the model is a deterministic function.

    Returns:
        `{"reconstruction", "mean", "logvar"}`, moments unscaled.

    Raises:
        ValueError: no level, a scaling factor that is not positive, or `norm_groups` that do not
            divide a width.

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
        scaling_factor: float = 0.18215,
        norm_groups: int = 32,
        norm_epsilon: float = 1e-6,
        image_channels: int = 3,
        latent_statistics: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("name", "autoencoder")
        # Images, noise and losses stay float32; the networks cast at their own doors.
        super().__init__(autocast=False, **kwargs)
        if not channel_multipliers:
            raise ValueError("channel_multipliers: empty, expected one number a level")
        if not scaling_factor > 0:
            raise ValueError(f"scaling_factor={scaling_factor}, expected a positive number")
        self.channels = channels
        self.channel_multipliers = tuple(channel_multipliers)
        self.num_res_blocks = num_res_blocks
        self.latent_channels = latent_channels
        self.scaling_factor = scaling_factor
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
            "dtype": self.dtype_policy,
        }
        self.encoder = Encoder(**sizes)
        self.decoder = Decoder(**sizes)
        self.built = True

    @property
    def downsample_factor(self) -> int:
        """Pixels per latent position along a side: 8 with four levels."""
        return 2 ** (len(self.channel_multipliers) - 1)

    def check_size(self, height: int | None, width: int | None) -> None:
        """Refuse sizes that do not become a whole number of latent positions.

        A size that is not known yet (None, in a graph) passes.

        Raises:
            UserError: naming the nearest valid sizes.
        """
        factor = self.downsample_factor
        for name, size in (("height", height), ("width", width)):
            if size is not None and (size < factor or size % factor):
                near = sorted({max(size // factor, 1) * factor, (size // factor + 1) * factor})
                raise UserError(
                    f"{name} {size} is not a multiple of the autoencoder's downsample factor "
                    f"{factor}; nearest valid: {' or '.join(map(str, near))}"
                )

    def call(self, inputs, training=None):
        mean, logvar = self._moments(inputs["images"], training)
        raw_latents = mean
        if "noise" in inputs:
            raw_latents = mean + ops.exp(0.5 * logvar) * inputs["noise"]
        reconstruction = self.decoder(raw_latents, training=training)
        return {"reconstruction": reconstruction, "mean": mean, "logvar": logvar}

    def _moments(self, images: Any, training: bool | None = None) -> tuple[Any, Any]:
        self.check_size(*images.shape[1:3])
        mean, logvar = ops.split(self.encoder(images, training=training), 2, axis=-1)
        return mean, ops.clip(logvar, *LOGVAR_RANGE)

    def encode(self, images: Any) -> tuple[Any, Any]:
        """Images (B, H, W, 3) in [-1, 1] → mean and logvar, (B, h, w, c) each, unscaled.

        Raises:
            UserError: not a batch of floating point images, or a height or width that is not a
                multiple of `downsample_factor`.
        """
        dtype = keras.backend.standardize_dtype(images.dtype)
        if len(images.shape) != 4 or "float" not in dtype:
            raise UserError(
                f"images: {dtype} {tuple(images.shape)}, expected floating point (B, H, W, "
                f"{self.image_channels}) in [-1, 1]"
            )
        return self._moments(ops.convert_to_tensor(images, "float32"))

    def encode_on_batch(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`encode` as a compiled step, for loops over many images of one shape."""
        self.check_size(*images.shape[1:3])
        mean, logvar = np.split(self.encoder.predict_on_batch(images), 2, axis=-1)
        return mean, np.clip(logvar, *LOGVAR_RANGE)

    def to_latents(self, mean: Any, logvar: Any = None, noise: Any = None) -> Any:
        """Scaled latents: the mode, or with `logvar` and `noise` a posterior sample."""
        return LatentSpace(self.scaling_factor).to_latents(mean, logvar, noise)

    def decode(self, latents: Any) -> Any:
        """Scaled latents (B, h, w, c) → images (B, h·f, w·f, 3), about [-1, 1], float32."""
        latents = ops.convert_to_tensor(latents, "float32")
        return self.decoder(LatentSpace(self.scaling_factor).to_raw(latents))

    def get_config(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "dtype": self.dtype_policy.name,
            "channels": self.channels,
            "channel_multipliers": list(self.channel_multipliers),
            "num_res_blocks": self.num_res_blocks,
            "latent_channels": self.latent_channels,
            "scaling_factor": self.scaling_factor,
            "norm_groups": self.norm_groups,
            "norm_epsilon": self.norm_epsilon,
            "image_channels": self.image_channels,
            "latent_statistics": self.latent_statistics,
        }
