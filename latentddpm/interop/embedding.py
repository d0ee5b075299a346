"""Textual inversions (Gal et al. 2023): the learned vectors of a new word, in a file of their own.

    {"<cat-toy>": (n, d)}      of diffusers, which names the tensor after the word
    {"emb_params": (n, d)}     of A1111 and its kin, whose word is the name of the file

Written is the first, in safetensors: diffusers (`load_textual_inversion`) and A1111's kin read it.
Files `.pt` and `.bin` are pickles, which are not opened.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from latentddpm.errors import UserError
from latentddpm.interop.tensors import FLOATS, TensorFiles
from latentddpm.pipeline.weight_files import NEVER, is_pickle
from latentddpm.utils.files import atomic_path, file_digest

if TYPE_CHECKING:
    from latentddpm.pipeline.latent_diffusion import LatentDiffusion

UNNAMED = ("emb_params", "*")
"""Names of a tensor that do not say the word."""
OTHERS = {"clip_l": "Stable Diffusion XL", "clip_g": "Stable Diffusion XL"}
MOST_VECTORS = 75
"""Vectors of a word, at most: as many tokens fit into a prompt of CLIP."""


@dataclass(frozen=True)
class Embedding:
    """Embedding of a file: the word, and its vectors.

    Attributes:
        word: that stands for it in prompts.
        vectors: float32 (n, d).
    """

    word: str
    vectors: np.ndarray


def read_embedding(path: str | Path, word: str = "") -> Embedding:
    """Read the file of a textual inversion.

    Args:
        path: of the file (`.safetensors`).
        word: that stands for it in prompts; "" for that of the file, else the file's name.

    Raises:
        UserError: no such file, a pickle, another kind of weights, or numbers that are not
            finite.
    """
    path = Path(path)
    if is_pickle(path):
        raise UserError(f"{path}: a pickle {NEVER}; take the .safetensors version of it")
    tensors = TensorFiles([path])
    keys = [*tensors.keys()]
    other = next((OTHERS[key] for key in keys if key in OTHERS), None)
    if other:
        raise UserError(f"{path}: an embedding of {other}, which has two text encoders")
    shape = tensors.shape(keys[0]) if len(keys) == 1 else ()
    if len(shape) not in (1, 2) or 0 in shape or (len(shape) == 2 and shape[0] > MOST_VECTORS):
        what = f"{len(keys)} tensors" if len(keys) != 1 else f"{keys[0]!r} of shape {shape}"
        raise UserError(
            f"{path}: {what}, expected an embedding: one tensor with 1 to {MOST_VECTORS} vectors"
        )
    vectors = np.atleast_2d(tensors.read(keys[0], FLOATS).astype(np.float32))
    own = path.stem if keys[0] in UNNAMED else keys[0]
    return Embedding(word or own, vectors)


def save_embedding(
    path: str | Path, word: str, vectors: np.ndarray, metadata: Mapping[str, Any]
) -> None:
    """Write the file of a textual inversion, atomically; equal numbers give equal bytes.

    Args:
        path: of the file.
        word: that stands for it in prompts.
        vectors: (n, d).
        metadata: name → value, for the header of the file.

    Raises:
        OSError: the file cannot be written.
    """
    from safetensors.numpy import save

    from latentddpm.interop.lora import in_order

    header = {key: str(value) for key, value in metadata.items()}
    tensors = {word: np.ascontiguousarray(vectors, np.float32)}
    with atomic_path(path) as temporary:
        temporary.write_bytes(in_order(save(tensors, {"format": "pt", **header})))


def load_embedding(model: LatentDiffusion, path: str | Path, word: str = "") -> str:
    """Give a model the word of a textual inversion.

    Args:
        model: whose tokenizer and text encoder are replaced; `model.embeddings` gets an entry.
        path: of the file.
        word: see `read_embedding`.

    Returns:
        The word that stands for it in prompts.

    Raises:
        UserError: see `read_embedding` and `clip.added_tokens.add_tokens`; the model has no text
            or another engine than Keras, or its text encoder has another width.

    Example:
        ```python
        word = latentddpm.interop.load_embedding(model, "cat-toy.safetensors")
        images = model.generate(f"a {word} on the beach")
        ```
    """
    from latentddpm.clip.added_tokens import add_tokens

    found = read_embedding(path, word)
    if model.text_encoder is None:
        raise UserError(f"{path}: a word, and this model is unconditional, without words")
    if model.engine != "keras" or not hasattr(model.text_encoder, "hidden_dim"):
        raise UserError(f"{path}: needs the model of LatentDiffusion.load(…, engine='keras')")
    from latentddpm.clip.added_embeddings import with_embeddings

    check_width(path, found, model.text_encoder.hidden_dim)
    tokenizer = add_tokens(model.tokenizer, found.word, len(found.vectors))
    model.text_encoder = with_embeddings(model.text_encoder, found.vectors)
    model.tokenizer = tokenizer
    name = Path(path).name
    trace = {"file": name, "sha256": file_digest(path), "word": found.word}
    model.embeddings.append(trace)
    return found.word


def check_width(path: str | Path, embedding: Embedding, width: int) -> None:
    """Refuse an embedding of another text encoder.

    Args:
        path: of its file.
        embedding: that was read.
        width: of the model's text encoder.

    Raises:
        UserError: its vectors are of another width.
    """
    found = embedding.vectors.shape[1]
    if found != width:
        known = {768: " (Stable Diffusion 1.x)", 1024: " (Stable Diffusion 2.x)"}.get(found, "")
        raise UserError(
            f"{path}: vectors of {found} numbers{known}, and those of this model's text encoder "
            f"have {width}"
        )
