"""Doctor: a check of captioned images for everything that would disturb training.

    source ──► every image decoded, its captions read, in parallel ──► findings, sizes, duplicates

Nothing is written, renamed or deleted. `doctor.report.KINDS` lists the kinds of findings. It needs
about 100 bytes of memory per image, and the names of the files with findings.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from latentddpm.clip.tokenizer import CLIPTokenizer
from latentddpm.config.data import MaskConfig
from latentddpm.data.doctor.duplicates import HASH_BYTES, ImageHashes, image_hash
from latentddpm.data.doctor.report import Report
from latentddpm.data.doctor.small_sets import mask_finding, mask_settings, weights_of
from latentddpm.data.doctor.values import visible
from latentddpm.data.findings import Finding, Findings
from latentddpm.data.images import examine_image
from latentddpm.data.pictures.arrays import ZIP_MAGIC
from latentddpm.data.pictures.decode import (
    FORMATS,
    MAX_BYTES,
    ORIENTATION,
    UnreadableImage,
    open_image,
    without_texts,
)
from latentddpm.data.pictures.stored import Facts, is_array
from latentddpm.data.pictures.wav import is_wav
from latentddpm.data.places.places import Data, open_places, shown
from latentddpm.data.places.union import Union
from latentddpm.data.prefetch import map_ahead
from latentddpm.data.sources import storage
from latentddpm.data.sources.base import Entry, Source
from latentddpm.data.sources.kinds import CAPTION_COLUMNS, first_column
from latentddpm.data.sources.metadata import TEXT, no_caption, template_columns
from latentddpm.data.sources.tables import MetadataTable
from latentddpm.data.sources.walk import Second
from latentddpm.data.templates import Templates
from latentddpm.errors import UserError, one_line

MIDDLE = (0.1, 99.9)
"""Percentiles between which the values of an image are that a suggested window keeps."""
FEW_IMAGES = 1000
"""Fewer images are learned by heart when a diffusion model is trained on them from scratch."""


class _Examined(NamedTuple):
    """Result of a worker for one image and its captions."""

    digest: bytes = b""
    size: tuple[int, int] = (0, 0)
    format: str = ""
    image_hash: bytes = b""
    found: tuple[tuple[str, str], ...] = ()
    tokens: tuple[int, ...] = ()
    facts: Facts | None = None
    ends: tuple[float, float] = (0.0, 255.0)
    captions: tuple[str, ...] = ()


def examine(
    place: Data,
    *,
    resolution: int | None = None,
    templates: Sequence[str] = (),
    context_length: int = 77,
    mask: str = "",
    limit: int | None = None,
    quiet: bool = False,
) -> Report:
    """Examine every image and caption of a place.

    Args:
        place: one, or several; see `data.places.places.as_places`.
        resolution: images with a smaller side are reported.
        templates: of captions, as `data.caption_templates`.
        context_length: most tokens of a caption, start and end included.
        mask: end of the names of masks beside images, or the column that names them; "" for none.
        limit: number of files that are listed for each finding; None for all.
        quiet: show no progress bar.

    Raises:
        UserError: there is no such place, or no image in it; a template is malformed or names a
            column that no image has; a resolution that is not positive.
    """
    if resolution is not None and resolution <= 0:
        raise UserError(f"resolution: {resolution}, expected a number of pixels above 0")
    masks = mask_settings(mask)
    second = Second(*([one] if one else [] for one in (masks.suffix, masks.column)))
    source = open_places(place, second)
    if masks.given and source.kind not in ("folder", Union.kind):
        raise UserError(
            f"mask: {source.place} is {source.kind}, and doctor looks at the masks of folders; "
            "those of a tar are checked when training starts"
        )
    report = Report(shown(place), source.kind, resolution, context_length)
    report.findings = Findings(limit)
    report.places.weights = weights_of(source)
    return _Pass(source, report, Templates(templates), limit, masks).run(quiet)


class _Pass:
    """Pass over a source that fills a report."""

    def __init__(
        self,
        source: Source,
        report: Report,
        templates: Templates,
        limit: int | None,
        masks: MaskConfig,
    ) -> None:
        self.masks = masks
        self.source, self.report, self.templates, self.limit = source, report, templates, limit
        self.tokenizer = CLIPTokenizer(report.context_length)
        self.columns: dict[str, None] = {}
        self.hashes = ImageHashes()
        self.images = 0

    def run(self, quiet: bool) -> Report:
        start, report = time.perf_counter(), self.report
        in_bytes = self.source.kind != "folder"
        units = list(self.source.units()) if in_bytes else self.source.units()
        total = sum(u.size for u in units) if in_bytes else sum(1 for _ in self.source.units())
        unit = {"unit": "B", "unit_scale": True} if in_bytes else {"unit": "image"}
        with (
            tempfile.TemporaryFile(prefix="latentddpm-doctor-") as names,
            tqdm(desc="doctor", total=total, **unit, delay=2, disable=quiet) as bar,
        ):
            self.names, self.name_ends = names, array("Q")
            report.findings.update(self.source.survey(self.limit))
            metadata = self.metadata = self.source.open_metadata()
            self.columns.update(metadata.columns)
            entries = self._entries(units, metadata)
            examined = map_ahead(self._examine, entries, weigh=lambda entry: entry.size)
            for entry, result in examined:
                self._add(entry, result)
                bar.update(entry.size if in_bytes else 1)
            self._check_captions(metadata)
            self._check_number()
            report.columns.note(report.findings)
            self._duplicates()
        report.seconds = time.perf_counter() - start
        return report

    def _entries(self, units: Iterable[Any], metadata: MetadataTable) -> Iterator[Entry]:
        """Entries of all units; a damaged shard is reported, and the next one is read."""
        for unit in units:
            try:
                yield from self.source.entries(unit, metadata, self.report.findings)
            except (UserError, OSError) as error:
                self.report.findings.note("unreadable", unit.name, _reason(error))

    # --- In the workers ---

    def _examine(self, entry: Entry) -> _Examined:
        try:
            if entry.size > MAX_BYTES:
                raise OSError(f"{entry.size:,} bytes is over the limit of {MAX_BYTES:,} bytes")
            data = entry.load()
            facts, image = examine_image(data, entry.where)
        except (UnreadableImage, OSError) as error:
            return _Examined(found=(("unreadable", _reason(error)),))
        kind, found = describe_file(data, entry.name)
        ends = (facts.low, facts.high)
        if isinstance(image, np.ndarray):
            ends = tuple(map(float, np.percentile(image, MIDDLE)))
            image = visible(image)
        if facts.transparent:
            found.append(("transparent", ""))
        sides = (facts.height,) if facts.signal else image.size
        if self.report.resolution and min(sides) < self.report.resolution:
            found.append(("too_small", "×".join(map(str, sides))))
        of_captions, captions, tokens = self._examine_captions(entry)
        found = (*found, *of_captions)
        if self.masks.given and not facts.signal:
            of_mask = mask_finding(entry, self.masks, self.metadata, image.size)
            found = (*found, *filter(None, [of_mask]))
        digest = hashlib.sha256(data).digest()
        # As pictures all signals look alike; a digest finds those that are equal.
        own = hashlib.shake_256(digest).digest(HASH_BYTES)
        look = own if facts.signal else image_hash(image)
        return _Examined(digest, image.size, kind, look, found, tokens, facts, ends, captions)

    def _examine_captions(
        self, entry: Entry
    ) -> tuple[list[tuple[str, str]], tuple[str, ...], tuple[int, ...]]:
        """Findings about the captions of an image, these, and the number of tokens of each."""
        row = entry.row
        problem = row.problem
        captions: tuple[str, ...] = ()
        if not problem:
            try:
                captions = self.templates.fill(row.columns, entry.name)
            except UserError as error:
                problem = str(error)
        if problem:
            return [("not_utf8" if "not UTF-8" in problem else "bad_caption", problem)], (), ()
        tokens = tuple(len(self.tokenizer.encode(text)) + 2 for text in captions)
        found = []
        if not captions:
            reason, text = no_caption(row.columns), first_column(row.columns, CAPTION_COLUMNS)
            key = "empty_caption" if text or entry.sidecar else "missing_caption"
            found.append(("not_text" if reason else key, reason))
        if tokens and max(tokens) > self.report.context_length:
            found.append(("long_caption", f"{max(tokens)} tokens"))
        return found, captions, tokens

    # --- In order ---

    def _add(self, entry: Entry, examined: _Examined) -> None:
        report = self.report
        for key, detail in examined.found:
            report.findings.note(key, entry.name, detail)
        self.columns.update(dict.fromkeys(entry.row.columns))
        report.captioned += bool(examined.tokens)
        report.captions += len(examined.tokens)
        report.tokens.update(examined.tokens)
        if not examined.digest:
            return
        report.places.add(entry.name)
        report.tags.add(examined.captions)
        if not examined.captions and not entry.row.problem:
            report.named.add(entry.name)
        report.images += 1
        report.bytes += entry.size
        report.in_folders += "/" in entry.name
        report.formats[examined.format] += 1
        report.values.add(examined.facts, examined.ends)
        report.columns.add(entry.row.columns, entry.name)
        report.widths.append(examined.size[0])
        report.heights.append(examined.size[1])
        self.hashes.add(examined.digest, examined.image_hash)
        self.names.write(storage.order(entry.name))
        self.name_ends.append(self.names.tell())

    def _check_captions(self, metadata: MetadataTable) -> None:
        """Find errors of the tables and the templates, and rows without an image."""
        findings, own = self.report.findings, self.templates.texts != Templates().texts
        if metadata.problem:
            findings.note("bad_table", metadata.path, metadata.problem)
            return
        count, _, names = metadata.missing(self.limit)
        if count:
            table = "in " + os.path.basename(metadata.path)
            for name in names:
                findings.note("missing_image", name, table)
            findings.setdefault("missing_image", Finding()).count += count - len(names)
        columns = list(self.columns)
        try:
            self.templates.check(template_columns(columns, TEXT in columns), metadata.path)
        except UserError as error:
            if own:
                raise
            findings.note("bad_table", metadata.path or self.report.place, str(error))
            return
        if column := self.templates.other_column(columns):
            detail = f"those of the column {column!r}"
            findings.note("caption_column", metadata.path or self.report.place, detail)
        if not (own or self.report.captions):
            # Without any captions it is an unconditional set, not one with missing captions.
            findings.pop("missing_caption", None)

    def _check_number(self) -> None:
        """Find a set that is too small to train on from scratch."""
        report = self.report
        if 0 < report.images < FEW_IMAGES:
            detail = (
                f"fewer than {FEW_IMAGES:,}: fine-tune a model that is there, with "
                "train-diffusion --init MODEL"
            )
            report.findings.note("few_images", report.place, detail, report.images)

    def _duplicates(self) -> None:
        equal, near, self.report.searched_all = self.hashes.duplicates()
        for key, found in (("equal", equal), ("near_duplicates", near)):
            if found:
                finding = self.report.findings.setdefault(key, Finding())
                finding.count = sum(len(group) - 1 for group in found)
                finding.items = [[self._name(i) for i in group] for group in found[: self.limit]]

    def _name(self, index: int) -> str:
        start = self.name_ends[index - 1] if index else 0
        self.names.seek(start)
        return self.names.read(self.name_ends[index] - start).decode("utf-8", "surrogateescape")


def describe_file(data: bytes, name: str) -> tuple[str, list[tuple[str, str]]]:
    """Format of a readable image, and findings about its file.

    Args:
        data: bytes of the file.
        name: of the file.

    Returns:
        The format, and findings (key of `KINDS`, detail).
    """
    if is_wav(data):
        return "WAV", []
    if is_array(data):
        return ("NPZ" if data.startswith(ZIP_MAGIC) else "NPY"), []
    try:
        opened = open_image(data)
    except ValueError:  # a text that is too large for Pillow
        opened = open_image(without_texts(data))
    with opened as image:
        kind = "JPEG" if image.format == "MPO" else image.format
        pages = 1 if kind == "JPEG" else getattr(image, "n_frames", 1)
        mode, deep = image.mode, any(";16" in str(tile) for tile in image.tile)
        try:
            turned = image.getexif().get(ORIENTATION, 1) in range(2, 9)
        except Exception:  # broken EXIF counts as upright
            turned = False
    suffix = os.path.splitext(name)[1].lower()
    named = Image.registered_extensions().get(suffix)
    found = []
    if named in FORMATS and named != kind:
        found.append(("wrong_extension", f"is {kind}"))
    if pages > 1:
        found.append(("animated", f"{pages}"))
    if turned:
        found.append(("exif_rotated", ""))
    if mode.startswith("I;16") or deep:
        found.append(("16_bit", ""))
    elif mode in ("I", "F"):
        found.append(("float", mode))
    for key, modes in (
        ("cmyk", ("CMYK",)),
        ("palette", ("P", "PA")),
        ("gray", ("L", "LA", "I;16", "I;16B", "I;16L", "I", "F")),
        ("bilevel", ("1",)),
    ):
        if mode in modes:
            found.append((key, ""))
    return kind, found


def _reason(error: Exception) -> str:
    """Reason why a file cannot be read, without its name."""
    if isinstance(error, UnreadableImage):
        return error.reason
    return getattr(error, "strerror", None) or one_line(error)
