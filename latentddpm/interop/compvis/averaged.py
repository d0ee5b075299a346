"""Averaged weights (EMA) of a CompVis checkpoint, under the names of the plain ones.

Training code keeps a moving average of the weights under names of its own, and some files hold
that alone. CompVis' `LitEma` takes all dots out of a name, because PyTorch allows none in the name
of a buffer:

    model.diffusion_model.input_blocks.11.0.in_layers.2.weight
    model_ema.diffusion_modelinput_blocks110in_layers2weight

The dots are put back by the words that such names are made of. Blocks have at most ten parts, so
the last digit after `input_blocks` is one of its own.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator

from latentddpm.errors import UserError
from latentddpm.interop.tensors import RenamedTensors, Tensors

PREFIXES = ("model_ema.", "ema_model.", "ema.")
"""Beginnings of the names of averaged weights."""

COUNTERS = ("decay", "num_updates", "collected_params", "initted", "step")
"""Names below these prefixes that are no weights."""

NETWORKS = {
    "unet": ("model.diffusion_model.", "input_blocks.0.0.weight"),
    "vae": ("first_stage_model.", "encoder.conv_in.weight"),
}
"""Network → its prefix, and the name of its first weight."""

WORDS = (
    *("diffusion_model", "input_blocks", "middle_block", "output_blocks", "time_embed"),
    *("in_layers", "emb_layers", "out_layers", "skip_connection", "op", "out"),
    *("transformer_blocks", "proj_in", "proj_out", "attn1", "attn2", "to_q", "to_k", "to_v"),
    *("to_out", "ff", "net", "proj", "norm1", "norm2", "norm3", "norm", "conv", "weight", "bias"),
    # Of the autoencoder.
    *("encoder", "decoder", "conv_in", "conv_out", "norm_out", "down", "up", "mid", "block_1"),
    *("block_2", "block", "attn_1", "conv1", "conv2", "nin_shortcut", "q", "k", "v"),
    *("downsample", "upsample", "quant_conv", "post_quant_conv"),
)
"""Parts of a tensor's name in CompVis' networks, between the dots."""

NAME = re.compile(
    r"(input_blocks|output_blocks)(\d+)(\d)"
    + "".join(f"|({word})" for word in sorted(WORDS, key=len, reverse=True))
    + r"|(\d+)"
)


def with_dots(name: str) -> str | None:
    """Name of a tensor with its dots, from the name without them.

    Args:
        name: such as "input_blocks110in_layers2weight".

    Returns:
        None where it is not made of `WORDS`.
    """
    parts, end = [], 0
    for found in NAME.finditer(name):
        if found.start() != end:
            return None
        parts += [part for part in found.groups() if part is not None]
        end = found.end()
    return ".".join(parts) if end == len(name) else None


def plain_tensors(tensors: Tensors) -> Tensors:
    """Tensors of a checkpoint, in which averaged weights have the names of plain ones.

    Only those of networks whose plain weights the file lacks.

    Args:
        tensors: of the file.

    Returns:
        `tensors` themselves, where no averaged weights are needed.

    Raises:
        UserError: an averaged weight is not one of a network of CompVis.
    """
    keys = list(tensors.keys())
    plain = [key for key in keys if not key.startswith(PREFIXES)]
    lacking = [
        network
        for network, (_, first) in NETWORKS.items()
        if not any(key.endswith(first) for key in plain)
    ]
    averaged = dict(_averaged(keys, lacking, tensors.name)) if lacking else {}
    if not averaged:
        return tensors
    return RenamedTensors(tensors, {**{key: key for key in plain}, **averaged})


def _averaged(
    keys: Iterable[str], networks: Collection[str], source: str
) -> Iterator[tuple[str, str]]:
    """Plain name, and name in the file, of each averaged weight of some networks."""
    for key in keys:
        prefix = next((one for one in PREFIXES if key.startswith(one)), None)
        if prefix is None:
            continue
        name = re.sub(r"^(ema_model\.|module\.|model\.)+", "", key.removeprefix(prefix))
        if name in COUNTERS:
            continue
        name = name if "." in name else with_dots(name)
        if name is None:
            raise UserError(f"{source}: {key!r} is no averaged weight of Stable Diffusion")
        name = name.removeprefix("diffusion_model.").removeprefix("first_stage_model.")
        of_vae = name.startswith(("encoder.", "decoder.", "quant_conv.", "post_quant_conv."))
        network = "vae" if of_vae else "unet"
        if network in networks:
            yield NETWORKS[network][0] + name, key
