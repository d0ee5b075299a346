"""Findings about data: what was seen that training cannot use, leaves out, or changes.

The walk over a folder, the reading of shards, and `doctor` note their findings in the same way.
The first lines of a training name those of the walk and of shards; `doctor` lists all.

A finding is an *error* (training refuses the data, or leaves the image out), a *warning* (training
works, but the model may suffer) or a *note* (the image is converted, or nothing is lost).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

ERROR, WARNING, NOTE = "error", "warning", "note"

KINDS: dict[str, tuple[str, str, str]] = {
    "unreadable": (ERROR, "cannot be read", "left out; refused with --strict"),
    "bad_table": (ERROR, "table of captions cannot be used", "training with text refuses it"),
    "not_utf8": (ERROR, "caption is not UTF-8", "training refuses it; save it as UTF-8"),
    "bad_caption": (ERROR, "caption cannot be used", "training refuses it"),
    "picture_not_read": (WARNING, "picture that is not read", "left out"),
    "caption_not_read": (WARNING, "looks like a caption", "not used"),
    "table_not_read": (WARNING, "looks like a table of captions", "not used"),
    "archive_not_read": (WARNING, "archive among images", "not looked into"),
    "link_not_followed": (WARNING, "link that is not followed", "left out"),
    "missing_caption": (WARNING, "no caption", "trains on the empty prompt"),
    "empty_caption": (WARNING, "empty caption", "trains on the empty prompt"),
    "not_text": (WARNING, "caption is no text", "trains on the empty prompt"),
    "long_caption": (WARNING, "caption is too long", "its end is cut off"),
    "missing_image": (WARNING, "caption of no image", "not used"),
    "shared_caption": (WARNING, "one text file for several images", "each of them has it"),
    "too_small": (WARNING, "smaller than the resolution", "enlarged, so blurred"),
    "few_images": (WARNING, "too few images to train from scratch", "learns them by heart"),
    "alike_words": (
        WARNING,
        "nearly the same word",
        "a condition takes them for two: use one",
    ),
    "wrong_extension": (WARNING, "named as another format", "read as what it is"),
    "equal": (WARNING, "equal files", "count so many times"),
    "near_duplicates": (WARNING, "look alike", "count so many times"),
    "second_picture": (
        WARNING,
        "named as the second picture of an image",
        "read as an image of its own, unless a condition or data.mask reads it",
    ),
    "bad_mask": (ERROR, "mask cannot be used", "training with data.mask refuses it"),
    "missing_mask": (NOTE, "no mask", "the loss of the image counts everywhere"),
    "no_value": (NOTE, "no value in a column", "as a condition it is not told to the model"),
    "rare_word": (NOTE, "word of few images", "as a condition it is learned badly"),
    "own_work": (NOTE, "made by latentddpm", "not read as data"),
    "other_member": (NOTE, "other member of a sample", "not used"),
    "link_once": (NOTE, "link to what is read at its own place", "counts once"),
    "hidden": (NOTE, "hidden picture", "not read; its name begins with a dot"),
    "caption_column": (NOTE, "captions are not in a column 'text'", "used all the same"),
    "animated": (
        NOTE,
        "animated, or several pages",
        "the first one is used; gray pages of a TIFF are channels",
    ),
    "exif_rotated": (NOTE, "turned by EXIF", "turned upright"),
    "transparent": (
        NOTE,
        "transparent pixels",
        "laid over data.background, or kept: data.channels=4",
    ),
    "cmyk": (NOTE, "CMYK", "converted without its colour profile"),
    "16_bit": (NOTE, "16 bits a sample", "gray ones keep them, colours are reduced to 8"),
    "float": (NOTE, "floating point or 32 bits", "numbers outside 0 … 1 need data.window"),
    "palette": (NOTE, "palette", "converted to RGB"),
    "gray": (NOTE, "gray", "stays gray, or is repeated beside RGB"),
    "bilevel": (NOTE, "black and white", "as gray"),
}
"""Key of each kind of finding → severity, description, and what training does about it."""

BY_DETAIL = (
    *("picture_not_read", "caption_not_read", "table_not_read", "archive_not_read"),
    *("own_work", "other_member"),
)
"""Kinds whose details are few, so that each of them has an example."""

DETAILS = 12  # different details that are counted each for itself


@dataclass
class Finding:
    """Finding of one kind.

    Attributes:
        count: number of times that it was found.
        items: the first ones, `(file, detail)`; of groups of equal images lists of files.
        groups: detail → number of times, and the first file; of the first `DETAILS` details.
    """

    count: int = 0
    items: list[Any] = field(default_factory=list)
    groups: dict[str, tuple[int, str]] = field(default_factory=dict)

    def add(self, name: str, detail: str, count: int = 1) -> bool:
        """Count one file, and tell whether its detail is new.

        Args:
            name: of the file.
            detail: about it.
            count: number of times.
        """
        self.count += count
        before = self.groups.get(detail)
        new = before is None and len(self.groups) < DETAILS
        if before or new:
            number, first = before or (0, name)
            self.groups[detail] = (number + count, first)
        return new


class Findings(dict[str, Finding]):
    """Findings by the keys of `KINDS`.

    Args:
        limit: number of files that are kept for each; None for all.
    """

    def __init__(self, limit: int | None = 3) -> None:
        super().__init__()
        self.limit = limit

    def note(self, key: str, name: str, detail: str = "", count: int = 1) -> None:
        """Note a finding about the file `name`.

        Args:
            key: of its kind.
            name: of the file.
            detail: about it; a remedy, where there is one.
            count: number of times.
        """
        finding = self.setdefault(key, Finding())
        new = finding.add(name, detail, count)
        kept = self.limit is None or len(finding.items) < self.limit
        if kept or (self.limit and new and key in BY_DETAIL):
            finding.items.append((name, detail))

    def groups(self) -> Iterator[tuple[str, str, str, int]]:
        """First file, detail, key and count of every kind and detail."""
        for key, finding in self.items():
            for detail, (count, first) in finding.groups.items():
                yield first, detail, key, count
            others = finding.count - sum(count for count, _ in finding.groups.values())
            if others:
                yield "others", "", key, others

    def lines(self) -> Iterator[str]:
        """One line for each kind and detail: how many, what happens to it, one example."""
        order = list(KINDS)
        for first, detail, key, count in sorted(self.groups(), key=lambda g: order.index(g[2])):
            _, words, meaning = KINDS[key]
            example = first if count == 1 else f"such as {first}"
            reason = f"; {detail}" if detail else ""
            yield f"{count:,} × {words}, {meaning} ({example}{reason})"
