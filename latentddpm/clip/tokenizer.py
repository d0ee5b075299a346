"""Tokenizer of CLIP: byte-pair encoding in pure Python.

    text ──clean──► words ──UTF-8 bytes as printable characters──► symbols ──merges──► ids

A model sees `start, ids..., end, pad...`. CLIP and Stable Diffusion 1.x pad with the end token.
`clip.vocabulary` has the tokens and the merge rules, and reads and writes their files.

The rules are those of OpenAI's `clip/simple_tokenizer.py`, except where that calls ftfy: here text
is composed (NFC), and control characters and byte order marks are removed. Wrongly decoded text
is not repaired and quotes stay as they are, as in Hugging Face's tokenizer today.
"""

from __future__ import annotations

import functools
import heapq
import html
import itertools
import re
import unicodedata
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from latentddpm.clip.vocabulary import (
    BYTE_TO_CHARACTER,
    CHARACTER_TO_BYTE,
    END_TOKEN,
    PACKAGED_NAME,
    START_TOKEN,
    WORD_END,
    added_tokens,
    check_vocabulary,
    packaged_vocabulary,
    read_vocabulary,
    write_vocabulary,
)
from latentddpm.errors import UserError, check_choice
from latentddpm.utils.files import read_json, write_json

PACKAGED_KEY = "latentddpm_vocabulary"  # in tokenizer_config.json: no vocab.json, merges.txt
MAX_CONTEXT_LENGTH = 1_000_000  # Hugging Face writes 1e30 where no length is set
MAX_CACHED_CHARACTERS = 64

# CLIP's pattern is `...|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+`. `re` has no \p: its run of letters
# also contains numbers like "²" and "Ⅳ", which `_words` splits off again.
_WORDS = re.compile(
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[^\W\d_]+|\d|(?:[^\w\s]|_)+"
)
_UNWANTED = re.compile("[\x00-\x08\x0e-\x1f\x7f\ufeff]")  # controls but white space; BOM
_SURROGATES = re.compile("[\ud800-\udfff]")  # undecodable bytes of a command line


class PromptTooLong(UserWarning):
    """Warning that a prompt has more tokens than the text encoder has positions, and was cut."""


