"""Catalog of images on disk: a table with size, digest, columns and place of every image.

    source ──scan──► catalog ──► split, captions, latents cache, training examples

With a million images it takes too long to decode all of them at every start, and too much memory
to hold all paths and captions. So the results of a scan are kept in a folder, in memory-mapped
tables (see `data.catalog.columns`):

    version-000001/
      images/   unit, offset, size, sha256, split_hash; name, row; and the facts about an image:
                width, height, transparent, channels, bits, low, high, signal, rate
      units/    size, mtime_ns, caption_stamp, end; name, unreadable
      catalog.json   counts, sizes and digests of all files; written last

Image i is row i, in the order of the source. Files that cannot be read have no row; they are
listed with their unit. A unit (an image file, or a shard) with the same size and time as before
is not read again. `split_hash`, 64 bits of the SHA-256 of the image's name, decides between
training and validation.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydantic

from latentddpm.data.catalog.columns import Schema, Table
from latentddpm.data.findings import Findings
from latentddpm.data.images import WHITE, read_image, read_signal
from latentddpm.data.places.union import Union
from latentddpm.data.sources.base import MetadataStamp, Source
from latentddpm.data.sources.metadata import Row, template_columns
from latentddpm.data.sources.storage import order
from latentddpm.errors import UserError
from latentddpm.utils.console import activity, say
from latentddpm.utils.files import FileEntry
from latentddpm.utils.images.pixel_format import RGB, PixelFormat

MANIFEST = "catalog.json"
FORMAT = 4
"""Of the tables and the manifest. 1: the columns had other names. 2: no channels, bits, low, high.
3: no signal, rate.
A catalog of another format is made again."""
RULES = 2
"""By which shards and captions are read. 1: members of a tar belonged together up to the last dot,
tables of captions lay at the root alone. Captions, and shards as a whole, that were read by other
rules are read again."""
DIGEST_LIMIT = 1 << 28  # files of this many bytes or more are checked by their size alone
SHOWN_FILES = 20
SHA256 = 32  # bytes

IMAGES = Schema(
    {
        "unit": ("<u4", ()),
        "offset": ("<u8", ()),
        "size": ("<u8", ()),
        "sha256": ("|u1", (SHA256,)),
        "width": ("<u4", ()),
        "height": ("<u4", ()),
        "transparent": ("|b1", ()),
        "channels": ("<u2", ()),
        "bits": ("|u1", ()),
        "low": ("<f4", ()),
        "high": ("<f4", ()),
        "signal": ("|b1", ()),
        "rate": ("<u4", ()),
        "split_hash": ("<u8", ()),
    },
    ("name", "row"),
)
"""Columns of the table of images: the unit, offset and size of their bytes; the digest of these;
the facts of `data.pictures.stored.Facts`; the split hash; the name if it is not that of the unit;
the row of metadata."""

UNITS = Schema(
    {
        "size": ("<i8", ()),
        "mtime_ns": ("<i8", ()),
        "caption_stamp": ("<i8", ()),
        "end": ("<u8", ()),
    },
    ("name", "unreadable"),
)
"""Columns of the table of units: their stamps, the row after the last image of each, their names,
and a JSON list of `[file, reason]` of files that cannot be read, and of findings about the rest of
a shard, `[file, detail, key, count]`."""


class Manifest(pydantic.BaseModel):
    """Manifest of a version, the content of catalog.json.

    Attributes:
        format: see `FORMAT`.
        rules: see `RULES`.
        complete: False for an interrupted scan.
        place: of the source.
        kind: of the source.
        images: number of images.
        units: number of units.
        unreadable: number of files that cannot be read.
        passed: number of findings about shards.
        metadata: stamp of the tables of captions.
        columns: names of the columns of all rows.
        sidecars: True if an image has a caption from a sidecar.
        notes: warnings about the captions.
        problem: error of the table of captions; empty if there is none.
        files: name → size and SHA-256 of every other file of the version.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    format: int = FORMAT
    rules: int = 1
    complete: bool
    place: str
    kind: str
    images: int
    units: int
    unreadable: int
    passed: int = 0
    metadata: MetadataStamp
    columns: list[str]
    sidecars: bool
    notes: list[str]
    problem: str
    files: dict[str, tuple[int, str]]


