"""The catalog: what is known of every image, on disk, found once and kept.

    source ──scan──► catalog ──► split, captions, latents cache, training examples

Decoding every image at every start, and holding every path and caption in memory, ends at a
million images. So what a scan found is kept in a folder, memory-mapped, in tables (see
`data.catalog.columns`):

    version-000001/
      images/   unit, offset, size, sha256, width, height, transparent, split_hash; name, row
      units/    size, mtime_ns, caption_stamp, end; name, unreadable
      catalog.json   counts, sizes and digests of all files; written last

Image i is row i, in the order of the source; unreadable files are in no row, but noted with
their unit. A unit (an image file, or a shard) whose size and time are as noted is not read
again. `split_hash`, 64 bits of the SHA-256 of the image's name, decides on training or validation.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pydantic

from latentddpm.data.catalog.columns import Schema, Table
from latentddpm.data.sources.base import MetadataStamp, Source
from latentddpm.data.sources.metadata import FILE_NAME, TEXT, Row
from latentddpm.data.sources.storage import order
from latentddpm.errors import UserError
from latentddpm.utils.files import FileEntry

MANIFEST = "catalog.json"
DIGEST_LIMIT = 1 << 28  # files of this many bytes or more are checked by their size alone
SHOWN_FILES = 20
SHA256 = 32

IMAGES = Schema(
    {
        "unit": ("<u4", ()),
        "offset": ("<u8", ()),
        "size": ("<u8", ()),
        "sha256": ("|u1", (SHA256,)),
        "width": ("<u4", ()),
        "height": ("<u4", ()),
        "transparent": ("|b1", ()),
        "split_hash": ("<u8", ()),
    },
    ("name", "row"),
)
"""Of each image: where its bytes are and what they hash to; pixels, after EXIF rotation; whether
one is not opaque; its name where that is not the unit's, and its columns (`metadata.Row`)."""

UNITS = Schema(
    {
        "size": ("<i8", ()),
        "mtime_ns": ("<i8", ()),
        "caption_stamp": ("<i8", ()),
        "end": ("<u8", ()),
    },
    ("name", "unreadable"),
)
"""Of each unit: its stamp, the row behind its last image, and a JSON list of `[file, reason]`."""