class CLIPTokenizer:
    """Tokenizer of CLIP: text to token ids and back, by byte-pair encoding.

    Args:
        context_length: positions of the text encoder, special tokens included; at least 3.
        vocabulary: token → id, with ids 0 .. n−1; None for CLIP's own.
        merges: pairs of symbols in order of priority; given if and only if `vocabulary` is.
        pad_token: fills a row after its end token. Stable Diffusion 2 uses "!".

    Raises:
        UserError: a bad length, or a vocabulary and merges that do not match.

    Example:
        >>> tokenizer = latentddpm.CLIPTokenizer(context_length=8)
        >>> tokenizer("a photo of a cat")  # int32 (1, 8): start, five words, end, end
        array([[49406, 320, 1125, 539, 320, 2368, 49407, 49407]], dtype=int32)
    """

    def __init__(
        self,
        context_length: int = 77,
        *,
        vocabulary: dict[str, int] | None = None,
        merges: Sequence[tuple[str, str]] | None = None,
        pad_token: str = END_TOKEN,
    ) -> None:
        whole = isinstance(context_length, int) and not isinstance(context_length, bool)
        if not whole or not 3 <= context_length <= MAX_CONTEXT_LENGTH:
            raise UserError(
                f"context_length: expected a whole number from 3 (start, one token, end) "
                f"to {MAX_CONTEXT_LENGTH:,}, got {context_length!r}"
            )
        if (vocabulary is None) != (merges is None):
            raise UserError("vocabulary and merges belong together: give both or neither")
        if vocabulary is None:
            vocabulary, merges = packaged_vocabulary()
        else:
            check_vocabulary(vocabulary, merges)
        if not isinstance(pad_token, str) or pad_token not in vocabulary:
            raise UserError(f"pad_token: {pad_token!r} is not in the vocabulary")
        self.context_length = context_length
        self.vocabulary = vocabulary
        self.merges = tuple(map(tuple, merges))
        self.pad_token = pad_token
        self.tokens = sorted(vocabulary, key=vocabulary.__getitem__)
        self.start_id, self.end_id = vocabulary[START_TOKEN], vocabulary[END_TOKEN]
        self.pad_id = vocabulary[pad_token]
        self._ranks = {pair: rank for rank, pair in enumerate(merges)}
        self._cached_symbols = functools.lru_cache(maxsize=1 << 16)(self._symbols)

    @property
    def vocabulary_size(self) -> int:
        """Number of tokens, the two special ones included."""
        return len(self.vocabulary)

    def __call__(self, texts: str | Iterable[str]) -> np.ndarray:
        """Token ids of prompts, int32 (N, context_length).

        The end of a prompt that is too long is cut off, and the end token follows. A call gives
        one `PromptTooLong` warning for all of them.

        Args:
            texts: one prompt, or several.

        Raises:
            UserError: one of `texts` is not a string.
        """
        texts = [texts] if isinstance(texts, str | bytes) else list(texts)
        rows = np.full((len(texts), self.context_length), self.pad_id, np.int32)
        room = self.context_length - 2
        cut = []
        for row, text in zip(rows, texts, strict=True):
            ids = self.encode(text)
            if len(ids) > room:
                cut.append((text, len(ids), self.decode(ids[room:])))
            ids = [self.start_id, *ids[:room], self.end_id]
            row[: len(ids)] = ids
        if cut:
            text, length, tail = cut[0]
            others = f" (and {len(cut) - 1} more)" if cut[1:] else ""
            warnings.warn(
                f"prompt too long, its end is cut off: {_shortened(text, 40)!r}{others} has "
                f"{length} tokens, {room} fit; left out: {_shortened(tail)!r}",
                PromptTooLong,
                stacklevel=2,
            )
        return rows

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without start, end and padding.

        Raises:
            UserError: it is not a string.
        """
        return [self.vocabulary[token] for token in self.tokenize(text)]

    def tokenize(self, text: str) -> list[str]:
        """Tokens of `text` as the vocabulary spells them, such as `["a</w>", "cat</w>"]`.

        Raises:
            UserError: it is not a string.
        """
        if not isinstance(text, str):
            raise UserError(f"prompt: expected text, got {type(text).__name__} {text!r:.40}")
        tokens = []
        for word in _words(_clean(text)):
            if word in (START_TOKEN, END_TOKEN):
                tokens.append(word)
                continue
            word = word.encode().decode("latin-1").translate(BYTE_TO_CHARACTER)
            short = len(word) <= MAX_CACHED_CHARACTERS
            tokens.extend(self._cached_symbols(word) if short else self._symbols(word))
        return tokens

    def decode(self, ids: Iterable[int]) -> str:
        """Text of token `ids`, with spaces between words and without special tokens.

        Raises:
            UserError: an id outside the vocabulary.
        """
        text = bytearray()
        for token_id in map(int, ids):
            if not 0 <= token_id < len(self.tokens):
                raise UserError(f"token id {token_id}: expected 0 to {len(self.tokens) - 1}")
            token = self.tokens[token_id]
            if token not in (START_TOKEN, END_TOKEN):
                text += bytes(CHARACTER_TO_BYTE[c] for c in token.removesuffix(WORD_END))
                text += b" " * token.endswith(WORD_END)
        return text.decode("utf-8", errors="replace").strip()

    def save(self, folder: str | Path, *, standalone: bool = False) -> None:
        """Write the files of a CLIP tokenizer as Hugging Face does.

        A tokenizer with CLIP's own vocabulary is written as a `tokenizer_config.json` that names
        it. Any other has `vocab.json`, `merges.txt` and `special_tokens_map.json` beside it.

        Args:
            folder: to write into.
            standalone: write all files for CLIP's own vocabulary too, for readers other than
                `load`.
        """
        folder = Path(folder)
        packaged = not standalone and (self.vocabulary, self.merges) == packaged_vocabulary()
        config = {
            "tokenizer_class": "CLIPTokenizer",
            "model_max_length": self.context_length,
            "bos_token": START_TOKEN,
            "eos_token": END_TOKEN,
            "unk_token": END_TOKEN,
            "pad_token": self.pad_token,
        }
        if packaged:
            config[PACKAGED_KEY] = PACKAGED_NAME
        else:
            special = {key: token for key, token in config.items() if key.endswith("_token")}
            write_vocabulary(folder, self.vocabulary, self.merges)
            write_json(folder / "special_tokens_map.json", special)
        write_json(folder / "tokenizer_config.json", config)

    @classmethod
    def load(cls, folder: str | Path, *, default_length: int = 77) -> CLIPTokenizer:
        """Read a folder written by `save` or by Hugging Face's CLIP tokenizer.

        The vocabulary is CLIP's own where `tokenizer_config.json` names it, else that of
        `vocab.json` and `merges.txt`, else that of `tokenizer.json`.

        Args:
            folder: with the files.
            default_length: `context_length` where the files do not have one.

        Raises:
            UserError: a file is missing, unreadable or inconsistent; the message names it.
        """
        folder = Path(folder)
        config = read_json(folder / "tokenizer_config.json", optional=True)
        # Stable Diffusion 2 names its pad token in the second file only; the second file wins.
        special = config | read_json(folder / "special_tokens_map.json", optional=True)
        pad_token = special.get("pad_token") or END_TOKEN
        if isinstance(pad_token, dict):
            pad_token = pad_token.get("content")
        length = config.get("model_max_length")
        if length is None or (isinstance(length, int | float) and length > MAX_CONTEXT_LENGTH):
            length = default_length
        vocabulary = merges = None
        if PACKAGED_KEY in config:
            check_choice(PACKAGED_KEY, config[PACKAGED_KEY], [PACKAGED_NAME])
        else:
            vocabulary, merges = read_vocabulary(folder)
        try:
            tokenizer = cls(length, vocabulary=vocabulary, merges=merges, pad_token=pad_token)
        except UserError as error:
            raise UserError(f"{folder}: {error}") from None
        for token in added_tokens(folder, config):
            if token not in tokenizer.vocabulary:  # such as those of textual inversion
                raise UserError(f"{folder}: added token {token!r:.80}: these are not supported")
        return tokenizer

    def _symbols(self, word: str) -> tuple[str, ...]:
        """Symbols of `word` (byte characters) after all merges: by rank, then from the left.

        With a heap over a linked list, in n log n for a word of n characters.
        """
        symbols = [*word[:-1], word[-1] + WORD_END]
        end = len(symbols)
        before, after = list(range(-1, end - 1)), list(range(1, end + 1))

        def rank(left: int) -> int | None:
            right = after[left]
            return self._ranks.get((symbols[left], symbols[right])) if right < end else None

        heap = [(found, i) for i in range(end) if (found := rank(i)) is not None]
        heapq.heapify(heap)
        while heap:
            best, left = heapq.heappop(heap)
            if rank(left) != best:  # one of the two has been merged since
                continue
            right = after[left]
            symbols[left] += symbols[right]
            symbols[right] = ""
            after[left] = after[right]
            if after[left] < end:
                before[after[left]] = left
            for i in (before[left], left):
                if i >= 0 and (found := rank(i)) is not None:
                    heapq.heappush(heap, (found, i))
        return tuple(filter(None, symbols))


def _clean(text: str) -> str:
    text = html.unescape(html.unescape(text))
    text = _UNWANTED.sub("", _SURROGATES.sub("\ufffd", text))
    return " ".join(unicodedata.normalize("NFC", text).split()).lower()


def _words(text: str) -> Iterator[str]:
    """Words as CLIP splits them: runs of letters, single numbers, runs of other characters."""
    for word in _WORDS.findall(text):
        if word[0].isalnum() and not word.isalpha():
            for letters, group in itertools.groupby(word, str.isalpha):
                run = "".join(group)
                yield from [run] if letters else run
        else:
            yield word


def _shortened(text: str, limit: int = 200) -> str:
    return text if len(text) <= limit else text[:limit] + " ..."
