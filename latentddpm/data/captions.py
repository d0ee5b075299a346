"""Captions of images, and their token ids on disk.

    catalog ─► captions ─► tokenizer ─► ids of all captions, and the last one of each image

An image has any number of alternative captions, which `data.templates` makes from its columns; one
of them is drawn per use.

Token ids are kept in the folder of the catalog's version they were made from, and are deleted with
it.
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

from latentddpm.clip.tokenizer import CLIPTokenizer, PromptTooLong
from latentddpm.data.captioning.rules import FILES, suggestion, with_caption
from latentddpm.data.catalog.catalog import RULES, Catalog
from latentddpm.data.catalog.columns import Schema, Table, TableWriter
from latentddpm.data.sources.metadata import TEXT, no_caption
from latentddpm.data.templates import Templates
from latentddpm.distribution.processes import ONE_PROCESS, ProcessGroup
from latentddpm.errors import UserError
from latentddpm.utils.console import say
from latentddpm.utils.files import atomic_folder
from latentddpm.utils.locks import wait_for_lock


class Captions:
    """Captions of the images of a catalog, made when they are accessed.

    Rows of metadata that name files which do not exist give one warning.

    Args:
        catalog: of the images.
        templates: see `Templates`.
        quiet: do not say which column they are from.
        rule: for images that have none, "files", "name" or "folder"; see
            `data.captioning.rules`.

    Raises:
        UserError: a template is malformed or names an unknown column; the table of captions
            is damaged.
    """

    def __init__(
        self,
        catalog: Catalog,
        templates: str | Sequence[str] = (),
        quiet: bool = False,
        rule: str = FILES,
    ) -> None:
        self.catalog, self.templates, self.rule = catalog, Templates(templates), rule
        if catalog.manifest.problem:
            raise UserError(catalog.manifest.problem)
        for note in catalog.manifest.notes:
            warnings.warn(note, stacklevel=2)
        table = ", ".join(catalog.tables[:1]).rpartition("/")[2]
        known = catalog.columns() if rule == FILES else [*catalog.columns(), TEXT]
        self.templates.check(known, table)
        columns = [*catalog.manifest.columns, *[TEXT] * catalog.manifest.sidecars]
        if column := self.templates.other_column(columns):
            say(f"{catalog.source.place}: captions are those of the column {column!r}", quiet)

    def __len__(self) -> int:
        return len(self.catalog)

    def __getitem__(self, index: int) -> tuple[str, ...]:
        """Alternative captions of the image at `index`; () where there is none.

        Raises:
            UserError: its sidecar is not UTF-8, or differs from its row in the table; a column
                that is used is not text.
            IndexError: there is no such image.
        """
        if not 0 <= index < len(self.catalog):
            raise IndexError(f"image {index} of {len(self.catalog)}")
        row = self.catalog.row(index)
        if row.problem:
            raise UserError(row.problem)
        place = self.catalog.row_place(index, row)
        name = self.catalog.name(index)
        columns = with_caption(self.rule, row.columns, name, place)
        return self.templates.fill(columns, name, place)

    def reason(self, index: int) -> str:
        """Reason why the image at `index` has no caption, in a few words; "" if nothing is wrong.

        Args:
            index: of an image without a caption.
        """
        return no_caption(self.catalog.row(index).columns)

    def remedy(self) -> str:
        """Remedy where no image has a caption, in a few words."""
        count = len(self.catalog)
        names = (self.catalog.name(index) for index in {0, count // 2, count - 1})
        words = "a photo of {folder}" if any("/" in name for name in names) else "a photo of sks"
        what = "take the names of their folders" if "{" in words else "give all the same words"
        advice = suggestion(self.catalog) if self.rule == FILES else ""
        return (
            "add NAME.txt files or a metadata.jsonl, or "
            f'{what}: data.caption_templates=["{words}"]{advice and "; " + advice}'
        )


# --- Token ids -----------------------------------------------------------------------------


BLOCK = 1024  # captions tokenized at a time
IMAGES = Schema({"end": ("<u8", ())}, ())


@dataclass(frozen=True, eq=False)
class CaptionTokens:
    """Token ids of all captions, of which one is drawn per use of an image.

    Attributes:
        ids: token ids, (captions + 1, context length); the last row is the empty prompt.
        ends: (images,): image i has the rows ends[i − 1] … ends[i] − 1. An image without a
            caption has the empty prompt.
    """

    ids: np.ndarray
    ends: np.ndarray

    def starts_and_counts(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First row and number of rows, int64 (B,) each, of `images`, int64 (B,)."""
        ends = self.ends[images].astype(np.int64)
        starts = np.where(images > 0, self.ends[np.maximum(images - 1, 0)], 0).astype(np.int64)
        without = starts == ends
        return np.where(without, self.empty, starts), np.where(without, 1, ends - starts)

    def pick(self, images: np.ndarray, choice: np.ndarray, dropped: np.ndarray) -> np.ndarray:
        """Token ids of one caption of each image, int32 (B, context length).

        Args:
            images: int64 (B,).
            choice: 32-bit numbers (B,); of n captions number choice modulo n is taken.
            dropped: bool (B,); true for the empty prompt instead.
        """
        starts, counts = self.starts_and_counts(images)
        rows = np.where(dropped, self.empty, starts + choice % counts)
        return self.ids[rows].astype(np.int32)

    @property
    def empty(self) -> int:
        """Row of the empty prompt."""
        return len(self.ids) - 1

    def captioned(self, start: int, stop: int) -> np.ndarray:
        """True for those of the images `start` … `stop` − 1 that have a caption, bool."""
        ends = self.ends[max(start - 1, 0) : stop].astype(np.int64)
        return np.diff(ends, prepend=0) > 0 if start == 0 else np.diff(ends) > 0


