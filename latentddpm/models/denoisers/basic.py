"""BasicUNet: the smallest U-Net, without norms and without a timestep.

    down   conv5 c→32 ─► pool ─► conv5 32→64 ─► pool ─► conv5 64→64
    up     conv5 64→64 ─► ×2 + skip ─► conv5 64→32 ─► ×2 + skip ─► conv5 32→c

with a SiLU after each convolution, skip connections that are added, 2×2 max-pools and nearest
neighbours upwards. It is the first network of Hugging Face's diffusion course (unit 1, "Diffusion
models from scratch"), and has 309,057 parameters for one channel.

A network without a timestep sees how noisy an image is from the image. That is enough for digits.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import layers

from latentddpm.models.denoisers.base import Denoiser, denoiser_inputs
from latentddpm.models.functional import constructor_arguments
from latentddpm.models.layers import PACKAGE, PaddedConv2D, of_rank
from latentddpm.models.resample import CropLike

WIDTHS = (32, 64, 64)
LEVELS = len(WIDTHS)


@keras.saving.register_keras_serializable(package=PACKAGE)
class BasicUNet(Denoiser):
    """BasicUNet: the smallest U-Net, of six 5×5 convolutions; 309,057 parameters for one channel.

    Args:
        latent_channels: c, channels of the input and of the prediction.
        activate_output: a SiLU after the last convolution too, as in the course, whose images lie
            in [0, 1]. What is predicted here is as often negative as positive, so there is none
            by default.
        spatial_dims: 1 for signals, 2 for images, 3 for volumes.
        dtype: dtype or dtype policy of the layers.
        name: of the Keras model.

    Call arguments:
        inputs: `{"noisy_latents": (B, h, w, c), "timesteps": (B,)}`, of any size. The timesteps
            are there as all denoisers take them; they change nothing.

    Returns:
        The prediction, float32 (B, h, w, c).

    Raises:
        ValueError: `spatial_dims` is not 1, 2 or 3.

    Example:
        >>> unet = latentddpm.BasicUNet(latent_channels=1)
        >>> unet.count_params()
        309057
        >>> images, timesteps = np.zeros((2, 28, 28, 1), "float32"), np.array([0, 999])
        >>> tuple(unet({"noisy_latents": images, "timesteps": timesteps}).shape)
        (2, 28, 28, 1)
    """

    def __init__(
        self,
        latent_channels: int = 1,
        activate_output: bool = False,
        spatial_dims: int = 2,
        dtype: Any = None,
        name: str = "basic_unet",
    ) -> None:
        config = constructor_arguments(locals())
        inputs = denoiser_inputs(latent_channels, spatial_dims)
        pool, repeat = (of_rank(one, spatial_dims) for one in ("MaxPooling{}D", "UpSampling{}D"))

        def convolve(hidden: Any, width: int, name: str) -> Any:
            hidden = PaddedConv2D(width, 5, padding=2, dtype=dtype, name=name)(hidden)
            return layers.Activation("silu", dtype=dtype, name=f"{name}_act")(hidden)

        hidden, skips = inputs["noisy_latents"], []
        for level, width in enumerate(WIDTHS):
            if level:
                hidden = pool(2, padding="same", dtype=dtype, name=f"down_{level}_pool")(hidden)
            hidden = convolve(hidden, width, f"down_{level}")
            skips.append(hidden)
        skips.pop()

        for level in reversed(range(1, LEVELS)):
            hidden = convolve(hidden, WIDTHS[level - 1], f"up_{level}")
            hidden = repeat(2, dtype=dtype, name=f"up_{level}_repeat")(hidden)
            skip = skips.pop()
            hidden = CropLike(dtype=dtype, name=f"up_{level}_crop")(hidden, skip)
            hidden = layers.Add(dtype=dtype, name=f"up_{level}_skip")([hidden, skip])
        prediction = PaddedConv2D(latent_channels, 5, padding=2, dtype="float32", name="up_0")(
            hidden
        )
        if activate_output:
            prediction = layers.Activation("silu", dtype="float32", name="up_0_act")(prediction)
        super().__init__(inputs, prediction, config, name=name)

    @property
    def downsample_factor(self) -> int:
        """Positions of the latents per position at the lowest resolution, along a side."""
        return 2 ** (LEVELS - 1)
