"""Known keys of the `config.json` of diffusers' networks, with their supported values.

A configuration is checked before a weight is read. Every key is either read, or has the value that
describes the networks here, or does not change what a network computes. An unknown key is refused
unless its value is null or false, which means that a newer option is off.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from latentddpm.errors import UserError, check_choice

Config = Mapping[str, Any]

AUTOENCODER, UNET, CONDITIONAL_UNET = "AutoencoderKL", "UNet2DModel", "UNet2DConditionModel"
CLASSES = (AUTOENCODER, UNET, CONDITIONAL_UNET)
AUTOENCODER_EPSILON = 1e-6
SCALE_SHIFT, SCALE_SHIFTS = "resnet_time_scale_shift", ("default", "scale_shift")
"""Key of a UNet, and its values: the timestep is added, or multiplies and shifts."""

# Properties that all networks here have: key → its supported values.
FIXED: dict[str, dict[str, tuple[Any, ...]]] = {
    AUTOENCODER: {
        "act_fn": ("silu", "swish"),
        "mid_block_add_attention": (True,),
    },
    UNET: {
        "mid_block_type": ("UNetMidBlock2D",),
        "add_attention": (True,),
        "downsample_type": ("conv",),
        "upsample_type": ("conv",),
    },
    CONDITIONAL_UNET: {
        "mid_block_type": ("UNetMidBlock2DCrossAttn",),
        "num_attention_heads": (None,),
        "only_cross_attention": (False,),
        "mid_block_only_cross_attention": (None, False),
        "transformer_layers_per_block": (1,),
        "reverse_transformer_layers_per_block": (None,),
        "encoder_hid_dim": (None,),
        "encoder_hid_dim_type": (None,),
        "dual_cross_attention": (False,),
        "addition_embed_type": (None,),
        "addition_time_embed_dim": (None,),
        "upcast_attention": (False, None),
        "resnet_skip_time_act": (False,),
        "resnet_out_scale_factor": (1,),
        "time_embedding_act_fn": (None,),
        "timestep_post_act": (None,),
        "time_cond_proj_dim": (None,),
        "conv_in_kernel": (3,),
        "conv_out_kernel": (3,),
        "attention_type": ("default",),
        "class_embeddings_concat": (False,),
        "cross_attention_norm": (None,),
    },
}
BOTH_UNETS = {
    "act_fn": ("silu", "swish"),
    "center_input_sample": (False,),
    "time_embedding_type": ("positional",),
    "mid_block_scale_factor": (1,),
    SCALE_SHIFT: SCALE_SHIFTS,
}
MIDDLE_GROUPS = "attn_norm_num_groups"
OWN = "_latentddpm"
"""Key of our own; diffusers leaves alone what begins with an underscore."""
ORIGINAL = {
    "flip_sin_to_cos": (True, False),
    "freq_shift": (0, 1),
    "downsample_padding": (1, 0),
}
"""Key of a UNet → its value in Stable Diffusion, and in checkpoints of Ho et al.'s code."""
READ = {
    AUTOENCODER: (
        "in_channels",
        "out_channels",
        "latent_channels",
        "block_out_channels",
        "down_block_types",
        "up_block_types",
        "layers_per_block",
        "norm_num_groups",
        "scaling_factor",
        "shift_factor",
        "latents_mean",
        "latents_std",
        "use_quant_conv",
        "use_post_quant_conv",
        "sample_size",
    ),
    UNET: (
        "in_channels",
        "out_channels",
        "block_out_channels",
        "down_block_types",
        "up_block_types",
        "layers_per_block",
        "attention_head_dim",
        "norm_num_groups",
        MIDDLE_GROUPS,
        "norm_eps",
        "dropout",
        "time_embedding_dim",
        "class_embed_type",
        "num_class_embeds",
        *ORIGINAL,
        "sample_size",
    ),
}
READ[CONDITIONAL_UNET] = (
    *READ[UNET],
    "cross_attention_dim",
    "use_linear_projection",
    "projection_class_embeddings_input_dim",
)
# Keys that do not change what a network computes: options of the pipeline, and what diffusers'
# `EMAModel` adds to the configuration of averaged weights (`unet_ema/`).
AVERAGE = (
    *("decay", "min_decay", "optimization_step", "update_after_step", "use_ema_warmup"),
    *("inv_gamma", "power"),
)
IDLE = {
    AUTOENCODER: ("force_upcast",),
    UNET: ("num_train_timesteps", *AVERAGE),
    CONDITIONAL_UNET: ("addition_embed_type_num_heads", *AVERAGE),
}
BLOCKS = {
    AUTOENCODER: (("DownEncoderBlock2D",), ("UpDecoderBlock2D",)),
    UNET: (("DownBlock2D", "AttnDownBlock2D"), ("UpBlock2D", "AttnUpBlock2D")),
    CONDITIONAL_UNET: (
        ("DownBlock2D", "CrossAttnDownBlock2D"),
        ("UpBlock2D", "CrossAttnUpBlock2D"),
    ),
}


def scale_shift_key(ours: Config) -> dict[str, str]:
    """Key of a UNet whose timestep multiplies and shifts; none for one that adds it.

    Args:
        ours: arguments of the network here.
    """
    return {SCALE_SHIFT: SCALE_SHIFTS[1]} if ours.get("time_scale_shift") else {}


def validate(config: Config, source: str, kinds: Sequence[str]) -> str:
    """Check a configuration, and return its class.

    Args:
        config: of a network.
        source: its file, for messages.
        kinds: valid classes.

    Raises:
        UserError: another class, or an unsupported key or value.
    """
    kind = config.get("_class_name")
    if not isinstance(kind, str):
        raise UserError(f"{source}: _class_name: {kind!r}, expected one of {', '.join(kinds)}")
    check_choice(f"{source}: _class_name", kind, kinds)
    fixed = {**(BOTH_UNETS if kind != AUTOENCODER else {}), **FIXED[kind]}
    for key, value in config.items():
        if key.startswith("_") or key in READ[kind] or key in IDLE[kind]:
            continue
        allowed = fixed.get(key, (None, False))
        values = value if isinstance(value, list) and value else [value]
        if not all(_is_one_of(one, allowed) for one in values):
            hint = "this key is not known" if key not in fixed else "that is not supported"
            expected = " or ".join("null" if one is None else repr(one) for one in allowed)
            raise UserError(
                f"{source}: {key}: {value!r:.80} in {kind}: {hint}; expected {expected}"
            )
    return kind


def _is_one_of(value: Any, allowed: Sequence[Any]) -> bool:
    """True where `value` is one of `allowed`; true and 1 are not equal here."""
    return any(
        value == one and isinstance(value, bool) == isinstance(one, bool) for one in allowed
    )
