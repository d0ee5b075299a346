"""Added tokens: words of a textual inversion, each of one or several token ids of its own.

    "a photo of <cat-toy> here" ─► encode("a photo of"), 49408, 49409, encode("here")

A word is found before the text is cut into pieces, in any case, and only where it stands alone.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping

from latentddpm.clip.tokenizer import CLIPTokenizer
from latentddpm.errors import UserError


class AddedTokenTokenizer(CLIPTokenizer):
    """Tokenizer of CLIP with added tokens; made by `add_tokens`.

    Attributes:
        added: word → its token ids, from the size of the vocabulary on.
    """

    added: Mapping[str, list[int]]

    @property
    def vocabulary_size(self) -> int:
        """Number of tokens, the added ones included."""
        return len(self.tokens)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without start, end and padding.

        Raises:
            UserError: it is not a string.
        """
        if not isinstance(text, str):
            return super().encode(text)
        known = {word.casefold(): ids for word, ids in self.added.items()}
        ids: list[int] = []
        for number, part in enumerate(self._words.split(text)):
            ids += known[part.casefold()] if number % 2 else super().encode(part)
        return ids

    def save(self, folder: object, *, standalone: bool = False) -> None:
        """Refuse to write the files of a tokenizer, which have no place for added tokens.

        Raises:
            UserError: always.
        """
        raise UserError(
            f"{', '.join(self.added)}: a model is not saved with the tokens of embeddings; keep "
            "their files, and load the model without them to save it"
        )


def add_tokens(tokenizer: CLIPTokenizer, word: str, count: int = 1) -> AddedTokenTokenizer:
    """Tokenizer with a further word, which has token ids of its own.

    Args:
        tokenizer: stays as it is.
        word: such as "<cat-toy>".
        count: of its token ids.

    Raises:
        UserError: the word is empty, has spaces, is one of the vocabulary, or was added before.
    """
    check_word(word, "token")
    added = dict(getattr(tokenizer, "added", {}))
    if word.casefold() in map(str.casefold, added):
        raise UserError(f"token {word!r}: was added to this model before; give it another name")
    if len(tokenizer.encode(word)) < 2:
        raise UserError(f"token {word!r}: is a word that CLIP knows; take another, as <{word}>")
    more = copy.copy(tokenizer)
    more.__class__ = AddedTokenTokenizer
    start = len(tokenizer.tokens)
    more.added = {**added, word: list(range(start, start + count))}
    more.tokens = [*tokenizer.tokens, *(f"{word} {k + 1}" for k in range(count))]
    # The longest first: one word may begin with another.
    words = "|".join(map(_alone, sorted(more.added, key=len, reverse=True)))
    more._words = re.compile(f"({words})", re.IGNORECASE)
    return more


def check_word(word: str, name: str) -> None:
    """Refuse a word that cannot be an added token.

    Args:
        word: as given.
        name: of the setting or argument, for messages.

    Raises:
        UserError: it is empty or has spaces.
    """
    if not word or len(word.split()) != 1 or word != word.strip():
        raise UserError(f"{name}: {word!r:.80}, expected one word, such as <cat-toy>")


def _alone(word: str) -> str:
    """Regular expression of a word that is no part of a longer one."""
    before = r"(?<!\w)" if word[0].isalnum() else ""
    after = r"(?!\w)" if word[-1].isalnum() else ""
    return before + re.escape(word) + after
