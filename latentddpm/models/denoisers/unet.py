"""UNet: the denoiser, from noisy latents, timesteps and, if conditional, text to a prediction.

A U-Net of ResnetBlocks with attention at some levels (Ho et al. 2020, appendix B; Rombach et al.
2022, §3.3). An unconditional one has self-attention, as diffusers' `UNet2DModel`. A conditional
one has transformer blocks with cross-attention, as the `UNet2DConditionModel` of Stable Diffusion
1.x. The schedule says what it predicts: noise, v or the clean latents.

Each level has half the positions of the one above it, ⌈n/2⌉ of n; on the way up the size is that
of the skip connection. So any size is taken, as by diffusers' `UNet2DConditionModel`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import layers

from latentddpm.models.denoisers.base import Denoiser, denoiser_inputs
from latentddpm.models.denoisers.way_down import Blocks, add_residuals
from latentddpm.models.functional import constructor_arguments
from latentddpm.models.layers import PACKAGE, PaddedConv2D, group_norm
from latentddpm.models.resample import Upsample

NORM_EPSILON = 1e-5
LATER = {
    "norm_epsilon": NORM_EPSILON,
    "learned_variance": False,
    "spatial_dims": 2,
    "original_ddpm": False,
    "time_scale_shift": False,
    "conditions": None,
    "regions": 0,
}
"""Arguments that older models lack, with their defaults, which are not saved: so they keep their
digest."""
NOT_SAVED = ("recompute", "control_residuals")
"""Arguments that change how the network is trained or told, not what it is."""


@keras.saving.register_keras_serializable(package=PACKAGE)
class UNet(Denoiser):
    """UNet: the denoiser of latents, unconditional or conditioned on text.

    Args:
        channels: width at the highest resolution.
        channel_multipliers: width of each level in units of `channels`; every further level
            halves the resolution.
        num_res_blocks: ResnetBlocks per level on the way down; there is one more on the way up.
        attention_levels: levels with attention, where 0 is the highest resolution. The middle
            always has attention.
        num_heads: attention heads, one number or one for each level; the middle has those of
            the last level.
        context_dim: width of the text encodings; None for an unconditional network.
        latent_channels: channels of the input and of the prediction.
        norm_groups: of every group norm.
        dropout: rate inside the ResnetBlocks.
        zero_init: start with zeros as the output of every residual branch and of the network.
        norm_epsilon: of the group norms, except those in transformer blocks (1e-6).
        learned_variance: predict 2c channels: first the prediction, then the fraction v in [-1, 1]
            of the reverse process's log-variance between its two bounds (Nichol & Dhariwal 2021,
            eq. 15). Such a network is sampled, not trained here.
        spatial_dims: 1 for signals (B, L, c), 2 for images, 3 for volumes (B, D, H, W, c).
        original_ddpm: details of the code of Ho et al., which published checkpoints have: their
            embedding of timesteps (see `TimestepEmbedding`), and TensorFlow's padding in front of
            strided convolutions. Later networks have PyTorch's.
        time_scale_shift: the timestep and the vectors of conditions multiply and shift the
            features of a ResnetBlock, instead of being added (Dhariwal & Nichol 2021, §3.1).
        conditions: further inputs, each with its `name`, the way it `enters` and its `size`; see
            `models.denoisers.told`. None for none.
        regions: R, parts of the latents that are told different texts, by cross-attention that is
            masked; see `models.denoisers.transformer`. 0 for one text everywhere. The weights do
            not depend on it: `rebuild(unet, regions=2)` is the same network for two.
        recompute: compute activations again in the backward pass instead of keeping them. In
            training an example takes a third of the memory and a step a fifth more time
            (measured, see docs/benchmarks.md). Not saved with the model.
        control_residuals: take what is added to the skip connections and to the middle as further
            inputs, see `models.denoisers.control`. Not saved with the model.
        dtype: dtype or dtype policy of the layers.
        name: of the Keras model.

    Call arguments:
        inputs: `{"noisy_latents": (B, h, w, c), "timesteps": (B,)}` and, with `context_dim`,
            `"context"`: (B, L, context_dim). Timesteps are whole numbers, or float32 numbers
            between them as some samplers need. Conditions by their names: vectors (B, size),
            maps (B, h, w, size). With `regions` `"context"` is (B, R, L, context_dim), and
            `"region_weights"`, (B, h, w, R), are the regions' shares of each position, of sum 1.
            With `control_residuals` also the outputs of a `ControlNet`, by their names.

    Returns:
        The prediction, float32 (B, h, w, c); with `learned_variance` (B, h, w, 2c).

    Raises:
        ValueError: `norm_groups` or `num_heads` does not divide a width, an attention level
            does not exist, `num_heads` is a list without a number for each level,
            `spatial_dims` is not 1, 2 or 3, a condition has another form, or there are regions
            without a `context_dim`.

    Example:
        >>> unet = latentddpm.UNet(  # Stable Diffusion 1.x: 320 channels, context_dim=768
        ...     channels=16, channel_multipliers=(1, 2), attention_levels=(1,), num_heads=2,
        ...     norm_groups=4,
        ... )
        >>> noisy_latents, timesteps = np.zeros((2, 8, 8, 4), "float32"), np.array([0, 999])
        >>> tuple(unet({"noisy_latents": noisy_latents, "timesteps": timesteps}).shape)
        (2, 8, 8, 4)
    """

    def __init__(
        self,
        channels: int = 320,
        channel_multipliers: Sequence[int] = (1, 2, 4, 4),
        num_res_blocks: int = 2,
        attention_levels: Sequence[int] = (0, 1, 2),
        num_heads: int | Sequence[int] = 8,
        context_dim: int | None = None,
        latent_channels: int = 4,
        norm_groups: int = 32,
        dropout: float = 0.0,
        zero_init: bool = True,
        norm_epsilon: float = NORM_EPSILON,
        learned_variance: bool = False,
        spatial_dims: int = 2,
        original_ddpm: bool = False,
        time_scale_shift: bool = False,
        conditions: Sequence[Mapping[str, Any]] | None = None,
        regions: int = 0,
        recompute: bool = False,
        control_residuals: bool = False,
        dtype: Any = None,
        name: str = "unet",
    ) -> None:
        arguments = constructor_arguments(locals())
        arguments["conditions"] = [dict(one) for one in conditions or ()] or None
        config = {k: v for k, v in arguments.items() if k not in LATER or v != LATER[k]}
        for key in NOT_SAVED:
            del config[key]
        told = arguments["conditions"] or ()
        inputs = denoiser_inputs(latent_channels, spatial_dims, context_dim, told, regions)
        blocks = Blocks({**arguments, "dtype": dtype}, inputs)
        hidden, skips = blocks.way_down()
        if control_residuals:
            residuals, (*skips, hidden) = add_residuals([*skips, hidden], dtype)
            inputs = {**inputs, **residuals}

        for level in reversed(range(len(channel_multipliers))):
            width = channels * channel_multipliers[level]
            for block in range(num_res_blocks + 1):
                hidden = layers.Concatenate(dtype=dtype, name=f"up_{level}_skip_{block}")(
                    [hidden, skips.pop()]
                )
                hidden = blocks.resnet(hidden, width, f"up_{level}_block_{block}")
                if level in attention_levels:
                    hidden = blocks.attend(hidden, level, f"up_{level}_attention_{block}")
            if level > 0:
                hidden = Upsample(width, dtype=dtype, name=f"up_{level}_upsample")(
                    hidden, skips[-1]
                )
        assert not skips, "every skip connection is used"

        hidden = group_norm(channels, norm_groups, norm_epsilon, dtype=dtype, name="norm_out")(
            hidden
        )
        hidden = layers.Activation("silu", dtype=dtype, name="act_out")(hidden)
        outputs = (1 + learned_variance) * latent_channels
        prediction = PaddedConv2D(
            outputs, 3, padding=1, zero_init=zero_init, dtype="float32", name="conv_out"
        )(hidden)
        super().__init__(inputs, prediction, config, name=name)
