"""Memory: whether it ran out, how much is free, and a limit on the weights that are made."""

from __future__ import annotations

import contextlib
import contextvars
import math
from collections.abc import Iterator
from pathlib import Path

import keras

_weights_left = contextvars.ContextVar("weights_left", default=math.inf)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a backend or NumPy ran out of memory."""
    name = type(error).__name__
    return (
        isinstance(error, MemoryError)
        or name == "ResourceExhaustedError"  # TensorFlow
        or (name in ("XlaRuntimeError", "JaxRuntimeError") and "RESOURCE_EXHAUSTED" in str(error))
    )


def available_memory() -> int | None:
    """Bytes that are free in main memory; None where that is unknown or not what counts.

    On an accelerator its own allocator reports when it runs out. A CPU's process is killed
    instead, so there the size is judged beforehand.
    """
    if not keras.distribution.list_devices()[0].lower().startswith("cpu"):
        return None
    lines = [line for line in _lines("/proc/meminfo") if line.startswith("MemAvailable")]
    free = [1024 * int(line.split()[1]) for line in lines]  # stated in kB
    limit, used = (_lines(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))
    if limit and used and limit[0] != "max":
        free.append(int(limit[0]) - int(used[0]))
    return min(free, default=None)


class TooManyWeights(ValueError):
    """A network with more weights than `weight_limit` allows."""


@contextlib.contextmanager
def weight_limit(number: float) -> Iterator[None]:
    """Networks made inside may have so many weights: for those whose sizes a stranger chose."""
    token = _weights_left.set(number)
    try:
        yield
    finally:
        _weights_left.reset(token)


def count_weights(number: int) -> None:
    """Take weights that are about to be made off what `weight_limit` allows.

    Raises:
        TooManyWeights: so many are not left.
    """
    left = _weights_left.get() - number
    if left < 0:
        raise TooManyWeights(f"{number} more weights")
    _weights_left.set(left)


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text("utf-8").split("\n")
    except OSError:
        return []
