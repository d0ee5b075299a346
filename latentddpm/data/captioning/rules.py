"""Rules for the caption of an image that has none: from its file's name, or its folder's.

    files    it stays without a caption
    name     words of its file's name, see `data.captioning.words`
    folder   words of the nearest folder that says something
    auto     the first of name, folder and files that gives most images without a caption one

An image that has a caption of its own keeps it. `auto` is settled from the names alone, before
training, so a run that resumes has the same captions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from latentddpm.data.captioning.words import repeats_of, words_of_folder, words_of_name
from latentddpm.data.catalog.catalog import Catalog
from latentddpm.data.sources.metadata import TEXT, caption_entries

FILES, AUTO = "files", "auto"
RULES: dict[str, Callable[[str], str]] = {"name": words_of_name, "folder": words_of_folder}
"""Rule → function from the name of an image to its caption; the first that fits is `auto`."""
MEANING = {"name": "the names of their files", "folder": "the names of their folders"}
MOST = 10_000
"""Images, spread over all, that `auto` looks at."""
SHARE = 0.5
"""Share of the images without a caption that a rule has to give one."""
SHOWN = 3


def with_caption(
    rule: str, columns: Mapping[str, Any], name: str, place: str = ""
) -> Mapping[str, Any]:
    """Columns of an image, with a `text` by the rule where they hold no caption.

    Args:
        rule: "files", "name" or "folder".
        columns: name → value, of the image.
        name: of the image.
        place: where the columns are from, for messages; by default the image.

    Raises:
        UserError: a column of captions holds something else.
    """
    if rule not in RULES or caption_entries(columns, place or name):
        return columns
    text = RULES[rule](name)
    return {**columns, TEXT: text} if text else columns


@dataclass(frozen=True)
class Uncaptioned:
    """Images without a caption, among those that were looked at, and what their names say.

    Attributes:
        names: of these images.
        looked: number of images that were looked at.
    """

    names: list[str]
    looked: int

    @property
    def rule(self) -> str:
        """Rule that `auto` settles on."""
        for rule, words in RULES.items():
            if self.names and sum(bool(words(name)) for name in self.names) >= max(
                SHARE * len(self.names), 1
            ):
                return rule
        return FILES

    def examples(self, rule: str) -> list[tuple[str, str]]:
        """Names and captions of a few images, with different captions where there are.

        Args:
            rule: "name" or "folder".
        """
        found: dict[str, str] = {}
        for name in self.names:
            if words := RULES[rule](name):
                found.setdefault(words, name)
            if len(found) == SHOWN:
                break
        return [(name, words) for words, name in found.items()]

    def shown(self, rule: str) -> str:
        """Examples of a rule, as text.

        Args:
            rule: "name" or "folder".
        """
        return ", ".join(f"{name}: {words!r}" for name, words in self.examples(rule))

    @property
    def repeats(self) -> list[str]:
        """Folders of these images that are named with repeats, as kohya's are."""
        folders = (name.rpartition("/")[0].rpartition("/")[2] for name in self.names)
        return [folder for folder in dict.fromkeys(folders) if repeats_of(folder)]


def uncaptioned(catalog: Catalog) -> Uncaptioned:
    """Images of a catalog without a caption; of more than `MOST` images, those spread over all.

    Args:
        catalog: of the images.

    Raises:
        UserError: a column of captions holds something else.
    """
    rows = np.unique(np.linspace(0, len(catalog) - 1, min(MOST, len(catalog))).astype(np.int64))
    names = []
    for row in rows.tolist():
        found = catalog.row(row)
        if found.problem or caption_entries(found.columns, catalog.row_place(row, found)):
            continue
        names.append(catalog.name(row))
    return Uncaptioned(names, len(rows))


def settled(rule: str, catalog: Catalog) -> str:
    """Rule of a run: what `auto` settles on, any other as it is.

    Args:
        rule: of the configuration.
        catalog: of its images.

    Raises:
        UserError: see `uncaptioned`.
    """
    return uncaptioned(catalog).rule if rule == AUTO else rule


def rule_lines(rule: str, catalog: Catalog, repeats: bool) -> Iterator[str]:
    """Lines for people: where captions come from that no file holds.

    Args:
        rule: settled.
        catalog: of the images.
        repeats: True where repeats in names of folders are used.

    Raises:
        UserError: see `uncaptioned`.
    """
    found = uncaptioned(catalog)
    if rule in RULES and found.names:
        without = sum(not RULES[rule](name) for name in found.names)
        none = f"; {without} stay without" if without else ""
        yield (
            f"captions   data.captions={rule}: {len(found.names)} of {found.looked} images have "
            f"none, taken from {MEANING[rule]}{none} ({found.shown(rule)})"
        )
    if not repeats and (folders := found.repeats):
        yield (
            f"captions   folders are named with repeats ({', '.join(folders[:SHOWN])}), which are "
            "not used; data.repeats=true does"
        )


def suggestion(catalog: Catalog) -> str:
    """Advice for images without captions: what `auto` would make of their names; "" for nothing.

    Args:
        catalog: of the images.

    Raises:
        UserError: see `uncaptioned`.
    """
    found = uncaptioned(catalog)
    rule = found.rule
    if rule == FILES:
        return ""
    return f"data.captions=auto takes {MEANING[rule]} ({found.shown(rule)})"
