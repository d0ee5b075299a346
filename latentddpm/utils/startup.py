"""Startup of Keras and TensorFlow, without the lines they print.

TensorFlow prints lines about its build while it is imported, and about GPUs that are not there
when it first looks for them, whatever its log level. They are shown only when the import fails,
or to those who set `TF_CPP_MIN_LOG_LEVEL` to 0 or 1.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import sys
from types import ModuleType
from typing import Any

from latentddpm.utils.console import activity, held_stderr, speaks
from latentddpm.utils.machine.kernels import choose_kernels, processor_flags

LEVEL = "TF_CPP_MIN_LOG_LEVEL"
QUIETEST = "3"


def import_keras(training: bool = False) -> None:
    """Import Keras and its backend; TensorFlow unless `KERAS_BACKEND` names another.

    Args:
        training: gradients will be computed, for which other kernels are faster; see `kernels`.
    """
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    _load("keras", training)


def import_tensorflow() -> Any:
    """TensorFlow, imported if it was not yet."""
    return _load("tensorflow")


def _load(name: str, training: bool = False) -> ModuleType:
    if name in sys.modules:
        return importlib.import_module(name)  # waits where another thread is importing it
    wanted = os.environ.setdefault(LEVEL, QUIETEST) in ("0", "1")
    os.environ.update(choose_kernels(training, processor_flags(), os.environ))
    # Modules are never freed, and the garbage collector takes a quarter of the import's time to
    # look through them.
    collecting = gc.isenabled()
    gc.disable()
    try:
        hidden = contextlib.nullcontext() if wanted else held_stderr()
        with hidden, activity("loading TensorFlow", quiet=not speaks()):
            module = importlib.import_module(name)
            if tensorflow := sys.modules.get("tensorflow"):
                tensorflow.config.list_physical_devices()  # which looks for GPUs
    finally:
        if collecting:
            gc.enable()
    gc.freeze()
    return module
