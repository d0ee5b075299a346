"""Encoder and decoder of the autoencoder: images → moments, raw latents → images.

    Encoder   conv_in ─► levels of ResnetBlocks, each but the last halving ─► middle ─► moments
    Decoder   conv_in ─► middle ─► the same levels upwards, each but the last doubling ─► image

They are the networks of Stable Diffusion's KL-f8 (Rombach et al. 2022, appendix G). The group
norms have epsilon 1e-6, as in the original; older Keras ports have 1e-5. Neither of them knows the
scaling factor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import layers

from latentddpm.models.attention import AttentionBlock
from latentddpm.models.functional import FunctionalModel, constructor_arguments
from latentddpm.models.layers import PACKAGE, PaddedConv2D, ResnetBlock, group_norm
from latentddpm.models.resample import Upsample


@keras.saving.register_keras_serializable(package=PACKAGE)
class Encoder(FunctionalModel):
    """Encoder: images to the moments of their raw latents.

    Args:
        channels: width at the highest resolution.
        channel_multipliers: width of each level in units of `channels`; every further level
            halves the resolution, f = 2 ** (levels − 1).
        num_res_blocks: ResnetBlocks per level.
        latent_channels: channels of the latents.
        norm_groups, norm_epsilon: of every group norm.
        image_channels: 3 for RGB.
        quant_conv: end with a 1×1 convolution of the moments.
        dtype: dtype or dtype policy of the layers.
        name: of the Keras model.

    Call arguments:
        inputs: images (B, H, W, image_channels) in [-1, 1]; H and W are multiples of f.

    Returns:
        Moments, float32 (B, H/f, W/f, 2 · latent_channels): mean, then log-variance.

    Raises:
        ValueError: `norm_groups` does not divide a width.

    Example:
        >>> encoder = latentddpm.Encoder(channels=8, channel_multipliers=(1, 2), norm_groups=4)
        >>> tuple(encoder(np.zeros((1, 16, 16, 3), "float32")).shape)
        (1, 8, 8, 8)
    """

    def __init__(
        self,
        channels: int = 128,
        channel_multipliers: Sequence[int] = (1, 2, 4, 4),
        num_res_blocks: int = 2,
        latent_channels: int = 4,
        norm_groups: int = 32,
        norm_epsilon: float = 1e-6,
        image_channels: int = 3,
        quant_conv: bool = True,
        dtype: Any = None,
        name: str = "encoder",
    ) -> None:
        config = constructor_arguments(locals())
        if quant_conv:
            del config["quant_conv"]  # older models, without this argument, keep their digest
        norm = {"norm_groups": norm_groups, "norm_epsilon": norm_epsilon, "dtype": dtype}
        inputs = keras.Input((None, None, image_channels), name="images", dtype="float32")
        hidden = PaddedConv2D(channels, 3, padding=1, dtype=dtype, name="conv_in")(inputs)
        width = channels
        for level, multiplier in enumerate(channel_multipliers):
            width = channels * multiplier
            for block in range(num_res_blocks):
                hidden = ResnetBlock(width, **norm, name=f"down_{level}_block_{block}")(hidden)
            if level < len(channel_multipliers) - 1:
                hidden = PaddedConv2D(
                    width,
                    3,
                    padding=((0, 1), (0, 1)),
                    stride=2,
                    dtype=dtype,
                    name=f"down_{level}_downsample",
                )(hidden)
        hidden = _middle(hidden, width, norm)
        hidden = group_norm(width, norm_groups, norm_epsilon, dtype=dtype, name="norm_out")(hidden)
        hidden = layers.Activation("silu", dtype=dtype, name="act_out")(hidden)
        count, own = 2 * latent_channels, dtype if quant_conv else "float32"
        moments = PaddedConv2D(count, 3, padding=1, dtype=own, name="conv_out")(hidden)
        if quant_conv:
            moments = PaddedConv2D(count, 1, dtype="float32", name="quant")(moments)
        super().__init__(inputs, moments, config, name=name)


@keras.saving.register_keras_serializable(package=PACKAGE)
class Decoder(FunctionalModel):
    """Decoder: raw latents to images.

    Args:
        channels: width at the highest resolution.
        channel_multipliers: width of each level in units of `channels`, from the highest
            resolution down, as in the encoder; f = 2 ** (levels − 1).
        num_res_blocks: ResnetBlocks per level of the encoder; the decoder has one more.
        latent_channels: channels of the latents.
        norm_groups, norm_epsilon: of every group norm.
        image_channels: 3 for RGB.
        quant_conv: begin with a 1×1 convolution of the raw latents.
        dtype: dtype or dtype policy of the layers.
        name: of the Keras model.

    Call arguments:
        inputs: raw latents, that is unscaled, (B, h, w, latent_channels).

    Returns:
        Images, float32 (B, h·f, w·f, image_channels), about [-1, 1].

    Raises:
        ValueError: `norm_groups` does not divide a width.

    Example:
        >>> decoder = latentddpm.Decoder(channels=8, channel_multipliers=(1, 2), norm_groups=4)
        >>> tuple(decoder(np.zeros((1, 8, 8, 4), "float32")).shape)
        (1, 16, 16, 3)
    """

    def __init__(
        self,
        channels: int = 128,
        channel_multipliers: Sequence[int] = (1, 2, 4, 4),
        num_res_blocks: int = 2,
        latent_channels: int = 4,
        norm_groups: int = 32,
        norm_epsilon: float = 1e-6,
        image_channels: int = 3,
        quant_conv: bool = True,
        dtype: Any = None,
        name: str = "decoder",
    ) -> None:
        config = constructor_arguments(locals())
        if quant_conv:
            del config["quant_conv"]  # older models, without this argument, keep their digest
        norm = {"norm_groups": norm_groups, "norm_epsilon": norm_epsilon, "dtype": dtype}
        inputs = keras.Input((None, None, latent_channels), name="raw_latents", dtype="float32")
        hidden = inputs
        if quant_conv:
            hidden = PaddedConv2D(latent_channels, 1, dtype=dtype, name="post_quant")(hidden)
        width = channels * channel_multipliers[-1]
        hidden = PaddedConv2D(width, 3, padding=1, dtype=dtype, name="conv_in")(hidden)
        hidden = _middle(hidden, width, norm)
        for level in reversed(range(len(channel_multipliers))):
            width = channels * channel_multipliers[level]
            for block in range(num_res_blocks + 1):
                hidden = ResnetBlock(width, **norm, name=f"up_{level}_block_{block}")(hidden)
            if level > 0:
                hidden = Upsample(width, dtype=dtype, name=f"up_{level}_upsample")(hidden)
        hidden = group_norm(width, norm_groups, norm_epsilon, dtype=dtype, name="norm_out")(hidden)
        hidden = layers.Activation("silu", dtype=dtype, name="act_out")(hidden)
        images = PaddedConv2D(image_channels, 3, padding=1, dtype="float32", name="conv_out")(
            hidden
        )
        super().__init__(inputs, images, config, name=name)

    @property
    def last_kernel(self) -> keras.Variable:
        """Kernel of the last convolution, by whose gradient the adversarial loss is weighted."""
        return self.get_layer("conv_out").conv.kernel


def _middle(hidden: Any, width: int, norm: dict[str, Any]) -> Any:
    """Output of the middle: ResnetBlock, AttentionBlock, ResnetBlock at the lowest resolution."""
    hidden = ResnetBlock(width, **norm, name="mid_block_0")(hidden)
    hidden = AttentionBlock(**norm, name="mid_attention")(hidden)
    return ResnetBlock(width, **norm, name="mid_block_1")(hidden)
