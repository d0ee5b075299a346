"""Finite numbers: a weight that is NaN or infinite is named where it is read.

One such weight makes every picture black, or a training stop, long after the file that brought it
was read. Looking for them takes a thousandth of the time of loading a network.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from latentddpm.errors import UserError


def check_finite(array: Any, file: object, tensor: str) -> None:
    """Check that all numbers of a tensor are finite.

    Args:
        array: of numbers of any type.
        file: that the tensor was read from, for the message.
        tensor: its name in the file, for the message.

    Raises:
        UserError: one is NaN or infinite; the message counts them.
    """
    finite = np.isfinite(array)
    if not finite.all():
        wrong, count = finite.size - np.count_nonzero(finite), finite.size
        raise UserError(
            f"{file}: {tensor!r} holds numbers that are not finite (NaN, ∞): {wrong:,} of "
            f"{count:,}; get the file again, or another version of it"
        )
