"""Names of tensors in diffusers → names of the same tensors in CompVis' checkpoints.

CompVis numbers the blocks of the UNet in the order in which they run
(`ldm/modules/diffusionmodules/openaimodel.py`), and the levels of the decoder by resolution, so
that the last one runs first (`ldm/modules/diffusionmodules/model.py`). diffusers numbers levels,
and blocks within a level:

    input_blocks.4.1.…       down_blocks.1.attentions.0.…       2 ResnetBlocks per level
    output_blocks.2.1.conv   up_blocks.0.upsamplers.0.conv      no attention in that level
    decoder.up.3.block.0.…   decoder.up_blocks.0.resnets.0.…    4 levels

The name of a module follows from its position in the network, that of a layer in a module from a
fixed table.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
FIRST_STAGE_RESNET = {"conv_shortcut": "nin_shortcut"}
FIRST_STAGE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}

Names = Iterator[tuple[str, str]]


def unet_names(
    keys: Iterable[str], levels: int, num_res_blocks: int, attention_levels: Sequence[int]
) -> dict[str, str]:
    """Names in diffusers → names in CompVis, of the tensors of a `UNet2DConditionModel`.

    Args:
        keys: names in diffusers.
        levels: number of levels.
        num_res_blocks, attention_levels: see `UNet`.
    """
    modules = dict(_unet_modules(levels, num_res_blocks, attention_levels))
    return {key: _renamed(key, modules, RESNET) for key in keys}


def vae_names(keys: Iterable[str], levels: int, num_res_blocks: int) -> dict[str, str]:
    """Names in diffusers → names in CompVis, of the tensors of an `AutoencoderKL`.

    The projections of the attention are 1×1 convolutions in CompVis, (c, c, 1, 1), and (c, c) in
    diffusers.

    Args:
        keys: names in diffusers.
        levels: number of levels.
        num_res_blocks: see `Autoencoder`.
    """
    modules = dict(_vae_modules(levels, num_res_blocks))
    words = {**FIRST_STAGE_RESNET, **FIRST_STAGE_ATTENTION}
    return {key: _renamed(key, modules, words) for key in keys}


def _renamed(key: str, modules: dict[str, str], words: dict[str, str]) -> str:
    """Name in CompVis of a `key`: its module by `modules`, the layer in it by `words`."""
    parts = key.split(".")
    for end in range(len(parts) - 1, 0, -1):
        module = ".".join(parts[:end])
        if module not in modules:
            continue
        rest = ".".join(parts[end:])
        layer, _, tensor = rest.rpartition(".")
        return ".".join(filter(None, [modules[module], words.get(layer, layer), tensor]))
    raise KeyError(key)


def _unet_modules(levels: int, num_res_blocks: int, attention_levels: Sequence[int]) -> Names:
    yield "time_embedding.linear_1", "time_embed.0"
    yield "time_embedding.linear_2", "time_embed.2"
    yield "class_embedding", "label_emb"
    yield "class_embedding.linear_1", "label_emb.0.0"
    yield "class_embedding.linear_2", "label_emb.0.2"
    yield "conv_in", "input_blocks.0.0"
    number = 1
    for level in range(levels):
        for block in range(num_res_blocks):
            yield f"down_blocks.{level}.resnets.{block}", f"input_blocks.{number}.0"
            yield f"down_blocks.{level}.attentions.{block}", f"input_blocks.{number}.1"
            number += 1
        yield f"down_blocks.{level}.downsamplers.0.conv", f"input_blocks.{number}.0.op"
        number += 1
    yield "mid_block.resnets.0", "middle_block.0"
    yield "mid_block.attentions.0", "middle_block.1"
    yield "mid_block.resnets.1", "middle_block.2"
    number = 0
    for up, level in enumerate(reversed(range(levels))):
        for block in range(num_res_blocks + 1):
            yield f"up_blocks.{up}.resnets.{block}", f"output_blocks.{number}.0"
            yield f"up_blocks.{up}.attentions.{block}", f"output_blocks.{number}.1"
            number += 1
        # The last block of a level has the upsampling, after its attention if there is one.
        place = 2 if level in attention_levels else 1
        yield f"up_blocks.{up}.upsamplers.0.conv", f"output_blocks.{number - 1}.{place}.conv"
    yield "conv_norm_out", "out.0"
    yield "conv_out", "out.2"


def _vae_modules(levels: int, num_res_blocks: int) -> Names:
    for half in ("encoder", "decoder"):
        yield f"{half}.conv_in", f"{half}.conv_in"
        yield f"{half}.mid_block.resnets.0", f"{half}.mid.block_1"
        yield f"{half}.mid_block.attentions.0", f"{half}.mid.attn_1"
        yield f"{half}.mid_block.resnets.1", f"{half}.mid.block_2"
        yield f"{half}.conv_norm_out", f"{half}.norm_out"
        yield f"{half}.conv_out", f"{half}.conv_out"
    for level in range(levels):
        down, up = f"encoder.down.{level}", f"decoder.up.{levels - 1 - level}"
        for block in range(num_res_blocks + 1):
            yield f"encoder.down_blocks.{level}.resnets.{block}", f"{down}.block.{block}"
            yield f"decoder.up_blocks.{level}.resnets.{block}", f"{up}.block.{block}"
        yield f"encoder.down_blocks.{level}.downsamplers.0.conv", f"{down}.downsample.conv"
        yield f"decoder.up_blocks.{level}.upsamplers.0.conv", f"{up}.upsample.conv"
    yield "quant_conv", "quant_conv"
    yield "post_quant_conv", "post_quant_conv"
