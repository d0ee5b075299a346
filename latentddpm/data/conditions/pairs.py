"""Pairs: the second picture of every image, found by its name and looked at before training.

    by suffix   cat.png ─► cat.condition.png beside it            (folder, or member of a tar)
    by column   {"file_name": "cat.png", "depth": "depth/cat.png"}
                a path relative to the folder of the table; in a tar the name of a member

A pair has the shape of its image, at any size: both are scaled and cropped alike. What was found
about a pair is kept in `pairs.npy`, and is looked at again only if its file has changed.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from latentddpm.config.conditions import ConditionConfig
from latentddpm.data.catalog.catalog import Catalog
from latentddpm.data.images import UnreadableImage, examine_image
from latentddpm.data.places.union import Union
from latentddpm.data.prefetch import map_ahead
from latentddpm.data.sources import storage
from latentddpm.data.sources.metadata import FOLDER
from latentddpm.data.sources.packed.tar import member_places, split_key
from latentddpm.data.sources.tables import named_file
from latentddpm.errors import UserError
from latentddpm.utils.files import atomic_path

FOUND = np.dtype(
    [
        ("place", "u1", 32),
        ("size", "<i8"),
        ("mtime_ns", "<i8"),
        ("sha256", "u1", 32),
        ("height", "<u4"),
        ("width", "<u4"),
    ]
)
"""Record of a pair: a digest of its place, the stamp of its file, the digest of its bytes,
and its size in pixels, 0 for none."""


class Place(NamedTuple):
    """Place of the bytes of a pair.

    Attributes:
        path: of its file, or of the tar that holds it.
        name: in messages.
        offset, size: in the tar; None for a whole file.
    """

    path: str
    name: str
    offset: int | None = None
    size: int | None = None

    def read(self) -> bytes:
        """Bytes of the pair."""
        if self.offset is None:
            return storage.read(self.path)
        return storage.read(self.path, self.offset, self.size)


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of all N images of a catalog.

    Attributes:
        places: of the pair of each image.
        found: what they are, `FOUND` (N,).
        missing: images without a pair, or with one that cannot be read, each with the reason.
        misfits: images whose pair has another shape, each with both sizes in words.
    """

    places: Sequence[Place]
    found: np.ndarray
    missing: list[tuple[int, str]]
    misfits: list[tuple[int, str]]


def find_pairs(
    catalog: Catalog, name: str, settings: ConditionConfig, folder: Path | None = None
) -> Pairs:
    """Pairs of the images of a catalog; every image has one that can be read.

    Args:
        catalog: of the images.
        name: of the condition.
        settings: of the condition.
        folder: to keep what was found in, see `examine_pairs`.

    Raises:
        UserError: pairs are missing or of another shape; the message counts them and names one.
    """
    pairs = examine_pairs(catalog, settings, folder)
    for problems, what in (
        (pairs.missing, "images have no picture"),
        (pairs.misfits, "pictures have another shape than their image"),
    ):
        if problems:
            _, first = problems[0]
            raise UserError(
                f"conditions.{name}: {len(problems)} of {len(catalog)} {what}, such as {first}"
            )
    return pairs


NO_FILE, NO_MEMBER, NO_VALUE = "no such file", "no such member", "no value"
"""Ends of the reasons why an image has no pair at all."""


def is_absent(problem: str) -> bool:
    """True where a `problem` of a pair is that there is none."""
    return problem.endswith((NO_FILE, NO_MEMBER, NO_VALUE))