def prepare_tokens(
    captions: Captions,
    tokenizer: CLIPTokenizer,
    quiet: bool = False,
    processes: ProcessGroup = ONE_PROCESS,
) -> CaptionTokens:
    """Token ids of captions: opened if they exist, otherwise made by the chief process.

    Args:
        captions: of a catalog, in whose folder the ids are kept.
        tokenizer: turns captions into ids.
        quiet: show no progress.
        processes: that all call this.

    Raises:
        UserError: a caption cannot be used; see `Captions`.
        OSError: the ids cannot be written.
    """
    key = hashlib.sha256()
    for part in (
        captions.catalog.row_digest,
        captions.templates.texts,
        RULES,
        tokenizer.context_length,
        tokenizer.pad_token,
        tokenizer.tokens,
        tokenizer.merges,
        *([captions.rule, captions.catalog.name_digest] if captions.rule != FILES else []),
    ):
        key.update(json.dumps(part).encode())
    folder = captions.catalog.folder / f"tokens-{key.hexdigest()[:16]}"
    if processes.is_chief:
        try:
            open_tokens(folder, tokenizer)
        except (OSError, ValueError):  # missing or damaged
            with wait_for_lock(captions.catalog.folder, "token ids", quiet):
                tokenize_captions(captions, tokenizer, folder, quiet)
    processes.barrier()
    return open_tokens(folder, tokenizer)


def tokenize_captions(
    captions: Iterable[Sequence[str]], tokenizer: CLIPTokenizer, folder: Path, quiet: bool = True
) -> CaptionTokens:
    """Tokenize captions into a folder, atomically.

    Args:
        captions: the alternative captions of each image.
        tokenizer: turns them into ids.
        folder: to write, replaced if it exists.
        quiet: show no progress.

    Raises:
        UserError: a caption cannot be used.
        OSError: the folder cannot be written.
    """
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


def open_tokens(folder: Path, tokenizer: CLIPTokenizer) -> CaptionTokens:
    """Token ids in a `folder` that `tokenize_captions` wrote with the same `tokenizer`.

    Raises:
        OSError, ValueError: the folder is missing or damaged.
    """
    ids, images = json.loads((folder / "counts.json").read_bytes())
    return CaptionTokens(
        Table(folder / "ids", _ids(tokenizer), ids)["ids"],
        Table(folder / "images", IMAGES, images)["end"],
    )


def _ids(tokenizer: CLIPTokenizer) -> Schema:
    dtype = "<u2" if tokenizer.vocabulary_size <= 1 << 16 else "<i4"
    return Schema({"ids": (dtype, (tokenizer.context_length,))}, ())
