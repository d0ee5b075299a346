"""Reading of the `config.json` of diffusers' networks: arguments of the networks here.

`attention_head_dim` has two meanings: in `UNet2DConditionModel` it is the number of heads, in
`UNet2DModel` the width of one head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from latentddpm.errors import UserError, check_choice
from latentddpm.interop.diffusers.conditions import TYPE, map_channels, read_conditions
from latentddpm.interop.diffusers.known_keys import (
    AUTOENCODER,
    AUTOENCODER_EPSILON,
    BLOCKS,
    CONDITIONAL_UNET,
    MIDDLE_GROUPS,
    ORIGINAL,
    SCALE_SHIFT,
    SCALE_SHIFTS,
    UNET,
    Config,
    validate,
)
from latentddpm.models.denoisers.unet import NORM_EPSILON


def autoencoder_arguments(config: Config, source: str) -> dict[str, Any]:
    """Arguments of `Autoencoder` for a configuration of `AutoencoderKL`.

    Args:
        config: of diffusers.
        source: its file, for messages.

    Raises:
        UserError: something is not supported; the message names the key.
    """
    kind = validate(config, source, (AUTOENCODER,))
    image_channels = _whole(config, source, "in_channels", 3)
    _same(config, source, "out_channels", image_channels, "in_channels")
    widths = _widths(config, source)
    _levels(config, source, kind, len(widths))
    channels = _whole(config, source, "latent_channels", 4)
    return {
        "channels": widths[0],
        "channel_multipliers": [width // widths[0] for width in widths],
        "num_res_blocks": _whole(config, source, "layers_per_block", 1),
        "latent_channels": channels,
        **_latent_space(config, source, channels),
        "quant_conv": _quant_conv(config, source),
        "norm_groups": _groups(config, source, widths),
        "norm_epsilon": AUTOENCODER_EPSILON,
        "image_channels": image_channels,
    }


def unet_arguments(config: Config, source: str) -> dict[str, Any]:
    """Arguments of `UNet` for a configuration of `UNet2DModel` or `UNet2DConditionModel`.

    Args:
        config: of diffusers.
        source: its file, for messages.

    Raises:
        UserError: something is not supported; the message names the key.
    """
    kind = validate(config, source, (UNET, CONDITIONAL_UNET))
    conditional = kind == CONDITIONAL_UNET
    widths = _widths(config, source)
    conditions = read_conditions(config, source).specs()
    channels = _whole(config, source, "in_channels", 4 if conditional else 3)
    channels -= map_channels(conditions)
    learned_variance = _learned_variance(config, source, channels)
    attention_levels = _levels(config, source, kind, len(widths))
    norm_groups = _groups(config, source, widths)
    epsilon = config.get("norm_eps", NORM_EPSILON)
    if not _is_number(epsilon) or not 0 < epsilon < 1:
        raise UserError(f"{source}: norm_eps: {epsilon!r}, expected a number above 0")
    dropout = config.get("dropout", 0.0)
    if not _is_number(dropout) or not 0 <= dropout < 1:
        raise UserError(f"{source}: dropout: {dropout!r}, expected a number from 0 to below 1")
    scale_shift = config.get(SCALE_SHIFT, SCALE_SHIFTS[0]) == SCALE_SHIFTS[1]
    if config.get(MIDDLE_GROUPS) is not None:
        _same(config, source, MIDDLE_GROUPS, norm_groups, "norm_num_groups")
    elif scale_shift and not conditional:
        raise UserError(
            f"{source}: {MIDDLE_GROUPS}: null beside {SCALE_SHIFT} {SCALE_SHIFTS[1]!r} is not "
            f"supported: the middle's attention then has no norm; expected {norm_groups}"
        )
    if config.get("time_embedding_dim") is not None:
        _same(config, source, "time_embedding_dim", 4 * widths[0], "four times the first width")
    return {
        "channels": widths[0],
        "channel_multipliers": [width // widths[0] for width in widths],
        "num_res_blocks": _uniform(config, source, "layers_per_block", 2, len(widths)),
        "attention_levels": attention_levels,
        "num_heads": _heads(config, source, kind, widths, attention_levels),
        "context_dim": _uniform(config, source, "cross_attention_dim", 1280, len(widths))
        if conditional
        else None,
        "latent_channels": channels,
        "norm_groups": norm_groups,
        "dropout": float(dropout),
        "norm_epsilon": float(epsilon),
        "learned_variance": learned_variance,
        "original_ddpm": _original_ddpm(config, source),
        "time_scale_shift": scale_shift,
        "conditions": conditions or None,
    }


def linear_projection(config: Config, source: str) -> bool:
    """True where the projections of transformer blocks are stored as dense layers.

    Args:
        config: of diffusers.
        source: its file, for messages.

    Raises:
        UserError: `use_linear_projection` is neither true nor false.
    """
    value = config.get("use_linear_projection", False)
    if not isinstance(value, bool):
        raise UserError(f"{source}: use_linear_projection: {value!r}, expected true or false")
    return value


def sample_size(config: Config, source: str) -> tuple[int, int] | None:
    """Size (height, width) that a network was trained with; None if there is none.

    Args:
        config: of diffusers.
        source: its file, for messages.

    Raises:
        UserError: it is not one or two positive whole numbers.
    """
    size = config.get("sample_size")
    if size is None:
        return None
    sides = [size, size] if not isinstance(size, list) else size
    if len(sides) != 2 or any(type(side) is not int or side < 1 for side in sides):
        raise UserError(f"{source}: sample_size: {size!r}, expected one or two whole numbers")
    return sides[0], sides[1]


def _latent_space(config: Config, source: str, channels: int) -> dict[str, Any]:
    """Scaling and shift of an `AutoencoderKL`, of one number each or of one for each channel.

    latents = (raw − shift_factor) · scaling_factor                 or
    latents = (raw − latents_mean) · scaling_factor / latents_std
    """
    scale, shift = config.get("scaling_factor", 0.18215), config.get("shift_factor")
    if not _is_number(scale) or not 0 < scale < math.inf:
        raise UserError(f"{source}: scaling_factor: {scale!r}, expected a number above 0")
    if shift is not None and not (_is_number(shift) and math.isfinite(shift)):
        raise UserError(f"{source}: shift_factor: {shift!r}, expected a number or null")
    keys = ("latents_mean", "latents_std")
    given = [key for key in keys if config.get(key) is not None]
    if not given:
        return {"scaling_factor": float(scale), "shift_factor": float(shift or 0)}
    if len(given) == 1 or shift:
        other = next((key for key in keys if key not in given), None)
        wanted = f"{other} too" if other else "no shift_factor beside it, which is null or 0"
        raise UserError(f"{source}: {given[0]} needs {wanted}")
    for key, lowest in zip(keys, (-math.inf, 0), strict=True):
        values = config[key]
        numbers = isinstance(values, list) and all(
            _is_number(one) and lowest < one < math.inf for one in values
        )
        if not numbers or len(values) != channels:
            above = "" if lowest else " above 0"
            raise UserError(
                f"{source}: {key}: {values!r:.80}, expected {channels} numbers{above}, one for "
                "each of latent_channels"
            )
    return {
        "scaling_factor": [scale / std for std in config["latents_std"]],
        "shift_factor": [float(mean) for mean in config["latents_mean"]],
    }


def _quant_conv(config: Config, source: str) -> bool:
    """True where 1×1 convolutions are on both sides of the latents, false where on neither."""
    keys = ("use_quant_conv", "use_post_quant_conv")
    values = [config.get(key, True) for key in keys]
    for key, value in zip(keys, values, strict=True):
        if not isinstance(value, bool):
            raise UserError(f"{source}: {key}: {value!r:.80}, expected true or false")
    if values[0] != values[1]:
        raise UserError(
            f"{source}: {keys[1]}: {values[1]!r} is not supported beside {keys[0]} "
            f"{values[0]!r}; expected the same"
        )
    return values[0]


def _original_ddpm(config: Config, source: str) -> bool:
    """True for a UNet with the details of Ho et al.'s code, False for one with none of them."""
    given = {key: config.get(key, later) for key, (later, _) in ORIGINAL.items()}
    later, original = ({key: known[k] for key, known in ORIGINAL.items()} for k in (0, 1))
    # As text, since True and 1 are not the same here.
    if repr(given) in (repr(later), repr(original)):
        found = repr(given) == repr(original)
        if found and config.get(TYPE) == "timestep":
            raise UserError(f"{source}: {TYPE}: timestep is not supported with sines first")
        return found
    key = next(key for key in given if repr(given[key]) != repr(later[key]))
    others = (f"{name} {value!r}" for name, value in original.items() if name != key)
    raise UserError(
        f"{source}: {key}: {given[key]!r:.80} is not supported; expected {later[key]!r}, or "
        f"{original[key]!r} together with {' and '.join(others)}"
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _whole(config: Config, source: str, key: str, default: int) -> int:
    value = config.get(key, default)
    if type(value) is not int or value < 1:
        raise UserError(f"{source}: {key}: {value!r:.80}, expected a positive whole number")
    return value


def _same(config: Config, source: str, key: str, expected: int, reason: str) -> None:
    if config.get(key, expected) != expected:
        raise UserError(
            f"{source}: {key}: {config[key]!r:.80} is not supported; expected "
            f"{expected} ({reason})"
        )


def _learned_variance(config: Config, source: str, channels: int) -> bool:
    """True where `out_channels` are twice the input's: the second half is about the variance."""
    found = config.get("out_channels", channels)
    if isinstance(found, bool) or found not in (channels, 2 * channels):
        raise UserError(
            f"{source}: out_channels: {found!r:.80} is not supported; expected {channels} "
            f"(in_channels), or {2 * channels} with a learned variance"
        )
    return found == 2 * channels


def _uniform(config: Config, source: str, key: str, default: int, levels: int) -> int:
    """Number for all levels; a list of numbers for each level must have equal ones."""
    value = config.get(key, default)
    if not isinstance(value, list):
        return _whole(config, source, key, default)
    if len(value) != levels or any(one != value[0] for one in value):
        raise UserError(
            f"{source}: {key}: {value!r:.80} is not supported; expected one number for all "
            f"{levels} levels"
        )
    return _whole({key: value[0]}, source, key, default)


def _widths(config: Config, source: str) -> list[int]:
    """Widths of the levels, `block_out_channels`: whole multiples of the first."""
    key = "block_out_channels"
    widths = config.get(key)
    if not isinstance(widths, list) or not widths:
        raise UserError(f"{source}: {key}: {widths!r:.80}, expected a list of widths")
    for width in widths:
        _whole({key: width}, source, key, 1)
        if width % widths[0]:
            raise UserError(
                f"{source}: {key}: {width} is not supported; expected whole multiples of the "
                f"first width, {widths[0]}"
            )
    return widths


def _groups(config: Config, source: str, widths: Sequence[int]) -> int:
    """Groups of the group norms, `norm_num_groups`: a divisor of the first width, so of all."""
    groups = _whole(config, source, "norm_num_groups", 32)
    if widths[0] % groups:
        raise UserError(
            f"{source}: norm_num_groups: {groups} does not divide {widths[0]} channels"
        )
    return groups


def _levels(config: Config, source: str, kind: str, levels: int) -> list[int]:
    """Levels with attention, from the names of the blocks on the way down and up."""
    found = []
    for key, known in zip(("down_block_types", "up_block_types"), BLOCKS[kind], strict=True):
        names = config.get(key)
        if not isinstance(names, list) or len(names) != levels:
            raise UserError(
                f"{source}: {key}: {names!r:.80}, expected {levels} names, one for each of "
                "block_out_channels"
            )
        for name in names:
            if not isinstance(name, str):
                raise UserError(f"{source}: {key}: {name!r:.80}, expected the name of a block")
            check_choice(f"{source}: {key}", name, known)
        found.append([level for level, name in enumerate(names) if name != known[0]])
    down, up = found
    up = sorted(levels - 1 - level for level in up)
    if down != up:
        raise UserError(
            f"{source}: down_block_types has attention at levels {down}, up_block_types at {up}; "
            "expected the same levels"
        )
    return down


def _heads(
    config: Config, source: str, kind: str, widths: Sequence[int], attention_levels: Sequence[int]
) -> int | list[int]:
    """Number of attention heads, or a list of them if levels differ."""
    key = "attention_head_dim"
    value = config.get(key, 8)
    if kind == UNET:
        if value is None:
            return 1
        size = _whole(config, source, key, 8)
        # A level without attention has no heads; it gets the number of the middle.
        used = {*attention_levels, len(widths) - 1}
        heads = [
            (width if level in used else widths[-1]) // size for level, width in enumerate(widths)
        ]
        fits = [width % size == 0 for width in widths]
    else:
        heads = value if isinstance(value, list) else [value] * len(widths)
        if len(heads) != len(widths):
            raise UserError(
                f"{source}: {key}: {value!r:.80}, expected one number or {len(widths)}"
            )
        heads = [_whole({key: one}, source, key, 8) for one in heads]
        fits = [width % one == 0 for width, one in zip(widths, heads, strict=True)]
    for level in {*attention_levels, len(widths) - 1}:  # the middle is as wide as the last level
        if not fits[level]:
            raise UserError(
                f"{source}: {key}: {value!r:.80} does not divide the {widths[level]} channels of "
                f"level {level}"
            )
    return heads[0] if len(set(heads)) == 1 else heads
