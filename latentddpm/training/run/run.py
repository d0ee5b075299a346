"""Run: a folder, its settings, and the devices and processes that train in it.

    runs/NAME/  config.yaml  log.jsonl  tensorboard/  samples/  checkpoints/  model/

Of several processes only the chief writes these files.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from latentddpm.config import AutoencoderRun, DiffusionRun, TrainingConfig
from latentddpm.distribution.processes import ONE_PROCESS, ProcessGroup
from latentddpm.utils.console import say

if TYPE_CHECKING:
    import tensorflow as tf

CHECKPOINTS, BEST, SAMPLES = "checkpoints", "best", "samples"
CONFIG = "config.yaml"


class TimeUp(Exception):
    """Error that ends a training before its last step, when its checkpoint is written.

    Args:
        step: of the checkpoint.
    """

    def __init__(self, step: int) -> None:
        super().__init__(f"the time is up after step {step}")
        self.step = step


@dataclass(frozen=True)
class Run:
    """Run: one training, as a command or a call describes it.

    Attributes:
        config: all settings.
        folder: for everything that is written.
        resume: go on from the newest checkpoint.
        allow_changes: with `resume`, accept other settings or data than the run started with.
        quiet: show no progress and no messages.
        strategy: from `distribution.strategy.make_strategy`; None for one device.
        downsample_factor: pixels per position of what the networks are trained on, along a side.
        ends_early: step → True where the training ends: a checkpoint is written and `TimeUp` is
            raised; None for never. One process only.
    """

    config: AutoencoderRun | DiffusionRun
    folder: Path
    resume: bool = False
    allow_changes: bool = False
    quiet: bool = False
    strategy: tf.distribute.Strategy | None = None
    downsample_factor: int = 1
    ends_early: Callable[[int], bool] | None = None

    @property
    def training(self) -> TrainingConfig:
        """Section `training:` of the settings."""
        return self.config.training

    @cached_property
    def processes(self) -> ProcessGroup:
        """Processes of the strategy."""
        if self.strategy is None:
            return ONE_PROCESS
        from latentddpm.distribution.strategy import process_group

        return process_group(self.strategy)

    @property
    def is_chief(self) -> bool:
        """True in the process that writes the run's files."""
        return self.processes.is_chief

    @property
    def silent(self) -> bool:
        """True where this process prints nothing on the terminal."""
        return self.quiet or not self.is_chief

    def say(self, text: str) -> None:
        """Print a message on stderr, in the chief process, unless quiet.

        Args:
            text: one or more lines.
        """
        say(text, self.silent)

    def sample_path(self, step: int) -> Path:
        """File of the picture that a validation writes.

        Args:
            step: of the validation.
        """
        return self.folder / SAMPLES / f"step-{step:08d}.png"
