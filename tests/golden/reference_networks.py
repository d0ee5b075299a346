"""Configurations of diffusers' networks to compare with, and weights that all matter."""

import torch
from diffusers import UNet2DConditionModel, UNet2DModel

TWO = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
AUTOENCODERS = {
    "sharded": {
        **TWO,
        "block_out_channels": [8, 16],
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "scaling_factor": 0.31,
        "sample_size": 24,
    },
    "two-layers": {
        **TWO,
        "block_out_channels": [8, 8],
        "layers_per_block": 2,
        "norm_num_groups": 2,
    },
}

SMALL = {
    "sample_size": [8, 12],
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "norm_num_groups": 4,
}
UNETS = {
    "head-width": (
        UNet2DModel,
        {
            **SMALL,
            "down_block_types": ["AttnDownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "AttnUpBlock2D"],
            "attention_head_dim": 4,
        },
    ),
    "one-head": (
        UNet2DModel,
        {
            **SMALL,
            "block_out_channels": [8, 8],
            "layers_per_block": 2,
            "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
            "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
            "attention_head_dim": None,
            "norm_eps": 1e-6,
        },
    ),
    "heads-int": (
        UNet2DConditionModel,
        {
            **SMALL,
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
            "attention_head_dim": 2,
            "cross_attention_dim": 6,
        },
    ),
    "heads-list-linear": (
        UNet2DConditionModel,
        {
            **SMALL,
            "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
            "attention_head_dim": [2, 4],
            "cross_attention_dim": 6,
            "use_linear_projection": True,
        },
    ),
}

ORIGINAL = {
    **SMALL,
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": None,
    "norm_eps": 1e-6,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "downsample_padding": 0,
}
"""Details of Ho et al.'s code, as in google/ddpm-cifar10-32."""


@torch.no_grad()
def randomize(model):
    """Move every weight: diffusers starts norms at one and biases at zero."""
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()
