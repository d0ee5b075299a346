"""Configuration of the networks in a CompVis checkpoint, inferred from the shapes of tensors.

Values that do not follow from shapes are those of Stable Diffusion 1.x (`configs/stable-diffusion/
v1-inference.yaml` of CompVis): 8 attention heads in the UNet, 64 channels per head in CLIP, 32
groups, the scaling factor of the latents. The keys are those of diffusers and transformers.

All functions take the shapes of tensors by name, without the prefix of the network in the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from latentddpm.errors import UserError
from latentddpm.interop.diffusers.known_keys import AUTOENCODER, CONDITIONAL_UNET

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]

NUM_HEADS = 8
TEXT_HEAD_WIDTH = 64
SCALING_FACTOR = 0.18215
LATENT_SIZE = 64  # 512 pixels
LATENT_FACTOR = 8


def unet_config(shapes: Shapes, source: str) -> dict[str, Any]:
    """Configuration of a `UNet2DConditionModel`.

    Args:
        shapes: name in CompVis → shape, of the UNet.
        source: of the tensors, for messages.

    Raises:
        UserError: a tensor is missing, or they are those of another model.
    """
    in_channels = _axes(shapes, "input_blocks.0.0.weight", source, 4)[1]
    out_channels = _axes(shapes, "out.2.weight", source, 4)[0]
    levels: list[list[tuple[int, bool]]] = [[]]  # of each block: width, attention
    number = 1
    while True:
        block = f"input_blocks.{number}"
        if f"{block}.0.in_layers.2.weight" in shapes:
            width = _axes(shapes, f"{block}.0.in_layers.2.weight", source, 4)[0]
            levels[-1].append((width, f"{block}.1.norm.weight" in shapes))
        elif f"{block}.0.op.weight" in shapes:
            levels.append([])
        else:
            break
        number += 1
    if not all(levels):
        raise UserError(f"{source}: a level without blocks; no UNet of Stable Diffusion 1.x")
    attention = [level[0][1] for level in levels]
    projection = shapes.get("middle_block.1.proj_in.weight", ())
    key = "middle_block.1.transformer_blocks.0.attn2.to_k.weight"
    down = ["CrossAttnDownBlock2D" if has else "DownBlock2D" for has in attention]
    up = ["CrossAttnUpBlock2D" if has else "UpBlock2D" for has in reversed(attention)]
    return {
        "_class_name": CONDITIONAL_UNET,
        "sample_size": LATENT_SIZE,
        "in_channels": in_channels,
        "out_channels": out_channels,
        "block_out_channels": [level[0][0] for level in levels],
        "layers_per_block": len(levels[0]),
        "down_block_types": down,
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "up_block_types": up,
        "attention_head_dim": NUM_HEADS,
        "cross_attention_dim": _axes(shapes, key, source, 2)[1],
        "use_linear_projection": len(projection) == 2,
        "norm_num_groups": 32,
        "norm_eps": 1e-5,
    }


def vae_config(shapes: Shapes, source: str) -> dict[str, Any]:
    """Configuration of an `AutoencoderKL`.

    Args:
        shapes: name in CompVis → shape, of the autoencoder.
        source: of the tensors, for messages.

    Raises:
        UserError: a tensor is missing, or they are those of another model.
    """
    if "quant_conv.weight" not in shapes or "post_quant_conv.weight" not in shapes:
        raise UserError(
            f"{source}: an autoencoder without quant_conv (as Stable Diffusion 3's and Flux'): "
            "such a file does not name the scaling of its latents; convert its diffusers folder"
        )
    widths: list[int] = []
    while (key := f"encoder.down.{len(widths)}.block.0.conv1.weight") in shapes:
        widths.append(_axes(shapes, key, source, 4)[0])
    blocks = 0
    while f"encoder.down.0.block.{blocks}.conv1.weight" in shapes:
        blocks += 1
    return {
        "_class_name": AUTOENCODER,
        "in_channels": _axes(shapes, "encoder.conv_in.weight", source, 4)[1],
        "out_channels": _axes(shapes, "decoder.conv_out.weight", source, 4)[0],
        "latent_channels": _axes(shapes, "decoder.conv_in.weight", source, 4)[1],
        "block_out_channels": widths,
        "layers_per_block": max(blocks, 1),
        "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "up_block_types": ["UpDecoderBlock2D"] * len(widths),
        "norm_num_groups": 32,
        "act_fn": "silu",
        "scaling_factor": SCALING_FACTOR,
    }


def text_config(shapes: Shapes, source: str) -> dict[str, Any]:
    """Configuration of a `CLIPTextModel`.

    Args:
        shapes: name in transformers → shape, of the text encoder.
        source: of the tensors, for messages.

    Raises:
        UserError: a tensor is missing, or they are those of another model.
    """
    key = "embeddings.token_embedding.weight"
    vocabulary_size, width = _axes(shapes, key, source, 2)
    if width % TEXT_HEAD_WIDTH:
        raise UserError(
            f"{source}: the width {width} is no multiple of {TEXT_HEAD_WIDTH}, a head of CLIP"
        )
    layers = 0
    while f"encoder.layers.{layers}.mlp.fc1.weight" in shapes:
        layers += 1
    return {
        "model_type": "clip_text_model",
        "vocab_size": vocabulary_size,
        "max_position_embeddings": _axes(
            shapes, "embeddings.position_embedding.weight", source, 2
        )[0],
        "hidden_size": width,
        "intermediate_size": _axes(shapes, "encoder.layers.0.mlp.fc1.weight", source, 2)[0],
        "num_hidden_layers": layers,
        "num_attention_heads": width // TEXT_HEAD_WIDTH,
        "hidden_act": "quick_gelu",
    }


def _axes(shapes: Shapes, key: str, source: str, rank: int) -> Shape:
    """Shape of a tensor, after a check that it exists and has `rank` axes."""
    if key not in shapes:
        raise UserError(f"{source}: no tensor {key!r}; no network of Stable Diffusion 1.x")
    if len(shapes[key]) != rank:
        raise UserError(f"{source}: {key!r} is {shapes[key]}, expected {rank} axes")
    return shapes[key]
