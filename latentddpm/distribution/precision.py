"""Precision that this machine computes fastest in: what "auto" stands for.

    GPU         in training bfloat16 from compute capability 8.0 on, which has units for it;
                without training float16 from 7.0 on, whose numbers are finer and whose overflow
                is seen (`models.precision`); else float32
    processor   in training bfloat16 where a convolution with its gradient is `WORTH` times as fast
                in it as in float32, which is so where there are instructions for it; else, and
                without training, float32: there bfloat16 pays for autoencoders, not for UNets

The convolution is timed once, in about a second. The answer is kept in the user's cache folder,
under the processor's name and all else that decides which kernels compute it.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from latentddpm.choices import AUTO, HALF
from latentddpm.errors import UserError, one_line
from latentddpm.utils.files import write_json
from latentddpm.utils.machine.cache import cache_folder
from latentddpm.utils.machine.kernels import (
    MEASURED,
    NATIVE,
    VARIABLE,
    processor_flags,
    processor_name,
)

WORTH = 1.1
"""Speed of bfloat16, in that of float32, from which its coarser numbers are worth it."""
TRAINING, DRAWING = ("bfloat16", (8, 0)), ("float16", (7, 0))
"""Half precision of GPUs, and the compute capability from which they have units for it."""
SHAPE = (4, 32, 32, 64)  # of the input, and 64 output channels
SECONDS = 1.0
MOST_ROUNDS = 9
CACHE = "bfloat16.json"
MOST = 1e3
"""A greater speed in the cache is a mistake."""
KERNEL_VARIABLES = (VARIABLE, "ONEDNN_MAX_CPU_ISA", "ONEDNN_DEFAULT_FPMATH_MODE")


@dataclass(frozen=True)
class Choice:
    """Precision and the reason for it, such as "1.87× as fast as float32 on this AMD EPYC"."""

    precision: str
    reason: str


def fastest_precision() -> Choice:
    """Precision for the devices that TensorFlow sees, all GPUs or else the processor."""
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        return choose_on_gpus([tf.config.experimental.get_device_details(gpu) for gpu in gpus])
    return choose_on_processor(cached_speed(measure_speed), processor_name())


def choose_precision(asked: str) -> str:
    """Precision to compute in without training.

    Args:
        asked: one of `choices.PRECISIONS`, or "auto" for the one that is right for the device.

    Raises:
        UserError: the device cannot compute in it.
    """
    import keras

    on_tensorflow = keras.backend.backend() == "tensorflow"
    if asked != AUTO:
        return check_device(asked, why_not) if on_tensorflow else asked
    gpus = tf.config.list_physical_devices("GPU") if on_tensorflow else ()
    if not gpus:
        return "float32"
    details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
    return choose_on_gpus(details, training=False).precision


def check_device(precision: str, why_not: Callable[[str], str]) -> str:
    """Check that the device can compute in a precision, and return it.

    Args:
        precision: one of `choices.PRECISIONS`.
        why_not: returns why the device cannot compute in a precision, "" where it can.

    Raises:
        UserError: it cannot; the message has the nearest precision that it can compute in.
    """
    if precision == "float32" or not (reason := why_not(precision)):
        return precision
    others = [one for one in HALF if one != precision and not why_not(one)]
    raise UserError(
        f"precision: this device cannot compute in {precision} ({reason}); "
        f"expected {' or '.join([*others, 'float32'])}"
    )


def why_not(precision: str) -> str:
    """Reason why TensorFlow cannot compute in a precision here, in one line; "" where it can.

    Args:
        precision: one of `choices.PRECISIONS`.
    """
    try:
        images, kernel = tf.ones((1, 4, 4, 8), precision), tf.ones((3, 3, 8, 8), precision)
        hidden = tf.nn.silu(tf.nn.conv2d(images, kernel, 1, "SAME"))
        tf.linalg.matmul(hidden, hidden, transpose_b=True).numpy()
    except (tf.errors.OpError, TypeError) as error:
        return one_line(error, 100)
    return ""


def choose_on_gpus(details: Sequence[Mapping[str, Any]], training: bool = True) -> Choice:
    """Precision for GPUs.

    Args:
        details: of each, see `tf.config.experimental.get_device_details`.
        training: gradients will be computed.
    """
    slowest = min(details, key=lambda one: tuple(one.get("compute_capability", ())))
    name, capability = slowest.get("device_name", "GPU"), slowest.get("compute_capability", ())
    known = ".".join(map(str, capability)) or "unknown"
    half, least = TRAINING if training else DRAWING
    precision = half if tuple(capability) >= least else "float32"
    return Choice(precision, f"compute capability {known} ({name})")


def choose_on_processor(speed: float, name: str) -> Choice:
    """Precision for a processor.

    Args:
        speed: of bfloat16, in that of float32; 0 where it cannot compute in it.
        name: of the processor.
    """
    if not speed:
        return Choice("float32", f"no bfloat16 on this {name}")
    if speed < WORTH:
        return Choice("float32", f"bfloat16 is {speed:.2f}× as fast on this {name}")
    return Choice("bfloat16", f"{speed:.2f}× as fast as float32 on this {name}")


def cached_speed(measure: Callable[[], float]) -> float:
    """Speed of bfloat16 from the user's cache folder, else measured and written there.

    A cache that cannot be read or written is as good as none.

    Args:
        measure: returns the speed.
    """
    key, known = _key(), {}
    with contextlib.suppress(OSError, RuntimeError, ValueError, TypeError, AttributeError):
        found = json.loads((cache_folder() / CACHE).read_text("utf-8"))
        known = {str(name): float(speed) for name, speed in found.items() if 0 <= speed < MOST}
    if key not in known:
        known[key] = round(measure(), 3)
        with contextlib.suppress(OSError, RuntimeError):
            cache_folder().mkdir(parents=True, exist_ok=True)
            write_json(cache_folder() / CACHE, known)
    return known[key]


def _key() -> str:
    """All that decides which kernels compute a convolution, and how fast they are."""
    variables = [f"{name}={os.environ[name]}" for name in KERNEL_VARIABLES if name in os.environ]
    units = sorted(processor_flags() & (NATIVE | {MEASURED, "avx512f"}))
    return " / ".join((processor_name(), *units, f"TensorFlow {tf.__version__}", *variables))


@functools.cache
def measure_speed() -> float:
    """Speed of bfloat16 on the processor, in that of float32; 0 where it cannot compute in it.

    The two take turns, so that what else runs on the machine slows both; the best of each counts.
    """
    precisions = (tf.float32, tf.bfloat16)
    best = dict.fromkeys(precisions, math.inf)
    try:
        with tf.device("CPU:0"):
            steps = {precision: _convolution(precision) for precision in precisions}
            for step in steps.values():
                step()  # which traces it
            began = time.perf_counter()
            for _ in range(MOST_ROUNDS):
                for precision, step in steps.items():
                    before = time.perf_counter()
                    step()
                    best[precision] = min(best[precision], time.perf_counter() - before)
                if time.perf_counter() - began > SECONDS:
                    break
    except tf.errors.OpError:
        return 0.0
    return best[tf.float32] / best[tf.bfloat16]


def _convolution(precision: tf.DType) -> Callable[[], Any]:
    """Function that computes a 3×3 convolution with SiLU, and its gradients, in a precision.

    As in mixed precision, inputs and kernel are float32 and are cast.
    """
    inputs = tf.random.stateless_normal(SHAPE, (0, 0))
    kernel = tf.random.stateless_normal((3, 3, SHAPE[-1], SHAPE[-1]), (0, 1), stddev=0.05)

    @tf.function
    def gradients(inputs: tf.Tensor, kernel: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch((inputs, kernel))
            hidden = tf.nn.conv2d(
                tf.cast(inputs, precision), tf.cast(kernel, precision), 1, "SAME"
            )
            total = tf.reduce_sum(tf.cast(tf.nn.silu(hidden), tf.float32))
        return [tf.reduce_sum(part) for part in tape.gradient(total, (inputs, kernel))]

    return lambda: [part.numpy() for part in gradients(inputs, kernel)]
