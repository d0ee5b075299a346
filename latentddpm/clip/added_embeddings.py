"""Embeddings of added tokens: rows behind those of a text encoder's vocabulary."""

from __future__ import annotations

import numpy as np
from keras import ops

from latentddpm.clip.text_encoder import TextEncoder
from latentddpm.utils.machine.memory import blank_weights


def with_embeddings(encoder: TextEncoder, rows: np.ndarray) -> TextEncoder:
    """Text encoder whose vocabulary has further rows.

    Args:
        encoder: stays as it is.
        rows: of the added tokens, float32 (n, d).

    Returns:
        A copy whose token embedding has the rows behind its own.
    """
    size = encoder.vocabulary_size + len(rows)
    with blank_weights():
        copy = TextEncoder.from_config({**encoder.get_config(), "vocabulary_size": size})
    table = encoder.get_layer("embedding").token_embedding.embeddings
    for new, old in zip(copy.weights, encoder.weights, strict=True):
        value = ops.convert_to_numpy(old)
        new.assign(np.concatenate([value, rows.astype(value.dtype)]) if old is table else value)
    return copy