def examine_pairs(
    catalog: Catalog,
    settings: ConditionConfig,
    folder: Path | None = None,
    optional: bool = False,
) -> Pairs:
    """Pairs of the images of a catalog, with what is wrong about them.

    Args:
        catalog: of the images.
        settings: of the condition.
        folder: to keep what was found in, made when missing; None for nowhere.
        optional: an image whose row names no pair is one without, not an error.

    Raises:
        UserError: shards of a kind that holds no second pictures, or a table that is malformed.
        OSError: the folder cannot be written.
    """
    places = list(_places(catalog, settings, optional))
    found = np.zeros(len(catalog), FOUND)
    for row, place in enumerate(places):
        text = f"{place.path}\n{place.offset}\n{place.size}"
        found["place"][row] = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
    known = _known(folder, found)

    def look(row: int) -> str:
        """Look at a pair, and return what is wrong with it."""
        place, one = places[row], found[row]
        if not place.path:
            return f"{place.name}: {NO_VALUE}"
        try:
            stamp = storage.stamp(place.path)
            one["size"], one["mtime_ns"] = stamp.size, stamp.mtime_ns
            if place.offset == 0 and place.size is None:
                return f"{place.name}: {NO_MEMBER}"
            if stamp.mtime_ns >= 0 and known is not None and _same(known[row], one):
                found[row] = known[row]
                return ""
            data = place.read()
            facts, _ = examine_image(data, place.name)
        except FileNotFoundError:
            return f"{place.name}: {NO_FILE}"
        except (UnreadableImage, OSError) as error:
            return str(error)
        one["sha256"] = np.frombuffer(hashlib.sha256(data).digest(), np.uint8)
        one["height"], one["width"] = facts.height, facts.width
        return ""

    size = [int(one) for one in catalog.images["size"]]  # about that of its pair
    looked = map_ahead(look, range(len(catalog)), weigh=size.__getitem__)
    missing = [(row, problem) for row, problem in looked if problem]
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(folder / "pairs.npy") as temporary, open(temporary, "wb") as stream:
            np.save(stream, found, allow_pickle=False)
    return Pairs(places, found, missing, list(_misfits(catalog, places, found)))


def _known(folder: Path | None, found: np.ndarray) -> np.ndarray | None:
    """Records of an earlier look, if they are of the same pairs in the same order."""
    try:
        known = np.load(folder / "pairs.npy", allow_pickle=False) if folder else None
    except (OSError, ValueError):
        return None
    if known is None or known.dtype != FOUND or known.shape != found.shape:
        return None
    return known


def _same(known: np.void, now: np.void) -> bool:
    """True where a pair that was read before has not changed."""
    keys = ("size", "mtime_ns")
    same = bool((known["place"] == now["place"]).all())
    return same and known["height"] > 0 and all(known[key] == now[key] for key in keys)


def _misfits(
    catalog: Catalog, places: Sequence[Place], found: np.ndarray
) -> Iterator[tuple[int, str]]:
    """Images whose pair would be cropped in another way, by more than a pixel of it."""
    sizes = (catalog.images[key].astype(np.int64) for key in ("width", "height"))
    (width, height), (own_width, own_height) = (
        sizes,
        (found[key].astype(np.int64) for key in ("width", "height")),
    )
    off = np.abs(own_width - width * own_height / np.maximum(height, 1))
    for row in np.flatnonzero((own_height > 0) & (off > 1)):
        own = f"{own_width[row]}×{own_height[row]} pixels"
        image = f"{catalog.where(row)} of {width[row]}×{height[row]}"
        yield int(row), f"{places[row].name}: {own}, beside {image}"


def _places(catalog: Catalog, settings: ConditionConfig, optional: bool) -> Iterator[Place]:
    """Place of the pair of each image, whether it is there or not."""
    by_column = settings.column != FOLDER
    last, members, names = None, {}, {}
    for row in range(len(catalog)):
        if optional and by_column and catalog.row(row).columns.get(settings.column) in (None, ""):
            yield Place("", f"{catalog.where(row)}, column {settings.column!r}")
            continue
        source, unit, name = catalog.home(row)
        if source.kind == "folder":
            where = os.path.splitext(name)[0] + settings.suffix
            if by_column:
                where = _named(catalog, row, settings.column)
            path = storage.join(source.place, where)
            yield Place(path, path)
            continue
        if source.kind != "tar":
            raise UserError(
                f"{source.place}: {source.kind} holds one picture for each image; a second one is "
                "read from a folder or a tar"
            )
        if (source.place, unit) != last:
            path = source.path(unit)
            members = member_places(path)
            names, last = (
                {offset: name for name, (offset, _) in members.items()},
                (source.place, unit),
            )
        where = split_key(names.get(int(catalog.images["offset"][row]), ""))[0] + settings.suffix
        if by_column:
            where = _named(catalog, row, settings.column)
        yield Place(path, f"{path}: {where}", *members.get(where, (0, None)))


def _named(catalog: Catalog, row: int, column: str) -> str:
    """Path of a pair that a column names, relative to the place of the data."""
    found = catalog.row(row)
    place = catalog.row_place(row, found)
    if found.problem:
        raise UserError(found.problem)
    if column not in found.columns:
        raise UserError(f"{place}: no column {column!r}, which names the picture of the image")
    tables = [str(one[0]) for one in catalog.manifest.metadata]
    if isinstance(catalog.source, Union):  # relative to the place of the image
        tables = [name.partition("/")[2] for name in tables]
    return named_file(found, column, place, tables)
