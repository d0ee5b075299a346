"""Report of `doctor`, as text or as JSON; `data.findings` lists the kinds of findings."""

from __future__ import annotations

import json
import textwrap
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from latentddpm.data.doctor.columns import Columns
from latentddpm.data.doctor.small_sets import Named, Places, Tags
from latentddpm.data.doctor.values import Values
from latentddpm.data.findings import ERROR, KINDS, NOTE, WARNING, Finding, Findings


@dataclass
class Report:
    """Report of `examine`.

    Attributes:
        place: of the source.
        kind: of the source.
        resolution: side, in pixels, below which images are reported; None for none.
        context_length: most tokens of a caption, start and end included.
        images: number of readable images.
        bytes: size of all readable images.
        seconds: that it took.
        findings: by the keys of `KINDS`, in their order. An item is `(file, detail)`. For the
            kinds `equal` and `near_duplicates` an item is the list of files of a group, and the
            count is the number of images that could be removed.
        widths: of the upright images, in pixels, (images,).
        heights: of the upright images, in pixels, (images,).
        formats: number of images of each format.
        values: channels, bit depths and range of their values.
        captioned: number of images with a caption.
        captions: number of all captions.
        tokens: number of captions by their number of tokens, start and end included.
        in_folders: number of images that lie in a folder of the place.
        columns: that could be conditions.
        tags: of captions that are lists.
        named: images without a caption, and what their names say.
        places: with their weights, where there are several.
        searched_all: False if there were too many similar images to compare them all.
    """

    place: str
    kind: str
    resolution: int | None
    context_length: int
    images: int = 0
    bytes: int = 0
    seconds: float = 0.0
    findings: Findings = field(default_factory=Findings)
    widths: array = field(default_factory=lambda: array("I"))
    heights: array = field(default_factory=lambda: array("I"))
    formats: Counter = field(default_factory=Counter)
    values: Values = field(default_factory=Values)
    captioned: int = 0
    captions: int = 0
    tokens: Counter = field(default_factory=Counter)
    in_folders: int = 0
    columns: Columns = field(default_factory=Columns)
    searched_all: bool = True
    tags: Tags = field(default_factory=Tags)
    named: Named = field(default_factory=Named)
    places: Places = field(default_factory=Places)

    def of(self, severity: str) -> Iterator[tuple[str, Finding]]:
        """Findings of one `severity`, with their keys."""
        for key, (own, _, _) in KINDS.items():
            if own == severity and key in self.findings:
                yield key, self.findings[key]


TITLES = {
    ERROR: "Errors: training refuses or leaves out",
    WARNING: "Warnings: trains, and the model may suffer",
    NOTE: "Notes: taken care of",
}
SIDES = (64, 128, 256, 512, 768, 1024, 2048)
SHAPES = ((3, 1), (2, 1), (16, 9), (3, 2), (4, 3), (5, 4), (1, 1))
WIDTH = 100


def as_text(report: Report) -> str:
    """Text of a `report`, in at most `WIDTH` columns."""
    lines = [
        f"{report.place}: {_number(report.images, 'readable image')}, {_size(report.bytes)}, "
        f"looked at in {report.seconds:.3g} s"
    ]
    for severity, title in TITLES.items():
        rows = list(report.of(severity))
        if rows:
            lines += ["", title]
            for key, finding in rows:
                lines += _finding_lines(key, finding)
    if not any(report.of(ERROR)) and not any(report.of(WARNING)):
        lines += ["", "No errors, no warnings."]
    if not report.searched_all:
        lines += ["", "Too many images look alike to compare them all: there may be more."]
    if report.places.weights:
        lines += ["", "Places", *report.places.lines()]
    if report.images:
        lines += ["", "Sizes", *_size_lines(report)]
    lines += ["", "Captions", *_caption_lines(report), *report.named.lines()]
    if told := list(report.columns.lines()):
        lines += ["", "Conditions that train-diffusion could tell a model", *told]
    return "\n".join(lines)


def as_json(report: Report) -> str:
    """JSON object of a `report`; docs/guides/doctor.md describes its keys."""
    findings = {
        key: {"severity": severity, "count": finding.count, **_items(key, finding)}
        for key, (severity, _, _) in KINDS.items()
        if (finding := report.findings.get(key))
    }
    value = {
        "format": 1,
        "place": report.place,
        "kind": report.kind,
        "images": report.images,
        "bytes": report.bytes,
        "seconds": round(report.seconds, 3),
        "resolution": report.resolution,
        "context_length": report.context_length,
        "findings": findings,
        "searched_all": report.searched_all,
        "formats": dict(report.formats.most_common()),
        **report.values.as_json(),
        "width": quartiles(report.widths),
        "height": quartiles(report.heights),
        "shorter_side_at_least": shorter_sides(report),
        "shapes": shapes(report),
        "captions": {
            "images": report.captioned,
            "captions": report.captions,
            "tokens": token_quartiles(report.tokens),
            "without": report.named.as_json(),
            "tags": report.tags.as_json(),
        },
        "places": report.places.as_json(),
        "conditions": report.columns.as_json(),
    }
    # Names that are not UTF-8 become escaped lone surrogates.
    return json.dumps(value, indent=2)


# --- Numbers -------------------------------------------------------------------------------

QUARTILES = ("least", "quarter", "median", "three_quarters", "greatest")


