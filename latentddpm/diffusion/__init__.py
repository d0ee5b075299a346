"""Diffusion: noise schedule (forward process), samplers (reverse process), guidance.

The names load on first use, so that `diffusion.options` can be imported without Keras.
"""

import importlib
from typing import Any

_HOMES = {
    "AutoGuidance": "guidance",
    "ClassifierFreeGuidance": "guidance",
    "FlowSchedule": "flow",
    "GuidanceChain": "guidance",
    "GuidanceInterval": "guidance",
    "NoiseSchedule": "schedule",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
