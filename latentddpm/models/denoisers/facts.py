"""Facts of a denoiser: what others ask of it, told by the arguments it was made from.

A network of Keras layers has them, and so has one that is a graph (`models.graph_networks`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class DenoiserFacts:
    """Facts of a denoiser, from the arguments of its constructor in `_arguments`."""

    _arguments: dict[str, Any]

    @property
    def context_dim(self) -> int | None:
        """Width of the text encodings; None for an unconditional network."""
        return self._arguments.get("context_dim")

    @property
    def conditions(self) -> list[dict[str, Any]]:
        """Inputs beside noisy latents, timesteps and context; see `models.denoisers.told`."""
        return self._arguments.get("conditions") or []

    @property
    def latent_channels(self) -> int:
        """Channels of the noisy latents."""
        return self._arguments["latent_channels"]

    @property
    def learned_variance(self) -> bool:
        """True where a second half of the prediction's channels is about the variance."""
        return self._arguments.get("learned_variance", False)

    @property
    def regions(self) -> int:
        """Parts of the latents that it is told different texts for; 0 for one text everywhere."""
        return self._arguments.get("regions", 0)

    @property
    def spatial_dims(self) -> int:
        """Dimensions of the latents: 1 for signals, 2 for images, 3 for volumes."""
        return self._arguments.get("spatial_dims", 2)


SHARED = ("channels", "channel_multipliers", "num_res_blocks", "latent_channels", "context_dim")
"""Sizes that a ControlNet has in common with the UNet that it is for."""


def control_misfit(unet: Mapping[str, Any], control: Mapping[str, Any]) -> str:
    """Reason why a ControlNet does not fit a UNet; "" where it does.

    Args:
        unet: arguments of the UNet.
        control: arguments of the ControlNet.
    """
    for key in SHARED:
        if unet[key] != control[key]:
            return f"is for a network with {key} {control[key]}, and this one has {unet[key]}"
    told, known = control.get("conditions") or [], unet.get("conditions") or []
    if missing := [one["name"] for one in told if one not in known]:
        return f"is told {missing[0]}, which this network is not told"
    return ""