def quartiles(values: array) -> dict[str, int]:
    """Least, quartiles and greatest of `values`, by name; empty without values."""
    if not values:
        return {}
    found = np.percentile(np.frombuffer(values, np.uint32), [0, 25, 50, 75, 100], method="nearest")
    return dict(zip(QUARTILES, map(int, found), strict=True))


def token_quartiles(counts: Counter) -> dict[str, int]:
    """Least, quartiles and greatest number of tokens, by name, from `counts` by that number."""
    if not counts:
        return {}
    lengths = np.array(sorted(counts))
    below = np.cumsum([counts[int(length)] for length in lengths])
    places = [1, *(max(1, round(below[-1] * share)) for share in (0.25, 0.5, 0.75)), below[-1]]
    found = lengths[np.searchsorted(below, places)]
    return dict(zip(QUARTILES, map(int, found), strict=True))


def shorter_sides(report: Report) -> dict[str, int]:
    """Number of images of a `report` whose shorter side is at least each of `SIDES`, in pixels."""
    widths, heights = (np.frombuffer(a, np.uint32) for a in (report.widths, report.heights))
    shorter = np.minimum(widths, heights)
    return {str(side): int((shorter >= side).sum()) for side in SIDES}


def shapes(report: Report) -> dict[str, int]:
    """Number of images of a `report` by the nearest of `SHAPES`, "width:height", largest first."""
    if not report.images:
        return {}
    known = [*SHAPES, *((b, a) for a, b in reversed(SHAPES[:-1]))]
    logs = np.log([a / b for a, b in known])
    widths, heights = (np.frombuffer(a, np.uint32) for a in (report.widths, report.heights))
    ratios = np.log(widths / heights)
    edges = (logs[1:] + logs[:-1]) / 2
    nearest = len(logs) - 1 - np.searchsorted(edges[::-1], ratios)
    counts = np.bincount(nearest, minlength=len(known))
    order = np.argsort(-counts, kind="stable")
    return {f"{known[i][0]}:{known[i][1]}": int(counts[i]) for i in order if counts[i]}


# --- Lines ---------------------------------------------------------------------------------


def _items(key: str, finding: Finding) -> dict[str, Any]:
    if key in ("equal", "near_duplicates"):
        return {"groups": finding.items}
    return {"files": [_named(name, detail) for name, detail in finding.items]}


def _named(name: str, detail: str) -> dict[str, str]:
    return {"file": name, "detail": detail} if detail else {"file": name}


def _finding_lines(key: str, finding: Finding) -> Iterator[str]:
    _, words, meaning = KINDS[key]
    yield f"  {finding.count:>9,}  {words}: {meaning}"
    if key in ("equal", "near_duplicates"):
        examples = [" = ".join(group[:4]) + " …" * (len(group) > 4) for group in finding.items]
    else:
        examples = [f"{name} ({detail})" if detail else name for name, detail in finding.items]
    for example in examples:
        shown = " ".join(example.split()).encode("utf-8", "replace").decode()
        yield from textwrap.wrap(shown, WIDTH, initial_indent=" " * 13, subsequent_indent=" " * 15)


def _size_lines(report: Report) -> Iterator[str]:
    signals = sum(report.values.rates.values()) == report.images
    sides = {"width": report.widths, "height": report.heights}
    if signals:
        sides = {"length": report.heights}
    yield from (
        f"  {name:<9}{low:,} to {high:,} {'samples' if signals else 'pixels'}, median {median:,}"
        for name, values in sides.items()
        for low, _, median, _, high in [quartiles(values).values()]
    )
    if not signals:
        reached = {side: count for side, count in shorter_sides(report).items() if count}
        parts = (f"{side}: {_share(count, report.images)}" for side, count in reached.items())
        if reached:
            yield "  shorter side at least  " + "   ".join(parts)
        parts = (f"{shape} {_share(n, report.images)}" for shape, n in shapes(report).items())
        yield from _wrapped("  shape    ", parts)
    parts = (f"{name} {_share(n, report.images)}" for name, n in report.formats.most_common())
    yield from _wrapped("  format   ", parts)
    yield from report.values.lines()


def _wrapped(title: str, parts: Iterator[str]) -> list[str]:
    # Lines must not be broken at the spaces inside a part.
    text = "   ".join(part.replace(" ", "\0") for part in parts)
    lines = textwrap.wrap(text, WIDTH, initial_indent=title, subsequent_indent=" " * len(title))
    return [line.replace("\0", " ") for line in lines]


def _caption_lines(report: Report) -> Iterator[str]:
    if not report.captions:
        broken = {"bad_table", "bad_caption", "not_utf8", "not_text"} & set(report.findings)
        yield (
            "  none that can be used: see above"
            if broken
            else "  none: an unconditional model can be trained"
        )
        if report.in_folders:
            words = 'data.caption_templates=["a photo of {folder}"]'
            yield f"  the names of their folders as captions: {words}"
        return
    yield (
        f"  {report.captioned:,} of {_number(report.images, 'image')} have one or more, "
        f"{report.captions:,} together"
    )
    low, _, median, _, high = token_quartiles(report.tokens).values()
    yield f"  tokens   {low:,} to {high:,}, median {median:,} ({report.context_length} fit)"
    yield from report.tags.lines()


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' * (count != 1)}"


def _share(count: int, total: int) -> str:
    percent = 100 * count / max(total, 1)
    return f"{percent:.0f} %" if percent >= 1 else "<1 %"


def _size(count: int) -> str:
    size = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
