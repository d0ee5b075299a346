"""Health of a run: a stop, with advice, at NaN, at an exploding loss, or out of memory.

A step whose loss or gradient is not finite changes nothing (see `training.step.update`). With
`on_nan: stop` the run ends at that step. With `skip` the batch is dropped and counted, and the
run ends after `PATIENCE` such batches in a row. In float16 the loss scale is found by overflow, so
such a step counts only once the scale has fallen to 1.

A loss explodes when its mean over `log_every` steps is `EXPLODED` times the median of the last
`REMEMBERED` such means, given at least `KNOWN` of them. A batch of one image at a hard timestep
reaches 20 times the median; a run that diverges passes 100 times within a few steps. With a
discriminator the reconstruction loss is compared instead of the loss.
"""

from __future__ import annotations

import math
import re
import statistics
from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import keras

from latentddpm.config import AutoencoderRun, DiffusionRun, TrainingConfig
from latentddpm.errors import UserError
from latentddpm.utils.files import read_json_lines

PATIENCE = 10
EXPLODED = 100.0
REMEMBERED = 100
KNOWN = 5


class Diverged(ArithmeticError):
    """Error: the loss is not finite, or explodes."""


class Health(keras.callbacks.Callback):
    """Stop of a run that diverges, before its state is saved, and count of its dropped batches.

    It has to be the first of the callbacks. It replaces `skipped` in the logs by the number of
    dropped batches since the run began, and removes it while that number is 0.

    Args:
        settings: the section `training:` of the configuration.
        first: step that training goes on from.
        history: lines of the run's log so far.

    Raises:
        Diverged: from within `fit`.
    """

    def __init__(
        self, settings: TrainingConfig, first: int, history: Iterable[dict[str, Any]] = ()
    ) -> None:
        super().__init__()
        lines = list(history)
        self.settings, self.step, self.in_a_row = settings, first, 0
        self.skipped = max((int(line.get("skipped", 0)) for line in lines), default=0)
        known = [_loss_of(line) for line in lines]
        known = [abs(loss) for loss in known if loss is not None and math.isfinite(loss)]
        self.losses = deque(known, REMEMBERED)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self.step += 1
        logs = {} if logs is None else logs
        if logs.pop("skipped", 0.0):
            self._skip(logs)
        else:
            self.in_a_row = 0
        if self.skipped:
            logs["skipped"] = self.skipped
        if self.step % self.settings.log_every == 0:
            self._check(_loss_of(logs))

    def _skip(self, logs: dict[str, Any]) -> None:
        if logs.get("loss_scale", 1.0) > 1.0:
            return
        self.skipped += 1
        self.in_a_row += 1
        stop = self.settings.on_nan == "stop"
        if not stop and self.in_a_row < PATIENCE:
            return
        steps = f"step {self.step}" if stop else f"the last {PATIENCE} steps up to {self.step}"
        advice = "lower training.learning_rate"
        if self.settings.precision == "float16":
            advice += ", or train in bfloat16"
        if stop:
            advice += ", or drop such batches with --on-nan skip"
        raise Diverged(f"loss or gradient is not finite in {steps}; {advice}")

    def _check(self, loss: float) -> None:
        if not math.isfinite(loss):
            return
        usual = statistics.median(self.losses) if len(self.losses) >= KNOWN else 0.0
        if usual and abs(loss) > EXPLODED * usual:
            first = self.step - self.settings.log_every + 1
            raise Diverged(
                f"the loss exploded: {loss:.4g} over steps {first} to {self.step}, usual is "
                f"{usual:.4g}; lower training.learning_rate, and go on from a checkpoint before"
            )
        self.losses.append(abs(loss))


def _loss_of(line: Mapping[str, float | None]) -> float | None:
    """Loss of a line of the log; with a discriminator, whose loss has no scale, `reconstruction`.

    None where the number was not finite; NaN where the line has none.
    """
    return line.get("reconstruction" if "generator" in line else "loss", math.nan)


def read_history(log: Path) -> list[dict[str, Any]]:
    """Lines of a run's log; none where there is no log yet.

    Args:
        log: its file, `log.jsonl`.
    """
    return read_json_lines(log) if log.is_file() else []


def error_of_data(error: Exception) -> str | None:
    """Message of a `UserError` that reading the data ended with; None for any other error.

    TensorFlow wraps what a function of an input pipeline raises, and keeps only its text.

    Args:
        error: TensorFlow's.
    """
    found = re.search(rf"\b{UserError.__name__}: (.*)\nTraceback", str(error))
    return found and found[1]


def less_memory(config: AutoencoderRun | DiffusionRun, replicas: int = 1) -> str:
    """Message that says which settings to lower when a step does not fit into memory.

    Settings that do not change the results come first.

    Args:
        config: of the run.
        replicas: of its strategy.
    """
    settings = config.training
    share = math.ceil(settings.batch_size / replicas)
    held = math.ceil(share / settings.accumulation_steps)
    same, other = [], []
    if held > 1:
        same.append(
            f"training.accumulation_steps={2 * settings.accumulation_steps} "
            f"({math.ceil(held / 2)} examples at a time)"
        )
        other.append(f"training.batch_size={max(settings.batch_size // 2, 1)}")
    if isinstance(config, DiffusionRun) and config.unet.arguments.get("recompute") is False:
        same.append("unet.recompute=true (a fifth more time)")
    if settings.precision == "float32":
        other.append("training.precision=bfloat16 (about half)")
    other.append("a smaller data.resolution")
    each = f" on each of {replicas} replicas" if replicas > 1 else ""
    ways = f"--set {' or '.join(same)}, which changes no numbers; or" if same else "--set"
    return (
        f"out of memory with {held} examples at a time{each} (training.batch_size "
        f"{settings.batch_size}, accumulation_steps {settings.accumulation_steps}); {ways}, on "
        f"--resume with --allow-changes, {', '.join(other)}"
    )
