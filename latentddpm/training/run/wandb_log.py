"""Weights & Biases: a run's numbers and pictures on its site, or with WANDB_MODE=offline in files.

`RUN/wandb/id` keeps which of its runs it is, so that a training goes on in the one it began. What
a killed training logged after its last checkpoint comes again, the same numbers: W&B has them
and its steps only rise, so they are passed over.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latentddpm.errors import UserError, one_line


def import_wandb() -> Any:
    """The `wandb` module.

    Raises:
        UserError: it is not installed.
    """
    try:
        import wandb
    except ImportError:
        raise UserError("training.wandb needs pip install 'latentddpm[wandb]'") from None
    return wandb


class WandbLog:
    """One W&B run, begun or gone on with.

    Args:
        project: of W&B, made if there is none; other settings are W&B's own (WANDB_ENTITY, …).
        folder: of the training; its name is the run's.
        config: to be shown beside the curves.
        resumed: whether the training goes on from a checkpoint.

    Attributes:
        where: the run's address, or the folder of an offline one.

    Raises:
        UserError: W&B is not installed, or does not take the run (no login, no network).
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
                # Its own lines and its copy of the terminal would mangle the progress bar.
                settings=wandb.Settings(silent=True, console="off"),
            )
        except wandb.errors.Error as error:
            raise UserError(
                f"training.wandb: {one_line(error)} (WANDB_MODE=offline needs no account)"
            ) from None
        self.where = str(Path(self.run.dir).parent) if self.run.offline else self.run.url
        self._image = wandb.Image

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of a step; those that are not finite are left out."""
        self._log(step, {name: v for name, v in values.items() if math.isfinite(v)})

    def picture(self, step: int, name: str, pixels: Any) -> None:
        """A uint8 (H, W, 3) picture."""
        self._log(step, {name: self._image(pixels)})

    def _log(self, step: int, values: Mapping[str, Any]) -> None:
        if step >= self.run.step:
            self.run.log(values, step=step)

    def close(self, failed: bool) -> None:
        """Send what is left."""
        self.run.finish(exit_code=int(failed))
