"""The mathematics of diffusion: schedule (forward), samplers (reverse), guidance.

The names below load on first use, so that `diffusion.options` is there without Keras.
"""

import importlib
from typing import Any

_HOMES = {
    "ClassifierFreeGuidance": "guidance",
    "DDIMSampler": "samplers",
    "DDPMSampler": "samplers",
    "NoiseSchedule": "schedule",
    "Sampler": "samplers",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
