"""Which images are kept out for validation: decided by each path alone.

Adding or removing other images never moves one between the two sets.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from latentddpm.config import DataConfig
from latentddpm.data.scan import ImageRecord
from latentddpm.errors import UserError


def split_records(records: Sequence[ImageRecord], data: DataConfig) -> tuple[list[str], list[str]]:
    """Paths for training and for validation, in scan order.

    Raises:
        UserError: nothing is left to train on.
    """
    training, validation = [], []
    for record in records:
        kept_out = _fraction(record.path) < data.validation_fraction
        (validation if kept_out else training).append(record.path)
    if not training:
        raise UserError(
            f"data.validation_fraction={data.validation_fraction} keeps out all "
            f"{len(records)} images; lower it"
        )
    return training, validation


def _fraction(path: str) -> float:
    """A number in [0, 1) that follows from the path."""
    return int.from_bytes(hashlib.sha256(path.encode()).digest()[:8], "big") / 2**64
