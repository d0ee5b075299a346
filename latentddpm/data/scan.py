"""A folder of images: which files are there, and which of them can be read.

    find_images(folder) ──► scan: every file decoded once ──► records, and what is broken

Nothing here writes, renames or deletes: the folder belongs to the user. A scan starts without
TensorFlow.
"""

from __future__ import annotations

import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from latentddpm.data.images import UnreadableImage, read_whole
from latentddpm.errors import UserError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
"""Suffixes looked for, in any case. What a file holds is told by its bytes, not its suffix."""


@dataclass(frozen=True)
class ImageRecord:
    """One readable image.

    Attributes:
        path: POSIX path relative to the folder.
        width, height: pixels, after EXIF rotation.
        transparent: whether at least one pixel is not opaque.
    """

    path: str
    width: int
    height: int
    transparent: bool


@dataclass(frozen=True)
class Scan:
    """What a folder holds: `records` sorted by path, and `(path, reason)` of `unreadable`."""

    folder: Path
    records: list[ImageRecord]
    unreadable: list[tuple[str, str]]


def find_images(folder: str | Path) -> list[Path]:
    """All image files below `folder`, at any depth, sorted by relative POSIX path.

    Hidden files and folders are skipped. A linked file counts when it points to a file inside
    `folder`; other linked files are left out with a warning, linked folders are not entered.

    Returns:
        Paths that begin with `folder`; at least one.

    Raises:
        UserError: when the folder is missing, is a file, or holds no image.
    """
    folder = Path(folder)
    if not folder.is_dir():
        problem = "is a file, not a folder of images" if folder.exists() else "no such folder"
        raise UserError(f"{folder}: {problem}")
    root = folder.resolve()
    found, strayed = [], []
    for here, folders, names in os.walk(folder, onerror=_raise):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(here, name)
            if name.startswith(".") or path.suffix.lower() not in IMAGE_SUFFIXES:
                continue
            if path.is_symlink() and not path.resolve().is_relative_to(root):
                strayed.append(path)
            elif path.is_file():
                found.append(path)
    links = f"{len(strayed)} links that leave the folder were not followed" if strayed else ""
    if not found:
        suffixes = " ".join(IMAGE_SUFFIXES)
        raise UserError(
            f"{folder}: no image in it (looked for {suffixes})" + (links and f"; {links}")
        )
    if strayed:
        warnings.warn(f"{folder}: {links}, such as {strayed[0]}", stacklevel=2)
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def scan(
    folder: str | Path, workers: int | None = None, *, strict: bool = False, quiet: bool = False
) -> Scan:
    """Decode every image below `folder` in full: what a truncated file lacks is found here.

    Args:
        workers: threads that decode; default one a core, at most 32.
        strict: make the first unreadable files an error instead of a part of the result.
        quiet: no progress bar (shown on stderr when the scan takes over two seconds).

    Raises:
        UserError: as `find_images`; when no file is readable; when `strict` and one is not.
    """
    folder = Path(folder)
    paths = find_images(folder)
    records, unreadable = [], []
    with ThreadPoolExecutor(workers or min(32, os.cpu_count() or 1)) as pool:
        try:
            answers = pool.map(lambda path: _examine(path, folder), paths)
            bar = tqdm(answers, "scan", len(paths), unit="image", delay=2, disable=quiet)
            for answer in bar:
                if isinstance(answer, ImageRecord):
                    records.append(answer)
                else:
                    unreadable.append(answer)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    if unreadable and (strict or not records):
        few = "; ".join(f"{path}: {reason}" for path, reason in unreadable[:3])
        more = "; ..." if len(unreadable) > 3 else ""
        raise UserError(
            f"{folder}: {len(unreadable)} of {len(paths)} images cannot be read ({few}{more})"
        )
    return Scan(folder, records, unreadable)


def _examine(path: Path, folder: Path) -> ImageRecord | tuple[str, str]:
    """The record of a file, or its path and what is wrong with it."""
    name = path.relative_to(folder).as_posix()
    try:
        image = read_whole(path)
    except UnreadableImage as error:
        return name, error.reason
    return ImageRecord(name, image.width, image.height, image.mode == "RGBA")


def _raise(error: OSError) -> None:
    raise error