class Catalog:
    """Catalog of the readable images of a source, with random access from disk.

    Args:
        source: of the images.
        folder: of one version of the catalog.

    Attributes:
        manifest: of the version.
        images: table of the N images: `images["width"]` and so on, (N,), see `IMAGES`.
        units: table of the units, see `UNITS`.

    Raises:
        OSError, ValueError: the folder is not a complete, undamaged version.
    """

    def __init__(self, source: Source, folder: Path) -> None:
        self.source, self.folder = source, folder
        self.manifest = read_manifest(folder)
        if not self.manifest.complete:
            raise ValueError(f"{folder}: the scan was interrupted")
        check_files(folder, self.manifest)
        self.images, self.units = open_tables(folder, self.manifest)

    @property
    def digest(self) -> str:
        """SHA-256 that depends on the content of all images, and their order."""
        return self.manifest.files["images/sha256.npy"][1]

    @property
    def name_digest(self) -> str:
        """SHA-256 that depends on the names of all images, and their order."""
        return self.manifest.files["images/split_hash.npy"][1]

    @property
    def row_digest(self) -> str:
        """SHA-256 that depends on the columns of all images, and their order."""
        files = self.manifest.files
        parts = [files[f"images/{name}"][1] for name in ("row.bin", "row_end.npy")]
        return hashlib.sha256("".join(parts).encode()).hexdigest()

    def __len__(self) -> int:
        return self.manifest.images

    def name(self, index: int) -> str:
        """Name of the image at `index`: its POSIX path in the folder, or that before packing."""
        name = self.images.text("name", index)
        return (name or self._unit(index)).decode("utf-8", "surrogateescape")

    def where(self, index: int) -> str:
        """Name of the image at `index` in messages."""
        unit = self._unit(index).decode("utf-8", "surrogateescape")
        return self.source.where(unit, self.name(index))

    def home(self, index: int) -> tuple[Source, str, str]:
        """Source of the image at `index`, of several places its own; its unit and name there."""
        unit, name = self._unit(index).decode("utf-8", "surrogateescape"), self.name(index)
        if not isinstance(self.source, Union):
            return self.source, unit, name
        label, part, unit = self.source.part_of(unit)
        return part, unit, name.removeprefix(f"{label}/")

    def read(self, index: int) -> bytes:
        """Bytes of the file of the image at `index`.

        Raises:
            OSError: they cannot be read any more.
        """
        offset, size = (int(self.images[key][index]) for key in ("offset", "size"))
        unit = self._unit(index).decode("utf-8", "surrogateescape")
        return self.source.read(unit, offset, size)

    def image(
        self,
        index: int,
        size: int | tuple[int, ...],
        pixels: PixelFormat = RGB,
        background: tuple[int, int, int] | None = WHITE,
    ) -> np.ndarray:
        """Pixels of the image, or samples of the signal, at `index`.

        Args:
            index: of the image.
            size, pixels, background: see `data.images.read_image`; the size of signals is (L,).

        Returns:
            (H, W, C) in the dtype of `pixels`; of signals (L, C).

        Raises:
            UnreadableImage: it cannot be read as an image of this format.
            OSError: its file cannot be read any more.
        """
        if pixels.spatial_dims == 1:
            return read_signal(self.read(index), *size, pixels, self.where(index))
        return read_image(self.read(index), size, background, self.where(index), pixels)

    def row(self, index: int) -> Row:
        """Row of the image at `index`: its columns, as they were found."""
        return Row.unpack(self.images.text("row", index))

    def row_place(self, index: int, row: Row) -> str:
        """Place of a `row`, that of the image at `index`, for messages."""
        if not row.line or row.table >= len(self.tables):
            return self.where(index)
        return f"{self.tables[row.table]} line {row.line}"

    @property
    def tables(self) -> list[str]:
        """Paths of the tables of captions."""
        names = [str(stamp[0]) for stamp in self.manifest.metadata]
        if isinstance(self.source, Union):
            return self.source.table_paths(names)
        return [f"{self.source.place}/{name}" for name in names]

    def columns(self) -> list[str]:
        """Names of the columns that templates of captions can use."""
        return template_columns(self.manifest.columns, self.manifest.sidecars)

    def unreadable(self) -> Iterator[tuple[str, str]]:
        """Files that cannot be read, each with the reason."""
        for unit in range(self.manifest.units if self.manifest.unreadable else 0):
            for name, reason, *rest in self._notes(unit):
                if not rest:
                    yield name, reason

    def passed_over(self) -> Findings:
        """Findings about what looks like data and is not read, at the place and in its shards."""
        findings = self.source.survey()
        for unit in range(self.manifest.units if self.manifest.passed else 0):
            for name, detail, *rest in self._notes(unit):
                if rest:
                    key, count = rest
                    findings.note(key, name, detail, count)
        return findings

    def _notes(self, unit: int) -> list[list]:
        return json.loads(self.units.text("unreadable", unit) or "[]")

    def few_unreadable(self) -> str:
        """Message in one line: the number of files that cannot be read, and the first of them."""
        count, found = self.manifest.unreadable, self.unreadable()
        few = [f"{name}: {reason}" for (name, reason), _ in zip(found, range(3), strict=False)]
        total = count + len(self)
        more = "; ..." if count > 3 else ""
        return f"{count} of {total} images cannot be read ({'; '.join(few)}{more})"

    def report(self, quiet: bool = False) -> None:
        """Print on stderr what is left out: files that cannot be read, and what is passed over.

        Args:
            quiet: print only the files that cannot be read.
        """
        if not quiet:
            with activity(f"looking for what is not read in {self.source.place}"):
                lines = list(self.passed_over().lines())
            for line in lines:
                say(f"{self.source.place}: {line}")
        count = self.manifest.unreadable
        if not count:
            return
        print(f"{count} files cannot be read and are left out:", file=sys.stderr)
        for (name, reason), _ in zip(self.unreadable(), range(SHOWN_FILES), strict=False):
            print(f"  {name}: {reason}", file=sys.stderr)
        if count > SHOWN_FILES:
            print(f"  and {count - SHOWN_FILES} more", file=sys.stderr)

    def _unit(self, index: int) -> bytes:
        return self.units.text("name", int(self.images["unit"][index]))


