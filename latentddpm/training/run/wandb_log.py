"""Weights & Biases: numbers and pictures of a training, online or with WANDB_MODE=offline.

`RUN/wandb/id` holds the id of the W&B run, so a resumed training continues that W&B run. A killed
training may have logged steps after its last checkpoint. When it resumes, it computes the same
numbers for these steps again; W&B accepts only rising steps, so they are not sent twice.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latentddpm.errors import UserError, one_line


def import_wandb() -> Any:
    """Module `wandb`, imported here and nowhere else.

    Raises:
        UserError: it is not installed.
    """
    try:
        import wandb
    except ImportError:
        raise UserError("training.wandb: needs a package: pip install wandb") from None
    return wandb


class WandbLog:
    """Log of a training in Weights & Biases: a new run there, or the one that it resumes.

    Args:
        project: of W&B, made if there is none. Other settings are W&B's own environment
            variables (WANDB_ENTITY, …).
        folder: of the training; the W&B run gets its name.
        config: settings to show beside the curves.
        resumed: True where the training goes on from a checkpoint.

    Attributes:
        where: address of the W&B run, or its folder when offline.

    Raises:
        UserError: W&B is not installed, or does not accept the run (no login, no network).
    """

    def __init__(
        self, project: str, folder: Path, config: Mapping[str, Any], resumed: bool
    ) -> None:
        wandb = import_wandb()
        known = folder / "wandb" / "id"
        known.parent.mkdir(parents=True, exist_ok=True)
        if not (resumed and known.is_file()):
            known.write_text(uuid.uuid4().hex[:8], "utf-8")
        try:
            self.run = wandb.init(
                project=project,
                name=folder.resolve().name,
                dir=folder,
                id=known.read_text("utf-8"),
                resume="allow",
                config=dict(config),
                # W&B's own output and its capture of the terminal would break the progress bar.
                settings=wandb.Settings(silent=True, console="off"),
            )
        except wandb.errors.Error as error:
            raise UserError(
                f"training.wandb: {one_line(error)} (WANDB_MODE=offline needs no account)"
            ) from None
        self.where = str(Path(self.run.dir).parent) if self.run.offline else self.run.url
        self._image = wandb.Image

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log the numbers of a step; those that are not finite are left out.

        Args:
            step: that they belong to.
            values: numbers by name.
        """
        self._log(step, {name: v for name, v in values.items() if math.isfinite(v)})

    def picture(self, step: int, name: str, pixels: Any) -> None:
        """Log a picture.

        Args:
            step: that it belongs to.
            name: its tag.
            pixels: uint8 (H, W, 3).
        """
        self._log(step, {name: self._image(pixels)})

    def _log(self, step: int, values: Mapping[str, Any]) -> None:
        if step >= self.run.step:
            self.run.log(values, step=step)

    def close(self, failed: bool) -> None:
        """End the W&B run, after sending what is left.

        Args:
            failed: mark the run as failed.
        """
        self.run.finish(exit_code=int(failed))
