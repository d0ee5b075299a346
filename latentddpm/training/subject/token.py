"""Textual inversion: a new word for a subject, learned as rows of the token embedding alone.

    v* = argmin_v E ‖ε − ε_θ(z_t, t, c(y; v))‖²        (Gal et al. 2023, eq. 2)

    id < V   →  token embedding of the text encoder, as it is
    id ≥ V   →  row id − V of the added ones, which alone are trained

All weights of the model are frozen: no optimizer state, decay or rounding reaches them. What a run
leaves is `OUT/embedding.safetensors`.
"""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
from keras import ops

import latentddpm
from latentddpm.clip.added_embeddings import with_embeddings
from latentddpm.clip.added_tokens import AddedTokenTokenizer, add_tokens
from latentddpm.clip.text_encoder import TextEncoder
from latentddpm.clip.tokenizer import CLIPTokenizer
from latentddpm.config import DiffusionRun, TextConfig
from latentddpm.errors import UserError
from latentddpm.interop.embedding import save_embedding
from latentddpm.models.functional import freeze, rebuild
from latentddpm.pipeline.model_folder import ModelFolder


class AddedEmbeddings(keras.Model):
    """Text encoder with added token embeddings, which alone are trained (Gal et al. 2023).

    Args:
        encoder: is frozen.
        rows: first values of the added embeddings, float32 (n, d).

    Call arguments:
        inputs: `{"token_ids": int32 (B, L)}`, ids up to the size of the vocabulary + n.

    Returns:
        The context, (B, L, d); for ids of the vocabulary that of the encoder.
    """

    def __init__(self, encoder: TextEncoder, rows: np.ndarray) -> None:
        super().__init__(name="added_embeddings", dtype=encoder.dtype_policy)
        freeze(encoder)
        self.encoder = encoder
        self.hidden_dim = encoder.hidden_dim
        self.rows = self.add_weight(
            shape=rows.shape, initializer="zeros", dtype="float32", name="rows"
        )
        self.rows.assign(rows)
        self.built = True

    def call(self, inputs, training=None):
        ids = ops.convert_to_tensor(inputs["token_ids"])
        embedding, size = self.encoder.get_layer("embedding"), self.encoder.vocabulary_size
        known = embedding(ops.minimum(ids, size - 1))
        rows = ops.take(self.rows, ops.maximum(ids - size, 0), axis=0)
        positions = embedding.position_embedding.embeddings[: ops.shape(ids)[1]]
        added = ops.cast(rows, known.dtype) + ops.cast(positions, known.dtype)
        hidden = ops.where((ids >= size)[..., None], added, known)
        for block in range(self.encoder.num_layers):
            hidden = self.encoder.get_layer(f"encoder_block_{block}")(hidden, training=training)
        return self.encoder.get_layer("layer_norm")(hidden)


def add_new_token(
    text: TextConfig, unet: keras.Model, encoder: TextEncoder, tokenizer: CLIPTokenizer
) -> tuple[AddedEmbeddings, AddedTokenTokenizer]:
    """Text encoder and tokenizer with the new word of a run; all other weights are frozen.

    Args:
        text: with the word, the words that its vectors begin as, and their number.
        unet, encoder, tokenizer: of the model that the run starts from.

    Returns:
        (text encoder, tokenizer) that know the word.

    Raises:
        UserError: the word is one of the vocabulary.
    """
    ids = tokenizer.encode(text.new_token_init)
    table = ops.convert_to_numpy(encoder.get_layer("embedding").token_embedding.embeddings)
    first = [ids[k % len(ids)] for k in range(text.new_token_vectors)]
    try:
        tokenizer = add_tokens(tokenizer, text.new_token, len(first))
    except UserError as error:
        raise UserError(f"text.new_token: {error}") from None
    freeze(unet)
    return AddedEmbeddings(encoder, table[first].astype("float32")), tokenizer


def save_trained_token(
    added: AddedEmbeddings, path: Path, config: DiffusionRun, base: ModelFolder
) -> None:
    """Write a run's vectors, with metadata that identifies them and their model.

    Args:
        added: trained.
        path: of the `.safetensors` file.
        config: of the run.
        base: model that the run started from.
    """
    name = base.path.parent.name if base.path.name == "model" else base.path.name
    metadata = {
        "latentddpm": latentddpm.__version__,
        "base_model": name,
        "base_digest": base.digest,
        "word": config.text.new_token,
        "first": config.text.new_token_init,
    }
    save_embedding(path, config.text.new_token, ops.convert_to_numpy(added.rows), metadata)


def finished_encoder(added: AddedEmbeddings) -> TextEncoder:
    """Text encoder with the trained rows in its table, in float32.

    Args:
        added: trained.
    """
    encoder = rebuild(added.encoder, dtype="float32")
    return with_embeddings(encoder, ops.convert_to_numpy(added.rows))
