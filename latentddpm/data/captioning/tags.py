"""Tags: captions that are lists, of which each use of an image takes another order, or a part.

    "1girl, solo, hat, smile"   keep 1, shuffle      ─► "1girl, smile, solo, hat"
                                keep 1, dropout ½    ─► "1girl, hat"

What is drawn is a function of 32 random bits of the example (see `data.random`). So a run resumes
with the same captions, on any number of replicas. The text is made first and tokenized whole at
each use, so that a caption of training has the ids that `generate` gives to the same text.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from latentddpm.clip.tokenizer import CLIPTokenizer, PromptTooLong
from latentddpm.config.data import TagsConfig


def tags_of(caption: str, separator: str = ",") -> list[str]:
    """Tags of a caption, stripped, without empty ones.

    Args:
        caption: their list.
        separator: between them.
    """
    return [tag for part in caption.split(separator) if (tag := part.strip())]


def joined(tags: Sequence[str], separator: str = ",") -> str:
    """Caption of tags: the separator with a space behind it between them.

    Args:
        tags: in order.
        separator: between them.
    """
    return f"{separator.strip()} ".join(tags)


def drawn(caption: str, settings: TagsConfig, bits: int) -> str:
    """Caption of one use: the first tags as they are, the others by chance.

    Args:
        caption: a list of tags.
        settings: how they are drawn.
        bits: 32 random bits of the example.

    Returns:
        The caption; "" where all its tags are left out.
    """
    tags = tags_of(caption, settings.separator)
    first, others = tags[: settings.keep], tags[settings.keep :]
    rng = np.random.Generator(np.random.Philox(key=int(bits)))
    if settings.dropout:
        stays = rng.random(len(others)) >= settings.dropout
        others = [tag for tag, stay in zip(others, stays, strict=True) if stay]
    if settings.shuffle:
        others = [others[place] for place in rng.permutation(len(others))]
    return joined([*first, *others], settings.separator)


class CaptionTexts(Protocol):
    """Captions of images, by row of the catalog; `data.captions.Captions` are some."""

    def __getitem__(self, index: int) -> Sequence[str]:
        """Alternative captions of an image; empty where there is none."""


class DrawnTags:
    """Token ids of captions whose tags are drawn for each use.

    Args:
        captions: of all images.
        tokenizer: turns them into ids.
        settings: how tags are drawn.
    """

    def __init__(
        self, captions: CaptionTexts, tokenizer: CLIPTokenizer, settings: TagsConfig
    ) -> None:
        self.captions, self.tokenizer, self.settings = captions, tokenizer, settings

    def texts(
        self, images: np.ndarray, choice: np.ndarray, dropped: np.ndarray, bits: np.ndarray
    ) -> list[str]:
        """Captions of a batch; see `pick`."""
        found = []
        for image, number, none, own in zip(images, choice, dropped, bits, strict=True):
            captions = () if none else self.captions[int(image)]
            text = captions[int(number) % len(captions)] if captions else ""
            found.append(drawn(text, self.settings, own) if text else "")
        return found

    def pick(
        self, images: np.ndarray, choice: np.ndarray, dropped: np.ndarray, bits: np.ndarray
    ) -> np.ndarray:
        """Token ids of one caption of each image, int32 (B, context length).

        Args:
            images: rows of the catalog, int64 (B,).
            choice: 32-bit numbers (B,); of n captions number choice modulo n is taken.
            dropped: bool (B,); true for the empty prompt instead.
            bits: 32 random bits of each example, int64 (B,), for its tags.
        """
        texts = self.texts(images, choice, dropped, bits)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PromptTooLong)  # said when all were tokenized
            return np.asarray(self.tokenizer(texts), np.int32)