class Manifest(pydantic.BaseModel):
    """The content of catalog.json. Not `complete`: a scan that was interrupted."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    complete: bool
    place: str
    kind: str
    images: int
    units: int
    unreadable: int
    metadata: MetadataStamp
    columns: list[str]
    sidecars: bool
    notes: list[str]
    problem: str
    files: dict[str, tuple[int, str]]


class Catalog:
    """All readable images of a source, random access, in memory that does not grow with them.

    Args:
        source: where the bytes are.
        folder: of one version.

    Attributes:
        images: `images["width"]` and so on, (N,); see `IMAGES`.
        units: the same for `UNITS`.
        digest: of the contents of all images in order.

    Raises:
        OSError, ValueError: the folder does not hold a whole catalog.
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
        return self.manifest.files["images/sha256.npy"][1]

    @property
    def name_digest(self) -> str:
        """Of the names of all images in order."""
        return self.manifest.files["images/split_hash.npy"][1]

    @property
    def row_digest(self) -> str:
        """Of the columns of all images in order."""
        files = self.manifest.files
        parts = [files[f"images/{name}"][1] for name in ("row.bin", "row_end.npy")]
        return hashlib.sha256("".join(parts).encode()).hexdigest()

    def __len__(self) -> int:
        return self.manifest.images

    def name(self, index: int) -> str:
        """The POSIX path of an image in its folder, or as it was before it was packed."""
        name = self.images.text("name", index)
        return (name or self._unit(index)).decode("utf-8", "surrogateescape")

    def where(self, index: int) -> str:
        """An image's name in messages."""
        unit = self._unit(index).decode("utf-8", "surrogateescape")
        return self.source.where(unit, self.name(index))

    def read(self, index: int) -> bytes:
        """The file of an image.

        Raises:
            OSError: it is not there any more.
        """
        offset, size = (int(self.images[key][index]) for key in ("offset", "size"))
        unit = self._unit(index).decode("utf-8", "surrogateescape")
        return self.source.read(unit, offset, size)

    def row(self, index: int) -> Row:
        """The columns of an image, as they were found."""
        return Row.unpack(self.images.text("row", index))

    def row_place(self, index: int, row: Row) -> str:
        """The place of a row, for messages about it."""
        if not row.line:
            return self.where(index)
        return f"{self.metadata_file} line {row.line}"

    @property
    def metadata_file(self) -> str:
        """The table of captions at the root; empty when there is none."""
        names = [str(stamp[0]) for stamp in self.manifest.metadata]
        return f"{self.source.place}/{names[0]}" if names else ""

    def columns(self) -> list[str]:
        """Names of columns that captions can be made of."""
        known = dict.fromkeys(self.manifest.columns)
        if not set(known) - {FILE_NAME} or self.manifest.sidecars:
            known[TEXT] = None
        return list(known)

    def unreadable(self) -> Iterator[tuple[str, str]]:
        """The files that give no pixels, each with its reason."""
        for unit in range(self.manifest.units if self.manifest.unreadable else 0):
            yield from map(tuple, json.loads(self.units.text("unreadable", unit) or "[]"))

    def few_unreadable(self) -> str:
        """The number of files that give no pixels, and the first of them, in one line."""
        count, found = self.manifest.unreadable, self.unreadable()
        few = [f"{name}: {reason}" for (name, reason), _ in zip(found, range(3), strict=False)]
        total = count + len(self)
        more = "; ..." if count > 3 else ""
        return f"{count} of {total} images cannot be read ({'; '.join(few)}{more})"

    def report(self) -> None:
        """Say on stderr which files could not be read; a run goes on without them."""
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
    """64 bits that follow from the name of an image alone."""
    return int.from_bytes(hashlib.sha256(order(name)).digest()[:8], "big")


def versions(folder: Path) -> list[Path]:
    """The versions in a catalog's folder, newest first."""
    return sorted(folder.glob("version-??????"), reverse=True)


def read_manifest(version: Path) -> Manifest:
    """The manifest of a version.

    Raises:
        OSError, ValueError: it says nothing, or something else.
    """
    return Manifest.model_validate_json((version / MANIFEST).read_bytes())


def check_files(version: Path, manifest: Manifest) -> None:
    """Every file is as it was written.

    Raises:
        OSError, ValueError: naming the one that is not.
    """
    for name in expected_files():
        path = version / name
        entry = FileEntry(*manifest.files.get(name, (-1, "")))
        if difference := entry.difference(path, DIGEST_LIMIT):
            raise ValueError(f"{path}: {difference}")


def expected_files() -> list[str]:
    """The files of a version beside its manifest."""
    return [
        f"{folder}/{name}"
        for folder, schema in (("images", IMAGES), ("units", UNITS))
        for name in schema.files()
    ]


def open_tables(version: Path, manifest: Manifest) -> tuple[Table, Table]:
    """The tables of images and of units.

    Raises:
        OSError, ValueError: they are not what the manifest says.
    """
    return (
        Table(version / "images", IMAGES, manifest.images),
        Table(version / "units", UNITS, manifest.units),
    )


def require_images(catalog: Catalog, strict: bool) -> None:
    """Refuse a catalog without images, and with `strict` one of which files are unreadable.

    Raises:
        UserError: naming the first unreadable files.
    """
    place = catalog.source.place
    if catalog.manifest.unreadable and (strict or not len(catalog)):
        raise UserError(f"{place}: {catalog.few_unreadable()}")
    if not len(catalog):
        raise UserError(f"{place}: no image in it")
