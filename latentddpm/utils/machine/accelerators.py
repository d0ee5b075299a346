"""Accelerators of this machine, looked for without importing what computes on them.

    /dev/nvidia0 …   NVIDIA, unless `CUDA_VISIBLE_DEVICES` hides them
    /dev/kfd         AMD with ROCm, unless `HIP_VISIBLE_DEVICES` hides them

Elsewhere none is known of.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

DEVICES = {"nvidia[0-9]*": "CUDA_VISIBLE_DEVICES", "kfd": "HIP_VISIBLE_DEVICES"}
"""Name of a device file → the variable that hides devices of its kind."""
HIDDEN = ("", "-1", "none", "NoDevFiles")


def has_accelerator(
    folder: str | Path = "/dev", environment: Mapping[str, str] = os.environ
) -> bool:
    """True where this machine has a GPU that programs may use.

    Args:
        folder: of device files.
        environment: with the variables that hide devices.
    """
    return any(
        environment.get(variable, "all") not in HIDDEN and any(Path(folder).glob(pattern))
        for pattern, variable in DEVICES.items()
    )
