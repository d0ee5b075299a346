"""Kinds of denoisers: `unet.kind` of a configuration, and its class.

    unet      ours and diffusers': ResnetBlocks, attention, time in every block
    classic   Ronneberger's, with the time at the bottom
    basic     six convolutions without time

All are called with `{"noisy_latents", "timesteps"[, "context"]}`. A new kind is a module, a line
here, one in `choices.DENOISERS` with the settings it takes, and one each in
`training.plan.resolve.UNET_LEVELS` and `training.plan.cost.BLOCKS`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from latentddpm.choices import CONDITIONAL
from latentddpm.models.archive import load_archive
from latentddpm.models.denoisers.base import Denoiser
from latentddpm.models.denoisers.basic import BasicUNet
from latentddpm.models.denoisers.classic import ClassicUNet
from latentddpm.models.denoisers.unet import UNet

KINDS: dict[str, type[Denoiser]] = {"unet": UNet, "classic": ClassicUNet, "basic": BasicUNet}
"""Kind of each denoiser → its class."""


def make_denoiser(kind: str, context_dim: int | None = None, **arguments: Any) -> Denoiser:
    """Denoiser of a kind, with weights from Keras's global seed.

    Args:
        kind: a key of `KINDS`.
        context_dim: width of the text encodings; None for an unconditional network.
        arguments: of the class's constructor, such as `latent_channels`.

    Raises:
        ValueError: sizes that do not fit each other, or text for a kind that takes none.
    """
    if context_dim is not None:
        if kind not in CONDITIONAL:
            raise ValueError(f"kind={kind} takes no text; expected {' or '.join(CONDITIONAL)}")
        arguments["context_dim"] = context_dim
    return KINDS[kind](**arguments)


def load_denoiser(path: str | Path, precision: str = "float32") -> Denoiser:
    """Denoiser of any kind in a `.keras` archive, loaded in safe mode.

    Args:
        path: of the archive.
        precision: see `models.archive.load_archive`.

    Raises:
        UserError: see `models.archive.load_archive`.
    """
    return load_archive(path, *KINDS.values(), precision=precision)
