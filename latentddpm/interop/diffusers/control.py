"""ControlNets of diffusers: `ControlNetModel` folders, read into a `ControlNet` and written.

    config.json, diffusion_pytorch_model.safetensors

A `ControlNetModel` is the way down of a `UNet2DConditionModel`, with the same keys and names; so
its configuration is read as that of one, and its weight map is the UNet's up to the middle.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latentddpm.errors import UserError, check_choice
from latentddpm.interop.diffusers.conditions import condition_keys, map_channels
from latentddpm.interop.diffusers.known_keys import (
    BLOCKS,
    CONDITIONAL_UNET,
    ORIGINAL,
    Config,
    scale_shift_key,
)
from latentddpm.interop.diffusers.read_config import linear_projection, unet_arguments
from latentddpm.interop.diffusers.weight_map import rows_of_class
from latentddpm.interop.diffusers.weights import fill, match, write
from latentddpm.interop.tensors import TensorFiles
from latentddpm.models.denoisers.control import HINT_CHANNELS, ControlNet
from latentddpm.models.denoisers.unet import NORM_EPSILON
from latentddpm.utils.files import atomic_folder, check_new, read_json, write_json
from latentddpm.utils.machine.memory import blank_weights

CLASS = "ControlNetModel"
CONFIG, STEM = "config.json", "diffusion_pytorch_model"
CHANNELS, ORDER = "conditioning_channels", "controlnet_conditioning_channel_order"
HINT = "conditioning_embedding_out_channels"
OWN = (CHANNELS, ORDER, HINT, "global_pool_conditions")
"""Keys that a UNet does not have."""
NOT_WRITTEN = ("learned_variance",)
"""Arguments of a UNet that a ControlNet does not have."""


def is_control_net(folder: str | Path) -> bool:
    """True for a folder of a `ControlNetModel`.

    Args:
        folder: of diffusers.

    Raises:
        UserError: its `config.json` is malformed.
    """
    config = Path(folder) / CONFIG
    return config.is_file() and read_json(config).get("_class_name") == CLASS


def load_control_net(
    folder: str | Path, *, variant: str | None = None, quiet: bool = True
) -> ControlNet:
    """Load a `ControlNetModel` of diffusers.

    Args:
        folder: with `config.json` and the weights.
        variant: of the weight file, such as "fp16".
        quiet: show no progress bar.

    Returns:
        The ControlNet, in float32.

    Raises:
        UserError: a file is missing or malformed, or something that is not supported; the message
            names the file and the key.

    Example:
        ```python
        control = load_control_net("sd-controlnet-canny")
        images = model.generate("a bird", controls=[Control(control, "lines.png")])
        ```
    """
    folder = Path(folder)
    source = str(folder / CONFIG)
    config = read_json(folder / CONFIG)
    arguments = control_arguments(config, source)
    rows = rows_of_class("ControlNet", arguments, linear_projection(config, source))
    tensors = TensorFiles.folder(folder, STEM, variant)
    matched = match(rows, tensors, source)
    with blank_weights():
        control = ControlNet(**arguments)
    fill(control, matched, tensors, "control", quiet)
    return control


def save_control_net(
    control: ControlNet, folder: str | Path, *, storage: str = "float32", quiet: bool = True
) -> None:
    """Save a ControlNet as a folder for diffusers' `ControlNetModel`, atomically.

    Args:
        control: to save.
        folder: a new or empty folder.
        storage: precision of the weights, "float32" or "float16".
        quiet: show no progress bar.

    Raises:
        UserError: the folder is not empty, or diffusers has no such ControlNet.
        OSError: disk full, no permission.
    """
    folder = Path(folder)
    check_new(folder)
    config = control_config(control)
    with atomic_folder(folder) as staged:
        write_json(staged / CONFIG, config)
        rows = rows_of_class("ControlNet", control.get_config())
        write(control, rows, staged / f"{STEM}.safetensors", "control", storage, quiet)


def control_arguments(config: Config, source: str) -> dict[str, Any]:
    """Arguments of `ControlNet` for a configuration of `ControlNetModel`.

    Args:
        config: of diffusers.
        source: its file, for messages.

    Raises:
        UserError: something is not supported; the message names the key.
    """
    check_choice(f"{source}: _class_name", str(config.get("_class_name")), (CLASS,))
    order = config.get(ORDER, "rgb")
    if order != "rgb":
        raise UserError(f"{source}: {ORDER}: {order!r:.80} is not supported; expected 'rgb'")
    if config.get("global_pool_conditions", False) is not False:
        raise UserError(
            f"{source}: global_pool_conditions: {config['global_pool_conditions']!r:.80} is not "
            "supported; expected False"
        )
    hint = config.get(HINT, list(HINT_CHANNELS))
    if not isinstance(hint, list) or not hint or not all(map(_is_count, hint)):
        raise UserError(f"{source}: {HINT}: {hint!r:.80}, expected a list of widths")
    channels = config.get(CHANNELS, 3)
    if not _is_count(channels):
        raise UserError(f"{source}: {CHANNELS}: {channels!r:.80}, expected a whole number")
    unet = {key: value for key, value in config.items() if key not in OWN}
    unet |= {"_class_name": CONDITIONAL_UNET, "out_channels": config.get("in_channels", 4)}
    down = config.get("down_block_types")
    if isinstance(down, list):
        up = dict(zip(*BLOCKS[CONDITIONAL_UNET], strict=True))
        unet["up_block_types"] = [up.get(str(name), name) for name in reversed(down)]
    arguments = unet_arguments(unet, source)
    taken = {key: value for key, value in arguments.items() if key not in NOT_WRITTEN}
    return {**taken, "image_channels": channels, "hint_channels": hint}


def control_config(control: ControlNet) -> dict[str, Any]:
    """Configuration of `ControlNetModel` for a ControlNet.

    Args:
        control: to describe.

    Raises:
        UserError: `ControlNetModel` cannot be such a network; the message names the argument.
    """
    ours = control.get_config()
    if control.context_dim is None:
        raise UserError(
            "control: diffusers' ControlNetModel is for models with text, and this one has none"
        )
    if ours["channel_multipliers"][0] != 1:
        raise UserError(
            f"control: channel_multipliers {ours['channel_multipliers']}: diffusers' first "
            "convolution is as wide as the first level, expected 1 in front"
        )
    told = ours.get("conditions") or []
    down, _ = BLOCKS[CONDITIONAL_UNET]
    levels = range(len(ours["channel_multipliers"]))
    return {
        "_class_name": CLASS,
        "act_fn": "silu",
        "attention_head_dim": ours["num_heads"],
        "block_out_channels": [ours["channels"] * one for one in ours["channel_multipliers"]],
        CHANNELS: ours["image_channels"],
        HINT: ours["hint_channels"],
        ORDER: "rgb",
        "cross_attention_dim": control.context_dim,
        "down_block_types": [down[level in ours["attention_levels"]] for level in levels],
        "global_pool_conditions": False,
        "in_channels": ours["latent_channels"] + map_channels(told),
        "layers_per_block": ours["num_res_blocks"],
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "norm_eps": ours.get("norm_epsilon", NORM_EPSILON),
        "norm_num_groups": ours["norm_groups"],
        "use_linear_projection": False,
        **_original(ours),
        **scale_shift_key(ours),
        **condition_keys(told, CONDITIONAL_UNET),
    }


def _original(ours: Mapping[str, Any]) -> dict[str, Any]:
    return {key: known[ours.get("original_ddpm", False)] for key, known in ORIGINAL.items()}


def _is_count(value: Any) -> bool:
    return type(value) is int and value > 0
