"""Token ids of all captions, on disk: made once, one is drawn per use.

    catalog ─► captions ─► tokenizer ─► ids of all of them, and where those of each image end

They stand in the version of the catalog that they were made of, and go with it.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from latentddpm.clip.tokenizer import ClipTokenizer, PromptTooLong
from latentddpm.data.captions import Captions
from latentddpm.data.catalog.columns import Schema, Table, TableWriter
from latentddpm.distribution.processes import ALONE, Crew, alone
from latentddpm.utils.files import atomic_folder

BLOCK = 1024  # captions tokenized together
IMAGES = Schema({"end": ("<u8", ())}, ())


@dataclass(frozen=True, eq=False)
class CaptionTokens:
    """Token ids of all captions, for drawing one per use.

    Attributes:
        ids: (captions + 1, context length); the last row is the empty prompt.
        ends: (images,): image i owns the rows from ends[i − 1] up to ends[i]. An image
            without a caption owns the empty prompt.
    """

    ids: np.ndarray
    ends: np.ndarray

    def starts_and_counts(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First row and number of rows of images, int64."""
        ends = self.ends[images].astype(np.int64)
        starts = np.where(images > 0, self.ends[np.maximum(images - 1, 0)], 0).astype(np.int64)
        bare = starts == ends
        return np.where(bare, self.empty, starts), np.where(bare, 1, ends - starts)

    def pick(self, images: np.ndarray, choice: np.ndarray, dropped: np.ndarray) -> np.ndarray:
        """Token ids of one caption of each image, int32 (B, context length).

        Args:
            choice: (B,) numbers of 32 bits; the one of n captions is that number modulo n.
            dropped: (B,) bool: the empty prompt instead.
        """
        starts, counts = self.starts_and_counts(images)
        rows = np.where(dropped, self.empty, starts + choice % counts)
        return self.ids[rows].astype(np.int32)

    @property
    def empty(self) -> int:
        """The row of the empty prompt."""
        return len(self.ids) - 1

    def captioned(self, start: int, stop: int) -> np.ndarray:
        """Of images `start` … `stop` − 1, which have a caption of their own."""
        ends = self.ends[max(start - 1, 0) : stop].astype(np.int64)
        return np.diff(ends, prepend=0) > 0 if start == 0 else np.diff(ends) > 0


def prepare_tokens(
    captions: Captions, tokenizer: ClipTokenizer, quiet: bool = False, crew: Crew = ALONE
) -> CaptionTokens:
    """The token ids of a catalog's captions: opened when they fit, else made by the chief.

    Raises:
        UserError: what is wrong with the captions; see `Captions`.
    """
    key = hashlib.sha256()
    for part in (
        captions.catalog.row_digest,
        captions.templates.texts,
        tokenizer.context_length,
        tokenizer.pad_token,
        tokenizer.tokens,
        tokenizer.merges,
    ):
        key.update(json.dumps(part).encode())
    folder = captions.catalog.folder / f"tokens-{key.hexdigest()[:16]}"
    if crew.chief:
        try:
            open_tokens(folder, tokenizer)
        except (OSError, ValueError):  # not there, or not whole
            with alone(captions.catalog.folder, "token ids", quiet):
                tokenize_captions(captions, tokenizer, folder, quiet)
    crew.barrier()
    return open_tokens(folder, tokenizer)


def tokenize_captions(
    captions: Iterable[Sequence[str]], tokenizer: ClipTokenizer, folder: Path, quiet: bool = True
) -> CaptionTokens:
    """Tokenize the alternatives of each image into a folder, whole or not at all."""
    long: list[str] = []
    with (
        atomic_folder(folder) as temporary,
        TableWriter(temporary / "ids", _ids(tokenizer)) as ids,
        TableWriter(temporary / "images", IMAGES) as images,
    ):
        texts: list[str] = []

        def write() -> None:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", PromptTooLong)
                for row in tokenizer(texts):
                    ids.append({"ids": row}, {})
            long.extend(str(warning.message) for warning in caught if not long)
            texts.clear()

        total = len(captions) if hasattr(captions, "__len__") else None
        bar = tqdm(captions, "tokenize", total, unit="image", delay=2, disable=quiet)
        for alternatives in bar:
            texts.extend(alternatives)
            images.append({"end": ids.count + len(texts)}, {})
            if len(texts) >= BLOCK:
                write()
        texts.append("")
        write()
        for table in (ids, images):
            table.save()
        counts = [ids.count, images.count]
        (temporary / "counts.json").write_text(json.dumps(counts), "utf-8")
    if long:
        more = "; so may be others behind them" if ids.count > BLOCK else ""
        warnings.warn(long[0] + more, PromptTooLong, stacklevel=2)
    return open_tokens(folder, tokenizer)


def open_tokens(folder: Path, tokenizer: ClipTokenizer) -> CaptionTokens:
    """What `tokenize_captions` wrote.

    Raises:
        OSError, ValueError: it is not there, or not whole.
    """
    ids, images = json.loads((folder / "counts.json").read_bytes())
    return CaptionTokens(
        Table(folder / "ids", _ids(tokenizer), ids)["ids"],
        Table(folder / "images", IMAGES, images)["end"],
    )


def _ids(tokenizer: ClipTokenizer) -> Schema:
    dtype = "<u2" if tokenizer.vocabulary_size <= 1 << 16 else "<i4"
    return Schema({"ids": (dtype, (tokenizer.context_length,))}, ())
