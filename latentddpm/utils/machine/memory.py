"""Memory: errors when it runs out, bytes that are free, weights that are limited or left blank."""

from __future__ import annotations

import contextlib
import contextvars
import ctypes
import math
import sys
from collections.abc import Iterator
from pathlib import Path

MOST_SCORES = 1 << 25
"""Most scores of an attention that are computed at a time: 128 MiB."""

_weights_left = contextvars.ContextVar("weights_left", default=math.inf)
_blank = contextvars.ContextVar("blank", default=False)


def is_out_of_memory(error: BaseException) -> bool:
    """True for an error of a backend or of NumPy that ran out of memory."""
    name = type(error).__name__
    return (
        isinstance(error, MemoryError)
        or name == "ResourceExhaustedError"  # TensorFlow
        or (name in ("XlaRuntimeError", "JaxRuntimeError") and "RESOURCE_EXHAUSTED" in str(error))
    )


def available_memory() -> int | None:
    """Free main memory in bytes; None if it is unknown, or if Keras computes on an accelerator.

    An accelerator's allocator raises an error when it runs out. A process on a CPU is killed
    instead, so its callers have to check beforehand.
    """
    keras = sys.modules.get("keras")
    if keras is not None and not keras.distribution.list_devices()[0].lower().startswith("cpu"):
        return None
    return free_memory()


def total_memory() -> int | None:
    """Main memory in bytes that this process may use at most; None if it is unknown."""
    total = _meminfo("MemTotal")
    limit = _lines("/sys/fs/cgroup/memory.max")
    if limit and limit[0] not in ("", "max"):
        total.append(int(limit[0]))
    return min(total, default=None)


def free_memory() -> int | None:
    """Free main memory in bytes; None if it is unknown."""
    free = _meminfo("MemAvailable")
    limit, used = (_lines(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))
    if limit and used and limit[0] != "max":
        free.append(int(limit[0]) - int(used[0]))
    return min(free, default=None)


class TooManyWeights(ValueError):
    """Error for a network with more weights than `weight_limit` allows."""


def give_memory_back() -> None:
    """Give freed memory back to the system, where the allocator is glibc's, which would keep it.

    ONNX Runtime holds several copies of the weights while it opens a graph: of a decoder with
    188 MB of weights 700 MB were in use afterwards, and 210 MB after this (measured).
    """
    with contextlib.suppress(OSError, TypeError, AttributeError):  # no glibc
        ctypes.CDLL(None).malloc_trim(0)


@contextlib.contextmanager
def weight_limit(number: float) -> Iterator[None]:
    """Limit on the weights of all networks that are made inside the block.

    For networks whose sizes come from a file of somebody else.

    Args:
        number: of weights.
    """
    token = _weights_left.set(number)
    try:
        yield
    finally:
        _weights_left.reset(token)


def count_weights(number: int) -> None:
    """Count weights that are about to be made towards the `weight_limit`.

    Args:
        number: of weights.

    Raises:
        TooManyWeights: that would be more than the limit.
    """
    left = _weights_left.get() - number
    if left < 0:
        raise TooManyWeights(f"{number} more weights")
    _weights_left.set(left)


@contextlib.contextmanager
def blank_weights() -> Iterator[None]:
    """Make networks with zeros for weights inside the block, because real ones are loaded next.

    Drawing the 860 million initial weights of a UNet takes longer than loading its real ones.
    """
    token = _blank.set(True)
    try:
        yield
    finally:
        _blank.reset(token)


def is_blank() -> bool:
    """True inside `blank_weights`."""
    return _blank.get()


def _meminfo(key: str) -> list[int]:
    """Bytes of an entry of `/proc/meminfo`, which states kB; empty where there is none."""
    lines = [line for line in _lines("/proc/meminfo") if line.startswith(f"{key}:")]
    return [1024 * int(line.split()[1]) for line in lines]


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text("utf-8").split("\n")
    except OSError:
        return []
