"""Export: models for other programs, as Keras archives, SavedModel, ONNX or LiteRT."""

from latentddpm.export.export import export_model

__all__ = ["export_model"]
