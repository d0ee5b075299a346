"""Progress bar of a run, its lines of the log, and the summary printed at its start.

     12%|███▏                     | 1200/10000 [05:12<38:10, 312 images/s, loss 0.0312, lr 1e-04]

Images per second and the time left count the duration of a step, from the request for its batch
to its loss. Validation, sampling and checkpoints are left out, and so is the first step, which
compiles. Where the time left is that of a long run, a line says so once, after a few steps.
"""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf
from tqdm import tqdm

from latentddpm.training.plan.cost import (
    LONG_SECONDS,
    cost_of,
    matrix_speed,
    plan_note,
)
from latentddpm.training.run.curves import LOG
from latentddpm.training.run.run import Run
from latentddpm.training.run.runlog import NoLog, RunLog
from latentddpm.training.step.trainer import Trainer
from latentddpm.utils.console import activity, say
from latentddpm.utils.machine.memory import available_memory
from latentddpm.utils.timing import duration

if TYPE_CHECKING:
    from latentddpm.models.autoencoder.pixel_space import PixelSpace

REMEMBERED = 20
"""Steps in the average duration on the bar, approximately."""
ENOUGH = 4
"""Steps, the first one not counted, after which a long run is called so."""
FORMAT = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{left}{postfix}]"


class StepBar(tqdm):
    """Progress bar whose time left follows from the duration of a step.

    Attributes:
        seconds: of a step; None until known.
    """

    seconds: float | None = None

    @property
    def format_dict(self) -> dict[str, Any]:
        known = super().format_dict
        left = "?"
        if self.seconds is not None:
            left = tqdm.format_interval((self.total - self.n) * self.seconds)
        return {**known, "left": left}


class Progress(keras.callbacks.Callback):
    """Progress bar, and a line of the log every few steps, with the means since the line before.

    Args:
        log: to write to.
        first, total: step that training goes on from, and its last step.
        batch_size: examples of a step, on all replicas.
        every: steps from one line of the log to the next.
        quiet: show no bar and say nothing.
        advice: for a long run.
    """

    def __init__(
        self,
        log: RunLog | NoLog,
        first: int,
        total: int,
        batch_size: int,
        every: int,
        quiet: bool,
        advice: str = "",
    ) -> None:
        super().__init__()
        self.quiet, self.advice = quiet, advice
        self.first_step = contextlib.ExitStack()
        self.log, self.every, self.batch_size = log, every, batch_size
        self.step, self.seconds, self.timed = first, 0.0, 0
        self.learning_rate = math.nan
        self.bar = StepBar(
            total=total,
            initial=first,
            disable=quiet,
            bar_format=FORMAT,
            dynamic_ncols=True,
            # In a file every refresh is a new line.
            mininterval=1.0 if sys.stderr.isatty() else 30.0,
            miniters=1,
        )

    def on_train_begin(self, logs: Any = None) -> None:
        self.first_step.enter_context(activity("compiling the first step", self.quiet))

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.began = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        values = {key: float(value) for key, value in (logs or {}).items()}
        seconds = time.perf_counter() - self.began  # `float` above waited for the device
        self.step += 1
        self.first_step.close()
        if batch > 0:
            self.seconds += seconds
            self.timed += 1
            pace = self.bar.seconds or seconds
            self.bar.seconds = pace + (seconds - pace) / min(batch, REMEMBERED)
        if batch == ENOUGH:
            self._say_if_long()
        due = self.step % self.every == 0
        if due or batch == 0:
            self.learning_rate = float(self.model.optimizer.learning_rate)
        self.bar.set_postfix_str(self._numbers(values), refresh=False)
        self.bar.update()
        if not due:
            return
        rate = self.timed * self.batch_size / self.seconds if self.timed else math.nan
        rates = {"learning_rate": self.learning_rate, "examples_per_second": rate}
        self.log.write(self.step, {**values, **rates})
        # Keras averages over an epoch, here the whole run; the log has means over `every` steps.
        self.model.reset_metrics()
        self.seconds, self.timed = 0.0, 0

    def _numbers(self, values: Mapping[str, float]) -> str:
        """Numbers behind the time left, short enough for 80 columns."""
        numbers = []
        if self.bar.seconds:
            rate = self.batch_size / self.bar.seconds
            numbers.append(f"{rate:.{0 if rate >= 100 else 1}f} images/s")
        numbers.append(f"loss {values['loss']:.3g}")
        numbers.append(f"lr {self.learning_rate:.1e}")
        if "skipped" in values:
            numbers.append(f"skipped {values['skipped']:.0f}")
        return ", ".join(numbers)

    def on_train_end(self, logs: Any = None) -> None:
        self.close()

    def close(self) -> None:
        """Close the bar; nothing more is said."""
        self.first_step.close()
        self.bar.close()

    def _say_if_long(self) -> None:
        left = (self.bar.total - self.step) * self.bar.seconds
        if left > LONG_SECONDS:
            rate = self.batch_size / self.bar.seconds
            say(
                f"a long run: {self.bar.total - self.step} steps at {rate:.3g} images/s take "
                f"{duration(left)}{self.advice and '; '}{self.advice}",
                self.quiet,
            )


