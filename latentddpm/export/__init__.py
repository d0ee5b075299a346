"""Export: models for other programs, as Keras archives, SavedModel, ONNX or LiteRT.

The public name loads on first use, because its module imports Keras.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = ["export_model"]

if TYPE_CHECKING:
    from latentddpm.export.export import export_model


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from latentddpm.export.export import export_model

    globals()[name] = export_model
    return export_model
