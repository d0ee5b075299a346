"""Walk over a folder of images: which files are there to be read, and what is passed over.

    place ──► contents of each folder: files, folders ──► files in the order of their whole paths
                          └──► findings: links, hidden pictures, work of latentddpm

- Hidden files and folders, and what systems leave behind, are not read.
- A folder that latentddpm made (a run, a catalog, a latents cache, a model, an evaluation) is not
  read, so the sample grids of a run never become its training images.
- A link is followed if it stays in the place or leads into a cache of the Hugging Face Hub. Every
  picture counts once, at its own place if that is read, otherwise at the first link to it.
  So loops of links end. Other links are named.

Memory holds the names of one folder and of its parents, and 100 bytes for each followed link.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from latentddpm.data.findings import Findings
from latentddpm.data.sources import storage
from latentddpm.data.sources.kinds import (
    CAPTION_SUFFIXES,
    NOT_DATA,
    canonical,
    is_array,
    is_image,
    is_picture,
    is_table,
    suffix_of,
)

OWN_WORK = (
    ("a run", ("config.yaml", "log.jsonl")),
    ("a run", ("config.yaml", "checkpoints")),
    ("a model", ("pipeline.json",)),
    ("a latents cache", ("index.json", "moments.npy")),
    ("a latents cache", ("partial.json", "partial.npy")),
    ("an evaluation", ("evaluation.json",)),
    ("images of an evaluation", ("setting.json",)),
)
"""Work of latentddpm → names that are together in a folder of it."""

CATALOG_VERSION = re.compile(r"version-\d{6}")
"""Name of a folder in a catalog."""

RUN_PARTS = (
    *("checkpoints", "conditions", "latents", "catalog", "log.jsonl", "model", "samples"),
    "tensorboard",
)
"""Parts of a run that are not read where the place itself holds one."""

_COPY = "copy all with what links lead to: cp -rL {place} NEW"


@dataclass(frozen=True)
class Content:
    """Content of one folder that is there to be read.

    Attributes:
        folder: path relative to the place, with "/" at its end; "" for the place itself.
        files: names of files, sorted.
        folders: names of folders, sorted.
    """

    folder: str
    files: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)

    @cached_property
    def sidecars(self) -> dict[str, list[str]]:
        """Text files by the `stem` of the pictures that they are captions of."""
        found: dict[str, list[str]] = {}
        for name in self.files:
            if suffix_of(name) in CAPTION_SUFFIXES:
                found.setdefault(stem(name), []).append(name)
        for names in found.values():
            names.sort(key=lambda name: CAPTION_SUFFIXES.index(suffix_of(name)))
        return found

    @cached_property
    def stems(self) -> set[str]:
        """Stems of all images; see `stem`."""
        return {stem(name) for name in self.files if is_image(name)}

    def is_second(self, name: str, suffixes: Iterable[str]) -> bool:
        """True for the second picture of an image beside it, such as `cat.condition.png`.

        Args:
            name: of a file.
            suffixes: with which second pictures end.
        """
        ends = (one for one in suffixes if name.lower().endswith(one.lower()))
        return any(canonical(name[: -len(one)]) in self.stems for one in ends)


def stem(name: str) -> str:
    """Stem by which a picture and its text file belong together: without the last suffix."""
    return canonical(os.path.splitext(name)[0])


class Walk:
    """One walk over a place.

    Args:
        place: the folder.
        findings: where to note what is passed over; None for nowhere.
    """

    def __init__(self, place: str, findings: Findings | None = None) -> None:
        self.place, self.findings = place, findings
        self._root = None if storage.is_remote(place) else os.path.realpath(place)
        self._seen: set[str] = set()  # what links lead to

    def contents(self, folder: str = "") -> Iterator[Content]:
        """Contents of a folder and of all folders in it.

        Args:
            folder: path relative to the place, with "/" at its end.
        """
        content = self.content(folder)
        yield content
        for name in content.folders:
            yield from self.contents(f"{folder}{name}/")

    def files(self, folder: str = "") -> Iterator[tuple[str, Content]]:
        """Files below a folder in the order of their paths, each with what is beside it.

        Args:
            folder: see `contents`.
        """
        content = self.content(folder)
        both = [*content.files, *(name + "/" for name in content.folders)]
        for name in sorted(both, key=storage.order):
            if name[-1] == "/":
                yield from self.files(folder + name)
            else:
                yield folder + name, content

    def content(self, folder: str) -> Content:
        """Content of one folder.

        Args:
            folder: see `contents`.

        Raises:
            OSError: it cannot be listed.
        """
        items = storage.items(storage.join(self.place, folder) if folder else self.place)
        content, made = Content(folder), _made_by_us(items)
        if made and folder:
            self._note("own_work", folder, made)
            return content
        for item in items:
            name, kind = item
            if made and name in RUN_PARTS:
                self._note("own_work", name, f"part of {made}")
            elif name.startswith("."):
                self._hidden(folder, item)
            elif name.lower() not in NOT_DATA and name != "__MACOSX":
                if kind == "link":
                    kind = self._link(folder + name)
                if kind == "file":
                    content.files.append(name)
                elif kind == "folder":
                    content.folders.append(name)
        return content

    def _note(self, key: str, name: str, detail: str) -> None:
        if self.findings is not None:
            self.findings.note(key, name, detail)

    def _hidden(self, folder: str, item: storage.Item) -> None:
        """Note a hidden picture, or a hidden folder with one directly in it."""
        if self.findings is None or item.name.startswith(("._", ".tmp-")):
            return  # what macOS and our own writers leave behind
        path = folder + item.name
        if item.kind == "file" and is_image(item.name):
            self._note("hidden", path, "")
        elif item.kind == "folder" and self._root is not None:
            try:
                inside = storage.items(storage.join(self.place, path))
            except OSError:
                return
            for one in inside:
                if one.kind != "folder" and is_image(one.name) and not one.name.startswith("._"):
                    self._note("hidden", f"{path}/{one.name}", "")

    def _link(self, name: str) -> str:
        """Kind of what a link leads to: "file", "folder", or "" if it is not followed."""
        real = os.path.realpath(storage.join(self.place, name))
        if not os.path.exists(real):
            self._note("link_not_followed", name, "leads to nothing")
            return ""
        kind = "folder" if os.path.isdir(real) else "file"
        inside = os.path.relpath(real, self._root)
        if inside == ".." or inside.startswith("../"):
            if suffix_of(name) in CAPTION_SUFFIXES or is_table(name):
                return kind  # read, or refused with its reason when captions are
            if not in_hub_cache(real):
                remedy = "leads out of the folder; " + _COPY.format(place=self.place)
                self._note("link_not_followed", name, remedy)
                return ""
        elif not _is_hidden(inside) and (kind == "folder" or is_image(inside)):
            self._note("link_once", name, f"to {inside}")
            return ""
        if kind == "file" and not is_image(name):
            return kind  # the same text or table may belong to several pictures
        if real in self._seen:
            self._note("link_once", name, "read before")
            return ""
        self._seen.add(real)
        return kind


def in_hub_cache(path: str) -> bool:
    """True for a real path in a repository of a Hub cache: below `blobs` beside `snapshots`.

    Args:
        path: of a file or folder, without links.
    """
    return any(
        parent.name in ("blobs", "snapshots")
        and (parent.parent / "blobs").is_dir()
        and (parent.parent / "snapshots").is_dir()
        for parent in (Path(path), *Path(path).parents)
    )


SECOND = ".condition.png"
"""End of the name of a second picture, if a condition names no other."""


MASK = ".mask.png"
"""End of the name of a mask of the loss, as other programs name it."""


class Second(NamedTuple):
    """Second pictures of images, which a condition reads: they are no images of a folder.

    Attributes:
        suffixes: ends of their names, after that of an image beside them: `.condition.png`.
        columns: of tables, that name them.
    """

    suffixes: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()


NO_SECOND = Second()


def holds_arrays(place: str) -> bool:
    """True for a place with arrays and without a picture: its images are the arrays.

    Args:
        place: the folder.
    """
    arrays = False
    for name, _ in Walk(place).files():
        if is_picture(name):
            return False
        arrays = arrays or is_array(name)
    return arrays


def tables(place: str) -> list[str]:
    """Names of the tables of captions at a place and in its folders, sorted.

    Args:
        place: the folder.
    """
    found = [
        content.folder + name
        for content in Walk(place).contents()
        for name in content.files
        if is_table(name)
    ]
    return sorted(found, key=lambda name: (name.count("/"), storage.order(name)))


def _is_hidden(path: str) -> bool:
    return any(part.startswith(".") for part in path.split("/") if part != ".")


def _made_by_us(items: list[storage.Item]) -> str:
    """Name of what a folder with `items` is if latentddpm made it; "" otherwise."""
    names = {item.name for item in items}
    for made, marks in OWN_WORK:
        if names.issuperset(marks):
            return made
    if any(item.kind == "folder" and CATALOG_VERSION.fullmatch(item.name) for item in items):
        return "a catalog"
    return ""