# --- Folders -------------------------------------------------------------------------------


def split_hash(name: str) -> int:
    """Split hash: 64 bits of the SHA-256 of a `name`."""
    return int.from_bytes(hashlib.sha256(order(name)).digest()[:8], "big")


class OtherFormat(ValueError):
    """Error: a catalog is of another format, so another version of latentddpm wrote it."""


def versions(folder: Path) -> list[Path]:
    """Folders of the versions in the `folder` of a catalog, newest first."""
    return sorted(folder.glob("version-??????"), reverse=True)


def read_manifest(version: Path) -> Manifest:
    """Manifest of the version in a folder.

    Raises:
        OtherFormat: another version of latentddpm wrote it.
        OSError, ValueError: it is missing or malformed.
    """
    manifest = Manifest.model_validate_json((version / MANIFEST).read_bytes())
    if manifest.format != FORMAT:
        raise OtherFormat(
            f"format {manifest.format}, expected {FORMAT}: another version of latentddpm wrote it"
        )
    return manifest


def check_files(version: Path, manifest: Manifest) -> None:
    """Check that the files of a `version` are those of its `manifest`.

    Raises:
        OSError, ValueError: one is missing or has changed; the message names it.
    """
    for name in expected_files():
        path = version / name
        entry = FileEntry(*manifest.files.get(name, (-1, "")))
        if difference := entry.difference(path, DIGEST_LIMIT):
            raise ValueError(f"{path}: {difference}")


def expected_files() -> list[str]:
    """Names of the files of a version, without its manifest."""
    return [
        f"{folder}/{name}"
        for folder, schema in (("images", IMAGES), ("units", UNITS))
        for name in schema.files()
    ]


def open_tables(version: Path, manifest: Manifest) -> tuple[Table, Table]:
    """Tables of the images and of the units of a `version`.

    Raises:
        OSError, ValueError: they do not match the `manifest`.
    """
    return (
        Table(version / "images", IMAGES, manifest.images),
        Table(version / "units", UNITS, manifest.units),
    )


def require_images(catalog: Catalog, strict: bool) -> None:
    """Check that a catalog has images.

    Args:
        catalog: of any source.
        strict: check also that all its files can be read.

    Raises:
        UserError: there are none, or some files cannot be read; the message names the first.
    """
    place = catalog.source.place
    if catalog.manifest.unreadable and (strict or not len(catalog)):
        raise UserError(f"{place}: {catalog.few_unreadable()}")
    if not len(catalog):
        raise UserError(f"{place}: no image in it")
