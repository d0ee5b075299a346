"""Training of a ControlNet: a finished model, frozen, and a copy of its way down that learns.

    control:  {kind: edges}  ─► control pictures of the data ─► ControlledUNet ─► RUN/control

The loss is that of every run (Zhang 2023, eq. 5 is Ho et al.'s with a further input), so the
trainer sees a denoiser like any other. All weights but the ControlNet's are frozen: checkpoints
leave them out, and the digest of the model stands in the run's contract.
"""

from __future__ import annotations

from pathlib import Path

import latentddpm
from latentddpm.conditions.control import ControlCondition
from latentddpm.config import DiffusionRun
from latentddpm.models.denoisers.base import Denoiser
from latentddpm.models.denoisers.control import ControlledUNet, ControlNet, hint_channels
from latentddpm.models.functional import freeze, rebuild
from latentddpm.pipeline.control.folder import save_control
from latentddpm.pipeline.model_folder import ModelFolder


def add_control(unet: Denoiser, factor: int) -> ControlledUNet:
    """UNet with a new ControlNet, which is all of it that is trainable.

    Args:
        unet: of a finished model.
        factor: downsample factor of its autoencoder; 1 for a model of pixels.
    """
    control = ControlNet.from_unet(unet, hint_channels=hint_channels(factor))
    controlled = ControlledUNet(unet, [control])
    freeze(controlled.unet)
    return controlled


def save_trained_control(
    controlled: ControlledUNet,
    path: Path,
    config: DiffusionRun,
    condition: ControlCondition,
    base: ModelFolder,
) -> None:
    """Write a run's ControlNet, with what identifies it and its model.

    Args:
        controlled: with the trained ControlNet.
        path: of the control folder.
        config: of the run.
        condition: of its pictures.
        base: model that it belongs to.
    """
    (control,) = controlled.controls
    name = base.path.parent.name if base.path.name == "model" else base.path.name
    save_control(
        rebuild(control, dtype="float32"),
        path,
        latentddpm.__version__,
        storage=config.control.storage,
        base={"model": name, "digest": base.digest},
        condition=condition.to_json(),
    )
