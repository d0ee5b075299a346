"""Registration of the networks' classes with Keras, whichever of the two is imported first.

    import latentddpm, keras
    keras.saving.load_model("vae.keras")

Keras finds a class in an archive only where it was registered, which happens when its module is
imported. `import latentddpm` does not import Keras; so the modules of the networks are imported as
soon as somebody imports it.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

MODULES = ("latentddpm.models.networks", "latentddpm.diffusion.with_keras")
"""Modules that register classes."""


def register_with_keras() -> None:
    """Import the modules of the networks, now or right after Keras is imported."""
    if "keras" in sys.modules:
        _import_all()
    else:
        sys.meta_path.insert(0, AfterKeras())


def _import_all() -> None:
    for name in MODULES:
        importlib.import_module(name)


class AfterKeras(importlib.abc.MetaPathFinder):
    """Finder that finds nothing itself, but lets the networks follow the import of Keras."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != "keras":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        run = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            run(module)
            # Where a network's own module is what imports Keras, it is half made; it registers
            # its classes itself. An error in ours must not make the import of Keras fail: who
            # uses the networks will see it.
            with contextlib.suppress(Exception):
                _import_all()

        spec.loader.exec_module = exec_module
        return spec
