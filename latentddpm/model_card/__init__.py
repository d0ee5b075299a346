"""Model card: what a finished model is, how it was trained, and where it ends."""

from latentddpm.model_card.card import write_card

__all__ = ["write_card"]
