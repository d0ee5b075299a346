"""Networks: the autoencoder and the denoisers, their blocks, and their archives.

The classes load on first use, since some modules here need no Keras.
"""

import importlib
from typing import Any


def __getattr__(name: str) -> Any:
    if name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    networks = importlib.import_module(f"{__name__}.networks")
    if name not in networks.__all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(networks, name)
