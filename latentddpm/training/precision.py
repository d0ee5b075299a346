"""Precision and compilation of a run: what `auto` becomes on this machine.

A run that resumes keeps what it began with, on any machine, so that it goes on exactly. A new one
takes the precision that the machine is fastest in, and compiles its step with XLA on a GPU: on a
CPU that takes longer than 800 steps give back (docs/benchmarks.md). Its configuration and
its checkpoints hold both.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TypeVar

import tensorflow as tf

from latentddpm.config import AutoencoderRun, DiffusionRun
from latentddpm.config_file import load_config
from latentddpm.distribution.precision import Choice, fastest_precision
from latentddpm.distribution.strategy import any_process
from latentddpm.errors import UserError
from latentddpm.training.run.checkpoint import newest_contract
from latentddpm.training.run.run import CHECKPOINTS, CONFIG

AUTO = "auto"
Settings = TypeVar("Settings", AutoencoderRun, DiffusionRun)


def settle_precision(
    config: Settings,
    resumed: Path | None = None,
    strategy: tf.distribute.Strategy | None = None,
) -> tuple[Settings, str]:
    """Configuration with a precision in the place of "auto".

    Args:
        config: of the run.
        resumed: folder of the run that goes on; None for a new one.
        strategy: of the run; all of its processes take the same precision.

    Returns:
        (config, note): the note is a line for the start of the run, "" where the configuration
        names a precision.
    """
    if config.training.precision != AUTO:
        return config, ""
    begun = resumed and _begun(type(config), resumed)
    choice = Choice(begun, "the run began with it") if begun else _agreed(strategy)
    training = config.training.model_copy(update={"precision": choice.precision})
    note = f"precision  {choice.precision}: {choice.reason}"
    return config.model_copy(update={"training": training}), note


def settle_jit(
    config: Settings, strategy: tf.distribute.Strategy | None = None
) -> tuple[Settings, bool]:
    """Configuration with "on" or "off" in the place of `training.jit_compile: auto`.

    Args:
        config: of the run; one that goes on has the setting that it began with.
        strategy: of the run; with one its step is not compiled.

    Returns:
        (config, chosen): chosen is True where "on" was chosen here, and a step that does not
        compile may do without.
    """
    if config.training.jit_compile != AUTO:
        return config, False
    single = strategy is None or strategy.num_replicas_in_sync == 1
    chosen = single and bool(tf.config.list_physical_devices("GPU"))
    training = config.training.model_copy(update={"jit_compile": "on" if chosen else "off"})
    return config.model_copy(update={"training": training}), chosen


def _begun(kind: type[Settings], folder: Path) -> str | None:
    """Precision that a run began with; None where the folder holds none."""
    with contextlib.suppress(UserError):  # `check_resume` judges the folder
        if found := newest_contract(folder / CHECKPOINTS):
            return found[1].config.get("training", {}).get("precision")
        precision = load_config(kind, folder / CONFIG).training.precision
        return None if precision == AUTO else precision
    return None


def _agreed(strategy: tf.distribute.Strategy | None) -> Choice:
    """Choice of all processes: float32 where one of them is faster in it."""
    choice, agreed = fastest_precision(), any_process(strategy)
    slow = choice.precision == "float32"
    if agreed is not None and agreed(slow) and not slow:
        return Choice("float32", "another worker is faster in it")
    return choice
