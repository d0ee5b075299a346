"""Embeddings as options name them: `FILE`, `WORD=FILE`, or the run that trained one.

The metadata of a PNG holds the word, and name and SHA-256 of the file. `--from` looks for the same
file, by its name, beside the PNG and in the working directory.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentddpm.clip.added_tokens import check_word
from latentddpm.errors import UserError
from latentddpm.generation.provenance import beside
from latentddpm.interop.embedding import check_width, read_embedding
from latentddpm.pipeline.model_folder import EMBEDDING, ModelFolder
from latentddpm.utils.files import TEXT_ENCODER, file_digest, read_arguments


@dataclass(frozen=True)
class EmbeddingFile:
    """File of a textual inversion that was read and fits the model.

    Attributes:
        path: of the file.
        word: that stands for it in prompts.
    """

    path: Path
    word: str


def read_embeddings(options: Iterable[str], model: ModelFolder) -> list[EmbeddingFile]:
    """Files of the options `--embedding`, checked.

    Args:
        options: each `FILE`, `WORD=FILE`, or the folder of a run instead of the file.
        model: that they are used with.

    Raises:
        UserError: no such file, no embedding, one of another text encoder, a model without text,
            or two with the same word.
    """
    found: list[EmbeddingFile] = []
    for option in options:
        path, word = Path(option), ""
        if not path.exists() and "=" in option:
            word, _, place = option.partition("=")
            path = Path(place)
            check_word(word, f"--embedding {option}")
        path = path / EMBEDDING if path.is_dir() else path
        embedding = read_embedding(path, word)
        if "text_encoder" not in model.parts:
            raise UserError(f"--embedding {path}: {model.path} is unconditional, without words")
        width = read_arguments(model.file("text_encoder"), TEXT_ENCODER)["hidden_dim"]
        check_width(path, embedding, width)
        same = [one.path for one in found if one.word.casefold() == embedding.word.casefold()]
        if same:
            raise UserError(
                f"--embedding {path}: {embedding.word} is the word of {same[0]} too; name another "
                "with WORD=FILE"
            )
        found.append(EmbeddingFile(path, embedding.word))
    return found


def remembered_embeddings(
    source: Path | None, traces: Iterable[Any], model: ModelFolder
) -> list[EmbeddingFile]:
    """Files that a PNG was made with.

    Args:
        source: the PNG.
        traces: its metadata `embeddings`: for each its `word`, and `file` and `sha256`.
        model: that it was made by.

    Raises:
        UserError: a file is missing or is another one, or the metadata is malformed.
    """
    options = []
    for trace in traces:
        try:
            name, word, sha256 = Path(trace["file"]).name, str(trace["word"]), trace["sha256"]
        except (TypeError, KeyError):
            raise UserError(f"{source}: its metadata has embeddings: {trace!r:.100}") from None
        path = beside(source, name)
        if path is None or file_digest(path) != sha256:
            raise UserError(
                f"{source}: was made with {name} (SHA-256 {str(sha256)[:12]}), which is not "
                f"beside it; give it with --embedding {word}=FILE"
            )
        options.append(f"{word}={path}")
    return read_embeddings(options, model)


def embeddings_metadata(embeddings: Iterable[EmbeddingFile]) -> dict[str, Any]:
    """Metadata of an image that was made with embeddings; empty without any.

    Args:
        embeddings: the files.
    """
    traces = [
        {"file": one.path.name, "sha256": file_digest(one.path), "word": one.word}
        for one in embeddings
    ]
    return {"embeddings": traces} if traces else {}


def engine_with_embeddings(given: str | None) -> str:
    """Engine of a generation with embeddings, which only Keras has.

    Args:
        given: of `--engine`; None for none.

    Raises:
        UserError: another engine was asked for.
    """
    if given == "onnx":
        raise UserError("--engine onnx: has no embeddings; --embedding needs --engine keras")
    return "keras"
