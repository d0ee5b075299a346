"""Facts of small sets: captions that names could give, captions that are tags, masks, places.

`report` prints them, with the setting that makes use of each.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np

from latentddpm.config.data import MaskConfig
from latentddpm.data.captioning.rules import FILES, MEANING, MOST, RULES, SHOWN, Uncaptioned
from latentddpm.data.captioning.tags import tags_of
from latentddpm.data.images import UnreadableImage, examine_image
from latentddpm.data.sources import storage
from latentddpm.data.sources.base import Entry, Source
from latentddpm.data.sources.tables import MetadataTable
from latentddpm.errors import UserError

LEAST_TAGS, MOST_WORDS = 3, 3.0
"""Tags of a caption that is a list, at least; and words of each tag, at most, on average."""
MOST_TAGS = 100_000
"""Different tags that are counted."""


@dataclass
class Tags:
    """Tags of the captions that are lists.

    Attributes:
        counts: number of captions with each tag.
        lengths: number of tags of each caption that is a list.
        captions: number of all captions.
    """

    counts: Counter = field(default_factory=Counter)
    lengths: list[int] = field(default_factory=list)
    captions: int = 0

    def add(self, captions: Sequence[str]) -> None:
        """Count the tags of an image.

        Args:
            captions: of the image.
        """
        for caption in captions:
            self.captions += 1
            tags = tags_of(caption)
            words = sum(len(tag.split()) for tag in tags)
            if len(tags) < LEAST_TAGS or words > MOST_WORDS * len(tags):
                continue
            self.lengths.append(len(tags))
            for tag in dict.fromkeys(tags):
                if tag in self.counts or len(self.counts) < MOST_TAGS:
                    self.counts[tag] += 1

    @property
    def common(self) -> bool:
        """True where half of the captions are lists."""
        return 2 * len(self.lengths) >= max(self.captions, 1)

    def lines(self) -> Iterator[str]:
        """Lines of the report; none where captions are sentences."""
        if not self.common:
            return
        low, middle, high = np.percentile(self.lengths, [0, 50, 100], method="nearest")
        most = (
            f"{tag} {100 * count / len(self.lengths):.0f} %"
            for tag, count in self.counts.most_common(5)
        )
        yield (
            f"  tags     {len(self.lengths):,} captions are lists of {low} to {high} tags, "
            f"median {middle}; {len(self.counts):,} different:"
        )
        yield f"           {', '.join(most)}"
        yield "           data.tags.shuffle, data.tags.dropout and data.tags.keep draw them anew"

    def as_json(self) -> dict[str, Any]:
        """Object of the report; empty where captions are sentences."""
        if not self.common:
            return {}
        return {
            "lists": len(self.lengths),
            "different": len(self.counts),
            "most_common": dict(self.counts.most_common(20)),
        }


@dataclass
class Named:
    """Names of images without a caption, and what they say.

    Attributes:
        names: the first of them.
        count: number of all of them.
    """

    names: list[str] = field(default_factory=list)
    count: int = 0

    def add(self, name: str) -> None:
        """Count an image.

        Args:
            name: of an image without a caption.
        """
        self.count += 1
        if len(self.names) < MOST:
            self.names.append(name)

    @property
    def found(self) -> Uncaptioned:
        """The names, as `auto` looks at them."""
        return Uncaptioned(self.names, len(self.names))

    def lines(self) -> Iterator[str]:
        """Lines of the report."""
        rule = self.found.rule
        if rule != FILES:
            yield f"  {self.count:,} images have none; data.captions=auto takes {MEANING[rule]}:"
            for name, words in self.found.examples(rule):
                yield f"           {name}: {words}"
            without = sum(not RULES[rule](name) for name in self.names)
            if without:
                yield f"           {without:,} stay without, since their names say nothing"
        if folders := self.found.repeats:
            more = ", …" * (len(folders) > SHOWN)
            yield f"  folders with repeats, for data.repeats: {', '.join(folders[:SHOWN])}{more}"

    def as_json(self) -> dict[str, Any]:
        """Object of the report."""
        rule = self.found.rule
        examples = [] if rule == FILES else self.found.examples(rule)
        return {"images": self.count, "auto": rule, "examples": dict(examples)}


@dataclass
class Places:
    """Places of images, with their weights.

    Attributes:
        weights: label → weight; empty for one place.
        images: number of readable images by label.
    """

    weights: dict[str, Fraction] = field(default_factory=dict)
    images: Counter = field(default_factory=Counter)

    def add(self, name: str) -> None:
        """Count an image.

        Args:
            name: of the image, with its place in front.
        """
        if self.weights:
            self.images[name.partition("/")[0]] += 1

    def shares(self) -> dict[str, float]:
        """Label → share of the place in the examples of a training."""
        amounts = {label: weight * self.images[label] for label, weight in self.weights.items()}
        total = sum(amounts.values()) or 1
        return {label: float(amount / total) for label, amount in amounts.items()}

    def lines(self) -> Iterator[str]:
        """Lines of the report."""
        width = max(map(len, self.weights), default=0)
        for label, share in self.shares().items():
            yield (
                f"  {label:<{width}}  {self.images[label]:,} images, weight "
                f"{float(self.weights[label]):g}: {share:.1%} of the examples"
            )

    def as_json(self) -> dict[str, Any]:
        """Object of the report; empty for one place."""
        return {
            label: {
                "images": self.images[label],
                "weight": float(self.weights[label]),
                "share": round(share, 4),
            }
            for label, share in self.shares().items()
        }


def mask_settings(text: str) -> MaskConfig:
    """Settings of masks as `doctor --mask` is given them: an end of names, or a column.

    Args:
        text: `.mask.png`, or the name of a column; empty for no masks.
    """
    if text[:1] in (".", "_", "-") and "." in text[1:]:
        return MaskConfig(suffix=text)
    return MaskConfig(column=text)


def mask_finding(
    entry: Entry, mask: MaskConfig, metadata: MetadataTable, size: tuple[int, int]
) -> tuple[str, str] | None:
    """Finding about the mask of an image in a folder: (key, detail); None if nothing is wrong.

    Args:
        entry: the image.
        mask: where masks are.
        metadata: tables of captions.
        size: (width, height) of the image.
    """
    path = os.path.splitext(entry.where)[0] + mask.suffix
    if mask.column:
        name, row = entry.row.columns.get(mask.column), entry.row
        if not isinstance(name, str) or not name.strip():
            return "missing_mask", f"no value in the column {mask.column!r}"
        path = storage.join(os.path.dirname(metadata.paths[row.table]), name.strip())
    try:
        facts, _ = examine_image(storage.read(path), path)
    except FileNotFoundError:
        return "missing_mask", f"no file {os.path.basename(path)}"
    except (UnreadableImage, OSError, UserError) as error:
        return "bad_mask", str(error)
    if abs(facts.width - size[0] * facts.height / max(size[1], 1)) > 1:
        shapes = f"{facts.width}×{facts.height} beside an image of {size[0]}×{size[1]}"
        return "bad_mask", f"{path}: {shapes}"
    return None


def weights_of(source: Source) -> dict[str, Fraction]:
    """Weights of the places of a source, by label; empty for one place.

    Args:
        source: opened.
    """
    return dict(getattr(source, "weights", {}))
