"""What happens beside the gradient steps: progress, log, checkpoints, validation.

A run is one `fit` over a stream of batches; these callbacks count optimizer steps, not
epochs, so that everything (log, checkpoint, validation) can fall on any step.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
from tqdm import tqdm

from latentddpm import interrupt
from latentddpm.files import atomic_path, read_json_lines


@contextlib.contextmanager
def averaged_weights(model: keras.Model) -> Iterator[None]:
    """The optimizer's moving averages as the model's weights, inside the block.

    Keras's own `SwapEMAWeights` swaps by adding and subtracting, which does not give back
    the same bits; training has to go on as if nothing had been looked at.
    """
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    if not optimizer.use_ema:
        yield
        return
    variables = model.trainable_variables
    raw = [keras.ops.convert_to_numpy(variable) for variable in variables]
    try:
        optimizer.finalize_variable_values(variables)
        yield
    finally:
        for variable, value in zip(variables, raw, strict=True):
            variable.assign(value)


class RunLog:
    """`log.jsonl` and TensorBoard events of a run folder; one call writes to both.

    A number that is not finite, or that nothing was measured for, is null in the first and left
    out of the second.

    Args:
        folder: of the run.
        first: step that training goes on from; lines of later steps, which a killed run wrote
            after its last checkpoint, are dropped because they will be written again.
    """

    def __init__(self, folder: Path, first: int = 0) -> None:
        self.path = folder / "log.jsonl"
        if self.path.is_file():
            lines = read_json_lines(self.path)
            kept = [_as_json(line) for line in lines if line["step"] <= first]
            with atomic_path(self.path) as temporary:
                temporary.write_text("".join(kept), "utf-8")
        self.writer = tf.summary.create_file_writer(str(folder / "tensorboard"))

    def write(self, step: int, values: dict[str, float]) -> None:
        """Append one line of numbers.

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

    def picture(self, step: int, name: str, pixels: Any) -> None:
        """A uint8 (H, W, 3) picture for TensorBoard."""
        with self._events(step):
            tf.summary.image(name, pixels[None])

    @contextlib.contextmanager
    def _events(self, step: int) -> Iterator[None]:
        try:
            with self.writer.as_default(step=step):
                yield
            self.writer.flush()
        except tf.errors.OpError as error:
            what = error.message.splitlines()[0].rpartition("}} ")[2]
            raise OSError(f"TensorBoard events: {what}") from None


def _as_json(line: dict[str, float | None]) -> str:
    """One line of JSON, which has no word for NaN and infinity."""
    known = {k: v if v is not None and math.isfinite(v) else None for k, v in line.items()}
    return json.dumps(known, allow_nan=False) + "\n"


class NoLog:
    """The `RunLog` of a worker that is not the chief: it writes nothing."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "log.jsonl"

    def write(self, step: int, values: dict[str, float]) -> None:
        """Nothing."""

    def picture(self, step: int, name: str, pixels: Any) -> None:
        """Nothing."""


class Progress(keras.callbacks.Callback):
    """A bar with rate and time left; the mean of the metrics since the last line, logged."""

    def __init__(
        self, log: RunLog, first: int, total: int, batch_size: int, every: int, quiet: bool
    ) -> None:
        super().__init__()
        self.log, self.every, self.batch_size = log, every, batch_size
        self.step = first
        self.bar = tqdm(total=total, initial=first, unit="step", disable=quiet, mininterval=1.0)

    def on_train_begin(self, logs: Any = None) -> None:
        self.mark = time.perf_counter(), self.step

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        self.step += 1
        self.bar.update()
        if self.step % self.every:
            return
        now = time.perf_counter()
        rate = (self.step - self.mark[1]) * self.batch_size / (now - self.mark[0])
        values = {
            **{key: float(value) for key, value in (logs or {}).items()},
            "learning_rate": float(self.model.optimizer.learning_rate),
            "examples_per_second": rate,
        }
        self.bar.set_postfix({k: f"{v:.4g}" for k, v in values.items()}, refresh=False)
        self.log.write(self.step, values)
        # Keras averages over an epoch; our epoch is the whole run, a window is of more use.
        self.model.reset_metrics()
        self.mark = time.perf_counter(), self.step

    def on_train_end(self, logs: Any = None) -> None:
        self.bar.close()


class StopEvaluation(keras.callbacks.Callback):
    """A signal need not wait for the end of a long validation."""

    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
        interrupt.check()


class EverySteps(keras.callbacks.Callback):
    """Call `action(step)` every so many steps and after the last one."""

    def __init__(self, action: Callable[[int], None], first: int, total: int, every: int) -> None:
        super().__init__()
        self.action, self.step, self.total, self.every = action, first, total, every

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.step += 1
        if self.step % self.every == 0 or self.step == self.total:
            self.action(self.step)
