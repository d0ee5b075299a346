"""ClassicUNet: the U-Net of Ronneberger et al. 2015, with the timestep added at its bottom.

    down     conv3 → ReLU → conv3 → ReLU, then a 2×2 max-pool                  four times
    bottom   conv3 → ReLU → + time → conv3 → ReLU
    up       2×2 transposed convolution, beside the skip connection,
             then conv3 → ReLU → conv3 → ReLU                                  four times
    out      conv1

as in their fig. 1, with 64 … 1024 channels, ReLU and kernels of standard deviation √(2/N) (§3).
Their convolutions are valid ones; here zeros around keep the size, as is usual since. Pools round
up, so any size is taken and comes out as it went in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import layers

from latentddpm.models.denoisers.base import Denoiser, denoiser_inputs
from latentddpm.models.denoisers.time_embedding import embed_time
from latentddpm.models.functional import constructor_arguments
from latentddpm.models.layers import PACKAGE, of_rank, zeros_or_default
from latentddpm.models.resample import CropLike


@keras.saving.register_keras_serializable(package=PACKAGE)
class ClassicUNet(Denoiser):
    """ClassicUNet: the U-Net of Ronneberger et al. 2015, with the timestep added at the bottom.

    Args:
        channels: width at the highest resolution.
        channel_multipliers: width of each level in units of `channels`; every further level
            halves the resolution, and the last one is the bottom.
        latent_channels: c, channels of the input and of the prediction.
        spatial_dims: 1 for signals, 2 for images, 3 for volumes.
        dtype: dtype or dtype policy of the layers.
        name: of the Keras model.

    Call arguments:
        inputs: `{"noisy_latents": (B, h, w, c), "timesteps": (B,)}`, of any size.

    Returns:
        The prediction, float32 (B, h, w, c).

    Raises:
        ValueError: `channels` is odd, or `spatial_dims` is not 1, 2 or 3.

    Example:
        >>> unet = latentddpm.ClassicUNet(channels=4, channel_multipliers=(1, 2, 2))
        >>> images, timesteps = np.zeros((2, 28, 28, 1), "float32"), np.array([0, 999])
        >>> tuple(unet({"noisy_latents": images, "timesteps": timesteps}).shape)
        (2, 28, 28, 1)
    """

    def __init__(
        self,
        channels: int = 64,
        channel_multipliers: Sequence[int] = (1, 2, 4, 8, 16),
        latent_channels: int = 1,
        spatial_dims: int = 2,
        dtype: Any = None,
        name: str = "classic_unet",
    ) -> None:
        config = constructor_arguments(locals())
        inputs = denoiser_inputs(latent_channels, spatial_dims)
        kinds = ("Conv{}D", "Conv{}DTranspose", "MaxPooling{}D")
        convolution, transposed, pool = (of_rank(kind, spatial_dims) for kind in kinds)
        *widths, bottom = (channels * multiplier for multiplier in channel_multipliers)

        def convolve(hidden: Any, width: int, name: str) -> Any:
            return convolution(
                width,
                3,
                padding="same",
                activation="relu",
                kernel_initializer=zeros_or_default(default="he_normal"),
                dtype=dtype,
                name=name,
            )(hidden)

        hidden, skips = inputs["noisy_latents"], []
        for level, width in enumerate(widths):
            for k in range(2):
                hidden = convolve(hidden, width, f"down_{level}_conv_{k}")
            skips.append(hidden)
            hidden = pool(2, padding="same", dtype=dtype, name=f"down_{level}_pool")(hidden)

        time = embed_time(inputs["timesteps"], channels, bottom, "relu", dtype)
        hidden = convolve(hidden, bottom, "bottom_conv_0")
        time = layers.Reshape((*[1] * spatial_dims, bottom), dtype=dtype, name="time")(time)
        hidden = layers.Add(dtype=dtype, name="bottom_time")([hidden, time])
        hidden = convolve(hidden, bottom, "bottom_conv_1")

        for level in reversed(range(len(widths))):
            hidden = transposed(
                widths[level],
                2,
                strides=2,
                kernel_initializer=zeros_or_default(),
                dtype=dtype,
                name=f"up_{level}_transposed",
            )(hidden)
            hidden = CropLike(dtype=dtype, name=f"up_{level}_crop")(hidden, skips[-1])
            hidden = layers.Concatenate(dtype=dtype, name=f"up_{level}_skip")(
                [skips.pop(), hidden]
            )
            for k in range(2):
                hidden = convolve(hidden, widths[level], f"up_{level}_conv_{k}")
        prediction = convolution(
            latent_channels,
            1,
            kernel_initializer=zeros_or_default(),
            dtype="float32",
            name="conv_out",
        )(hidden)
        super().__init__(inputs, prediction, config, name=name)
