"""Vocabulary of CLIP's tokenizer: the one in this package, and those of Hugging Face folders.

A vocabulary maps tokens to ids. Its tokens are the 256 byte characters, the same 256 at the end of
a word (`x</w>`), one token per merge rule, and the two special tokens. Ids are positions in that
list. CLIP has 49,408 tokens, with start = 49406 and end = 49407.

On disk a vocabulary is `vocab.json` with `merges.txt`, or `tokenizer.json`, or the compressed list
of merges that is part of this package.
"""

from __future__ import annotations

import functools
import gzip
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from latentddpm.errors import UserError
from latentddpm.utils.files import atomic_path, read_json, read_text, write_json

START_TOKEN, END_TOKEN, WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"

# The vocabulary in this package (MIT, OpenAI; see the LICENSE beside it).
PACKAGED_NAME = "bpe_simple_vocab_16e6"
PACKAGED_PATH = Path(__file__).with_name("vocabulary_files") / f"{PACKAGED_NAME}.txt.gz"
NUM_PACKAGED_MERGES = 49_152 - 256 - 2


# Byte → printable character: the byte's own where it is printable, else 256, 257, ... The order
# of this dictionary is that of the first 256 ids.
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
BYTE_TO_CHARACTER = {byte: chr(byte) for byte in _PRINTABLE} | {
    byte: chr(256 + n) for n, byte in enumerate(_OTHERS)
}
CHARACTER_TO_BYTE = {character: byte for byte, character in BYTE_TO_CHARACTER.items()}


@functools.cache
def packaged_vocabulary() -> tuple[dict[str, int], tuple[tuple[str, str], ...]]:
    """Vocabulary of CLIP (49,408 tokens → ids) and its 48,894 merges; callers share them."""
    lines = gzip.decompress(PACKAGED_PATH.read_bytes()).decode("utf-8").split("\n")
    merges = tuple(tuple(line.split()) for line in lines[1 : NUM_PACKAGED_MERGES + 1])
    tokens = [*byte_tokens(), *map("".join, merges), START_TOKEN, END_TOKEN]
    return {token: n for n, token in enumerate(tokens)}, merges


def byte_tokens() -> list[str]:
    """First 512 tokens: every byte as a character, then each as the end of a word."""
    characters = list(BYTE_TO_CHARACTER.values())
    return characters + [character + WORD_END for character in characters]


def check_vocabulary(vocabulary: Any, merges: Sequence[tuple[str, str]]) -> None:
    """Check that any text can be encoded and decoded with a vocabulary.

    Args:
        vocabulary: token → id.
        merges: pairs of symbols.

    Raises:
        UserError: it is not a vocabulary of CLIP's kind.
    """
    if not isinstance(vocabulary, dict) or any(type(n) is not int for n in vocabulary.values()):
        raise UserError("vocabulary: expected a mapping from token to id")
    if sorted(vocabulary.values()) != list(range(len(vocabulary))):
        raise UserError(f"vocabulary: ids are not 0 to {len(vocabulary) - 1}, each once")
    needed = itertools.chain([START_TOKEN, END_TOKEN], byte_tokens(), map("".join, merges))
    for token in needed:
        if token not in vocabulary:
            raise UserError(f"vocabulary: no token {token!r}; not a CLIP vocabulary")
    if len(set(merges)) != len(merges):
        raise UserError("vocabulary: a merge rule is there twice; not a CLIP vocabulary")
    if unknown := set().union(*vocabulary) - set(CHARACTER_TO_BYTE):
        raise UserError(f"vocabulary: {min(unknown)!r} stands for no byte; not a CLIP vocabulary")


def read_vocabulary(folder: Path) -> tuple[dict[str, int], tuple[tuple[str, str], ...]]:
    """Vocabulary (token → id) and merges of a Hugging Face folder; `check_vocabulary` checks them.

    Raises:
        UserError: the files are missing or malformed.
    """
    pair, single = (folder / "vocab.json", folder / "merges.txt"), folder / "tokenizer.json"
    if all(path.is_file() for path in pair):
        vocabulary = read_json(pair[0])
        rules = [line for line in read_text(pair[1]).split("\n") if line.strip()]
        if rules and rules[0].startswith("#version"):
            rules = rules[1:]
        source = pair[1]
    elif single.is_file():
        model = read_json(single).get("model")
        if not isinstance(model, dict) or not isinstance(model.get("merges"), list):
            raise UserError(f"{single}: holds no BPE model with a vocabulary and merges")
        vocabulary, rules, source = model.get("vocab"), model["merges"], single
    else:
        missing = " and ".join(path.name for path in pair if not path.is_file())
        raise UserError(f"{folder}: {missing} not found, nor a tokenizer.json: no CLIP tokenizer")
    merges = []
    for rule in rules:
        parts = rule.split() if isinstance(rule, str) else rule
        if not isinstance(parts, list) or list(map(type, parts)) != [str, str]:
            raise UserError(f"{source}: merge rule {rule!r:.80} is not two symbols")
        merges.append(tuple(parts))
    return vocabulary, tuple(merges)


def added_tokens(folder: Path, config: dict[str, Any]) -> list[str]:
    """Tokens that a Hugging Face folder adds to its vocabulary; special tokens are among them.

    Args:
        folder: with the files of the tokenizer.
        config: content of its `tokenizer_config.json`.
    """
    decoder = config.get("added_tokens_decoder")
    entries = list(decoder.values()) if isinstance(decoder, dict) else []
    listed = read_json(folder / "tokenizer.json", optional=True).get("added_tokens")
    entries += listed if isinstance(listed, list) else []
    contents = [entry.get("content") for entry in entries if isinstance(entry, dict)]
    contents += read_json(folder / "added_tokens.json", optional=True)
    return [token for token in contents if isinstance(token, str)]


def write_vocabulary(
    folder: Path, vocabulary: dict[str, int], merges: Sequence[tuple[str, str]]
) -> None:
    """Write `vocabulary` and `merges` to `vocab.json` and `merges.txt`, as Hugging Face does."""
    write_json(folder / "vocab.json", vocabulary)
    with atomic_path(folder / "merges.txt") as path:
        lines = ["#version: 0.2", *map(" ".join, merges)]
        path.write_text("\n".join(lines) + "\n", "utf-8")
