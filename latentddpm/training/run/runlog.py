"""Log of a run: its numbers and pictures, as JSON lines and for TensorBoard.

    log.jsonl   {"step": 50, "loss": 0.3121, "loss_q1": 0.7, …, "examples_per_second": 312.4}
                {"step": 2000, "validation_loss": 0.2987, …}
    tensorboard/

A line of training comes every `log_every` steps, a line of validation every `validate_every`.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow as tf

from latentddpm.training.run.curves import LOG
from latentddpm.training.run.wandb_log import WandbLog
from latentddpm.utils.files import atomic_path, read_json_lines


class RunLog:
    """Log of a run: `log.jsonl`, TensorBoard events and, where given, Weights & Biases.

    A number that is not finite is null in `log.jsonl` and left out of the others. It is a context
    manager: leaving it ends the run of Weights & Biases.

    Args:
        folder: of the run.
        first: step that training goes on from. Lines of later steps, which a killed run wrote
            after its last checkpoint, are removed: they will be written again.
        wandb: to log to as well; None for none.

    Attributes:
        path: of `log.jsonl`.
    """

    def __init__(self, folder: Path, first: int = 0, wandb: WandbLog | None = None) -> None:
        self.path, self.wandb = folder / LOG, wandb
        if self.path.is_file():
            lines = read_json_lines(self.path)
            kept = [_as_json(line) for line in lines if line["step"] <= first]
            with atomic_path(self.path) as temporary:
                temporary.write_text("".join(kept), "utf-8")
        self.writer = tf.summary.create_file_writer(str(folder / "tensorboard"))

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, *details: Any) -> None:
        if self.wandb is not None:
            self.wandb.close(failed=kind is not None)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Append one line of numbers.

        Args:
            step: that they belong to.
            values: numbers by name.

        Raises:
            OSError: the disk is full, or the folder cannot be written.
        """
        line = {"step": step, **{key: float(f"{v:.6g}") for key, v in values.items()}}
        with open(self.path, "a", encoding="utf-8") as stream:
            stream.write(_as_json(line))
        with self._events(step):
            for key, value in values.items():
                if math.isfinite(value):
                    tf.summary.scalar(key, value)
        if self.wandb is not None:
            self.wandb.write(step, values)

    def picture(self, step: int, name: str, pixels: Any) -> None:
        """Log a picture, to TensorBoard and Weights & Biases.

        Args:
            step: that it belongs to.
            name: its tag.
            pixels: uint8 (H, W, 3).

        Raises:
            OSError: the disk is full, or the folder cannot be written.
        """
        with self._events(step):
            tf.summary.image(name, pixels[None])
        if self.wandb is not None:
            self.wandb.picture(step, name, pixels)

    @contextlib.contextmanager
    def _events(self, step: int) -> Iterator[None]:
        try:
            with self.writer.as_default(step=step):
                yield
            self.writer.flush()
        except tf.errors.OpError as error:
            what = error.message.splitlines()[0].rpartition("}} ")[2]
            raise OSError(f"TensorBoard events: {what}") from None


class NoLog(contextlib.nullcontext):
    """Log of a process that is not the chief: it writes nothing.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(self)
        self.path = folder / LOG

    def write(self, step: int, values: dict[str, float]) -> None:
        """Do nothing; arguments as of `RunLog.write`."""

    def picture(self, step: int, name: str, pixels: Any) -> None:
        """Do nothing; arguments as of `RunLog.picture`."""


def _as_json(line: dict[str, float | None]) -> str:
    """Line of JSON, with null for NaN and infinity."""
    known = {k: v if v is not None and math.isfinite(v) else None for k, v in line.items()}
    return json.dumps(known, allow_nan=False) + "\n"
