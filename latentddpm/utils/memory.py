"""Memory: whether it ran out, and how much is free."""

from __future__ import annotations

from pathlib import Path

import keras


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


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text("utf-8").split("\n")
    except OSError:
        return []
