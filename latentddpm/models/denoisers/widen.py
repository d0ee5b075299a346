"""Widening of a UNet: further conditions for a trained one, whose prediction stays as it is.

`fold` is the reverse, for a vector that is always the same.

    conv_in     [W, 0] · [noisy latents, new map] = W · noisy latents
    rows        0 · vector = 0
    dense       silu(…) · 0 + 0 = 0

What the new inputs are told has no weight at first, and every weight of them has a gradient from
there (Brooks et al. 2023, §3.2, for maps; Zhang et al. 2023, §3.1, for layers of zeros).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from latentddpm.errors import UserError
from latentddpm.models.denoisers.told import Spec
from latentddpm.models.denoisers.unet import UNet

LAST = {"rows": "rows", "projection": "1", "timestep": "1"}
"""Way in of a vector → the last layer on it, whose name is that of the condition and this."""


def widen(unet: UNet, conditions: Sequence[Spec]) -> UNet:
    """Copy of a UNet with further conditions, which change nothing before it is trained.

    The base predicts the same, to the last bit, whatever the new inputs are told.

    Args:
        unet: the base, which may have conditions already; they stay, before the new ones.
        conditions: that are new; see `models.denoisers.told`.

    Returns:
        A UNet with the weights of the base, not compiled. Further weights on the way from the new
        inputs come from Keras's global seed.

    Raises:
        UserError: the network is no UNet, or a vector enters as it is, without weights.
        ValueError: a condition of another form, or with a name that the UNet has.

    Example:
        >>> base = latentddpm.UNet(8, channel_multipliers=(1,), attention_levels=(), norm_groups=4)
        >>> lines = {"name": "lines", "enters": "concat", "size": 1}
        >>> widen(base, [lines]).conditions
        [{'name': 'lines', 'enters': 'concat', 'size': 1}]
    """
    if not isinstance(unet, UNet):
        raise UserError(f"conditions: a {type(unet).__name__} takes none; expected a UNet")
    for one in conditions:
        if one.get("enters") == "identity":
            raise UserError(
                f"condition {one['name']!r}: enters a trained UNet as it is, which changes its "
                "prediction; expected rows, projection or timestep"
            )
    wide = UNet(**{**unet.get_config(), "conditions": [*unet.conditions, *conditions]})
    base = {variable.path: variable for variable in unet.weights}
    for variable in wide.weights:
        if variable.path in base:
            variable.assign(_filled(base[variable.path], variable))
    for one in conditions:
        if one["enters"] in LAST:
            kernel = wide.get_layer(f"{one['name']}_{LAST[one['enters']]}").kernel
            kernel.assign(keras.ops.zeros_like(kernel))
    return wide


def fold(unet: UNet, name: str) -> UNet:
    """Copy of a UNet without a vector that is always told zeros: its share becomes a bias.

        time_1: W x + b     →     W x + (b + W₁ · silu(b₀) + b₁)

    Args:
        unet: with the condition.
        name: of the condition, which enters by projection.

    Returns:
        A UNet that predicts the same as the other one with zeros, up to rounding.
    """
    kept = [one for one in unet.conditions if one["name"] != name]
    narrow = UNet(**{**unet.get_config(), "conditions": kept or None})
    own = {variable.path: variable for variable in unet.weights}
    for variable in narrow.weights:
        variable.assign(own[variable.path])
    first, last = (unet.get_layer(f"{name}_{k}") for k in (0, 1))
    act = unet.get_layer(f"{name}_act").activation
    share = keras.ops.matmul(act(first.bias)[None], last.kernel)[0] + last.bias
    narrow.get_layer("time_1").bias.assign_add(share)
    return narrow


def _filled(base: keras.Variable, wide: keras.Variable) -> Any:
    """Values of a weight of the base, with zeros behind its input channels."""
    behind = [(0, w - b) for b, w in zip(base.shape, wide.shape, strict=True)]
    return keras.ops.pad(keras.ops.convert_to_tensor(base), behind)