def large_plan(run: Run) -> list[str]:
    """Lines on a plan that is far too large for this processor; none on an accelerator.

    Args:
        run: with complete settings.
    """
    if tf.config.list_physical_devices("GPU"):
        return []
    config, factor = run.config, run.downsample_factor
    cost = cost_of(config, factor)
    note = plan_note(config, cost, matrix_speed(), available_memory(), factor)
    return [note] if note else []


def run_summary(
    run: Run,
    trainer: Trainer,
    parts: Mapping[str, keras.Model | PixelSpace | None],
    images: tuple[int, int],
) -> str:
    """Summary of a run in four lines: networks, steps, device, folder.

    Args:
        run: to describe.
        trainer: made in the scope of the run's strategy, and compiled.
        parts: networks of the run by their names; left out are those that it does not have, and
            those without weights.
        images: number of training images, and of validation images.
    """
    training = run.training
    groups = trainer.checkpoint_groups()
    along = [groups[name] for name in groups if name not in ("model", "optimizer")]
    trained = {id(v) for group in (trainer.trainable_variables, *along) for v in group}

    def size(network: keras.Model) -> str:
        own = sum(math.prod(v.shape) for v in network.variables if id(v) in trained)
        total = network.count_params()
        note = "" if own == total else f" ({_short(own)} trained)" if own else " (frozen)"
        return _short(total) + note

    having = {name: part for name, part in parts.items() if part is not None and part.variables}
    sizes = [f"{name} {size(part)}" for name, part in having.items()]
    micro = training.accumulation_steps
    batch = f"{training.batch_size} images" + (f" in {micro} micro-batches" if micro > 1 else "")
    prior = getattr(run.config, "prior", None)
    own = training.batch_size - (prior.share(training.batch_size) if prior else 0)
    epochs = training.num_steps * own / images[0]
    replicas = trainer.distribute_strategy.num_replicas_in_sync
    device = f"{replicas} × {_device()}" if replicas > 1 else _device()
    average = f"EMA {training.ema_momentum:g}"
    recipe = [training.precision, training.optimizer, *[average] * (training.ema_momentum > 0)]
    recipe += ["XLA"] * (training.jit_compile == "on")
    return "\n".join(
        (
            f"parameters {', '.join(sizes)}",
            f"steps      {training.num_steps} of {batch}, {epochs:.3g} epochs of {images[0]} "
            f"(and {images[1]} validation images)",
            f"device     {device}, {', '.join(recipe)}",
            f"run        {run.folder} ({LOG}, tensorboard, samples, checkpoints)",
        )
    )


def _short(number: int) -> str:
    """Number in thousands or millions: 1234567 → 1.23 M."""
    unit, name = (1e6, "M") if number >= 1e6 else (1e3, "k")
    return f"{number / unit:.3g} {name}"


def _device() -> str:
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        return "CPU"
    return tf.config.experimental.get_device_details(gpus[0]).get("device_name", "GPU")
