"""Writing of the `config.json` of diffusers' networks, from the networks here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from latentddpm.conditions.conditions import Conditions
from latentddpm.errors import UserError
from latentddpm.interop.diffusers.conditions import condition_keys, map_channels, own_keys
from latentddpm.interop.diffusers.known_keys import (
    AUTOENCODER,
    AUTOENCODER_EPSILON,
    BLOCKS,
    CONDITIONAL_UNET,
    FIXED,
    MIDDLE_GROUPS,
    ORIGINAL,
    UNET,
    Config,
    scale_shift_key,
)
from latentddpm.models.autoencoder.autoencoder import Autoencoder
from latentddpm.models.denoisers.unet import NORM_EPSILON, UNet


def autoencoder_config(
    autoencoder: Autoencoder, image_size: tuple[int, int] | None
) -> dict[str, Any]:
    """Configuration of `AutoencoderKL` for an autoencoder.

    Args:
        autoencoder: to describe.
        image_size: (height, width) in pixels that it was trained with; None if unknown.

    Raises:
        UserError: `AutoencoderKL` cannot be such a network; the message names the argument.
    """
    ours = autoencoder.get_config()
    _starts_at_one(ours, "autoencoder")
    if ours["norm_epsilon"] != AUTOENCODER_EPSILON:
        raise UserError(
            f"autoencoder: norm_epsilon {ours['norm_epsilon']}: diffusers' AutoencoderKL has "
            f"{AUTOENCODER_EPSILON} and no other"
        )
    levels = len(ours["channel_multipliers"])
    (down,), (up,) = BLOCKS[AUTOENCODER]
    config = {
        "_class_name": AUTOENCODER,
        "act_fn": "silu",
        "block_out_channels": [ours["channels"] * n for n in ours["channel_multipliers"]],
        "down_block_types": [down] * levels,
        "up_block_types": [up] * levels,
        "in_channels": ours["image_channels"],
        "out_channels": ours["image_channels"],
        "latent_channels": ours["latent_channels"],
        "layers_per_block": ours["num_res_blocks"],
        "norm_num_groups": ours["norm_groups"],
        **_latent_space(autoencoder),
        "force_upcast": False,
    }
    if not autoencoder.quant_conv:
        config |= {"use_quant_conv": False, "use_post_quant_conv": False}
    if image_size is not None:
        config["sample_size"] = max(image_size)
    return config


def unet_config(
    unet: UNet, latent_size: tuple[int, int] | None, conditions: Conditions | None = None
) -> dict[str, Any]:
    """Configuration of `UNet2DModel` or `UNet2DConditionModel` for a UNet.

    Args:
        unet: to describe.
        latent_size: (height, width) of the latents that it was trained with; None if unknown.
        conditions: of its model, with their names and words; None if unknown.

    Raises:
        UserError: neither of the two can be such a network; the message names the argument.
    """
    if not isinstance(unet, UNet) or unet.spatial_dims != 2:
        what = f"{type(unet).__name__} of {unet.spatial_dims} dimensions"
        raise UserError(f"unet: diffusers has no network like a {what}; expected a UNet of 2")
    ours = unet.get_config()
    _starts_at_one(ours, "unet")
    if ours.get("original_ddpm") and any(one["enters"] == "timestep" for one in unet.conditions):
        raise UserError(
            "unet: original_ddpm beside a condition that enters by timestep: "
            "diffusers has the sines of both first, or of none"
        )
    kind = UNET if unet.context_dim is None else CONDITIONAL_UNET
    widths = [ours["channels"] * n for n in ours["channel_multipliers"]]
    levels = range(len(widths))
    heads = ours["num_heads"]
    heads = [heads for _ in levels] if isinstance(heads, int) else heads
    down, up = BLOCKS[kind]
    config = {
        "_class_name": kind,
        "act_fn": "silu",
        "block_out_channels": widths,
        "down_block_types": [down[level in ours["attention_levels"]] for level in levels],
        "up_block_types": [up[level in ours["attention_levels"]] for level in reversed(levels)],
        "mid_block_type": FIXED[kind]["mid_block_type"][0],
        "layers_per_block": ours["num_res_blocks"],
        "in_channels": ours["latent_channels"] + map_channels(unet.conditions),
        "out_channels": (1 + unet.learned_variance) * ours["latent_channels"],
        "norm_num_groups": ours["norm_groups"],
        "norm_eps": ours.get("norm_epsilon", NORM_EPSILON),
        "dropout": ours["dropout"],
        "center_input_sample": False,
        **scale_shift_key(ours),
        **{key: known[ours.get("original_ddpm", False)] for key, known in ORIGINAL.items()},
        **condition_keys(unet.conditions, kind),
        **own_keys(conditions or Conditions()),
    }
    if kind == CONDITIONAL_UNET:
        config["attention_head_dim"] = heads[0] if len(set(heads)) == 1 else heads
        config["cross_attention_dim"] = unet.context_dim
        config["use_linear_projection"] = False
    else:
        config["attention_head_dim"] = _head_width(widths, heads, ours["attention_levels"])
        if ours.get("time_scale_shift"):
            config[MIDDLE_GROUPS] = ours["norm_groups"]  # null would take the middle's norm away
    if latent_size is not None:
        height, width = latent_size
        config["sample_size"] = height if height == width else [height, width]
    return config


def _latent_space(autoencoder: Autoencoder) -> dict[str, Any]:
    """Scaling and shift as `AutoencoderKL` has them: one number each, or statistics by channel."""
    space = autoencoder.latent_space
    scale, shift = space.scaling_factor, space.shift_factor
    if not isinstance(scale, tuple) and not isinstance(shift, tuple):
        return {"scaling_factor": scale, **({"shift_factor": shift} if shift else {})}
    ones = np.ones(autoencoder.latent_channels)
    return {
        "scaling_factor": 1.0,
        "latents_mean": (shift * ones).tolist(),
        "latents_std": (1 / (scale * ones)).tolist(),
    }


def _starts_at_one(ours: Config, name: str) -> None:
    first = ours["channel_multipliers"][0]
    if first != 1:
        raise UserError(
            f"{name}: channel_multipliers begin with {first}: diffusers' first convolution is as "
            "wide as the first level, expected 1"
        )


def _head_width(
    widths: Sequence[int], heads: Sequence[int], attention_levels: Sequence[int]
) -> int | None:
    """Width of a head, `attention_head_dim` of `UNet2DModel`: the same for the whole network."""
    levels = sorted({*attention_levels, len(widths) - 1})
    if all(heads[level] == 1 for level in levels):
        return None
    sizes = {widths[level] // heads[level] for level in levels}
    if len(sizes) > 1:
        raise UserError(
            f"unet: num_heads {heads[0] if len(set(heads)) == 1 else heads}: heads are "
            f"{sorted(sizes)} wide at the levels with attention; diffusers' UNet2DModel has one "
            "width of a head for all levels"
        )
    return sizes.pop()
