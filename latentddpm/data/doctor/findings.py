"""What `doctor` can find, and a report of what it found.

A finding is an *error* (training refuses it, or leaves the image out), a *warning* (it trains, and
the model may suffer) or a *note* (it is taken care of).
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

ERROR, WARNING, NOTE = "error", "warning", "note"

KINDS: dict[str, tuple[str, str, str]] = {
    "unreadable": (ERROR, "cannot be read", "left out; refused with --strict"),
    "bad_table": (ERROR, "table of captions cannot be used", "training refuses it"),
    "not_utf8": (ERROR, "caption is not UTF-8", "training refuses it; save it as UTF-8"),
    "bad_caption": (ERROR, "caption cannot be used", "training refuses it"),
    "missing_caption": (WARNING, "no caption", "trains on the empty prompt"),
    "empty_caption": (WARNING, "empty caption", "trains on the empty prompt"),
    "long_caption": (WARNING, "caption is too long", "its end is cut off"),
    "missing_image": (WARNING, "caption of no image", "not used"),
    "too_small": (WARNING, "smaller than the resolution", "enlarged, so blurred"),
    "wrong_extension": (WARNING, "named as another format", "read as what it is"),
    "equal": (WARNING, "equal files", "count so many times"),
    "alike": (WARNING, "look alike", "count so many times"),
    "animated": (NOTE, "animated, or several pages", "the first one is used"),
    "exif_rotated": (NOTE, "turned by EXIF", "turned upright"),
    "transparent": (NOTE, "transparent pixels", "laid over data.background"),
    "cmyk": (NOTE, "CMYK", "converted without its colour profile"),
    "16_bit": (NOTE, "16 bits a sample", "reduced to 8 bits"),
    "float": (NOTE, "floating point or 32 bits", "reduced to 8 bits"),
    "palette": (NOTE, "palette", "converted to RGB"),
    "gray": (NOTE, "gray", "converted to RGB"),
    "bilevel": (NOTE, "black and white", "converted to RGB"),
}
"""Key of each finding → severity, words for people, and what training does about it."""


@dataclass
class Finding:
    """One kind of thing that was found: how often, and where (`limit` places at most)."""

    count: int = 0
    items: list[Any] = field(default_factory=list)


@dataclass
class Report:
    """What `examine` found.

    Attributes:
        images, bytes: of readable images.
        findings: by the keys of `KINDS`, in their order. An item is `(file, detail)`; of the
            kinds `equal` and `alike` it is the list of files of one group, and the count is that
            of the images that could go.
        widths, heights: (images,) in pixels, upright.
        captioned, captions: images with a caption, and captions together.
        tokens: number of captions by their number of tokens, start and end included.
        searched_all: False where too many images were alike to compare them all.
    """

    place: str
    kind: str
    resolution: int | None
    context_length: int
    images: int = 0
    bytes: int = 0
    seconds: float = 0.0
    findings: dict[str, Finding] = field(default_factory=dict)
    widths: array = field(default_factory=lambda: array("I"))
    heights: array = field(default_factory=lambda: array("I"))
    formats: Counter = field(default_factory=Counter)
    captioned: int = 0
    captions: int = 0
    tokens: Counter = field(default_factory=Counter)
    searched_all: bool = True

    def of(self, severity: str) -> Iterator[tuple[str, Finding]]:
        """The findings of one severity that were found at all."""
        for key, (own, _, _) in KINDS.items():
            if own == severity and key in self.findings:
                yield key, self.findings[key]
