"""Run: a folder, its settings, and the devices and processes that train in it.

runs/NAME/  config.yaml  log.jsonl  tensorboard/  samples/  checkpoints/  model/
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import tensorflow as tf

from latentddpm.config import AutoencoderRun, DiffusionRun, TrainingConfig
from latentddpm.distribution.processes import ProcessGroup
from latentddpm.distribution.strategy import process_group
from latentddpm.utils.console import say

CHECKPOINTS, BEST, SAMPLES = "checkpoints", "best", "samples"
CONFIG = "config.yaml"


@dataclass(frozen=True)
class Run:
    """One training, as a command or a call describes it.

    Attributes:
        config: what is learned.
        folder: where all of it is written.
        resume: go on from the newest checkpoint.
        allow_changes: with `resume`, other settings or data than the run was started with.
        quiet: no progress and no notes.
        strategy: of `distribution.strategy.make_strategy`; None for one device.
    """

    config: AutoencoderRun | DiffusionRun
    folder: Path
    resume: bool = False
    allow_changes: bool = False
    quiet: bool = False
    strategy: tf.distribute.Strategy | None = None

    @property
    def training(self) -> TrainingConfig:
        """The section `training:` of the settings."""
        return self.config.training

    @cached_property
    def processes(self) -> ProcessGroup:
        """Processes of the strategy."""
        return process_group(self.strategy)

    @property
    def is_chief(self) -> bool:
        """Whether this process writes the run's files."""
        return self.processes.is_chief

    @property
    def silent(self) -> bool:
        """Whether this process says nothing on the terminal."""
        return self.quiet or not self.is_chief

    def say(self, text: str) -> None:
        """A note on stderr, from the chief process, unless quiet."""
        say(text, self.silent)

    def sample_path(self, step: int) -> Path:
        """The picture of the validation at a step."""
        return self.folder / SAMPLES / f"step-{step:08d}.png"
