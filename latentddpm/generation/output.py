"""Files of generated pictures: where they go, and that they take no other file's place.

    --out FILE.png   that file
    --out FOLDER     PROMPT-SEED.png in it, or PROMPT-SEED-grid.png
    (none)           the same in the working directory
    --frames N       beside each of them, NAME-frames.png

Images that a PNG cannot hold are written as .npy with their metadata in NAME.json, and signals as
.wav or .npy with a plot, NAME.png, too; a grid is always an 8-bit PNG.

A name that is taken gets a number, `apple_2.png`, unless the file is to be replaced: with
`--overwrite`, or where `--out` names the very picture that is made again (`--from`). Two processes
that write the same name at once get two names: a file is linked to its name, which fails where
there is one.
"""

from __future__ import annotations

import itertools
import os
import re
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from latentddpm.data.pictures.wav import save_wav
from latentddpm.errors import UserError
from latentddpm.utils.files import write_json
from latentddpm.utils.images.animation import SUFFIXES, save_animation
from latentddpm.utils.images.pixel_format import RGB, PixelFormat
from latentddpm.utils.images.plots import plot
from latentddpm.utils.pixels import BESIDE, save_array, save_png

PLOT = ".png"
"""Suffix of the plot of a signal, beside its file."""
PLOT_SIZE = (200, 600)
"""Height and width of it, in pixels."""


def check_out(out: Path | None, count: int, suffix: str = ".png") -> None:
    """Refuse an output that is neither a folder nor, for a single picture, a file of its kind.

    Args:
        out: as given; None for the working directory.
        count: number of pictures.
        suffix: of their files, ".png", ".npy" or ".wav".

    Raises:
        UserError: it is neither.
    """
    if not _is_file_name(out):
        return
    if out.suffix.lower() != suffix:
        raise UserError(f"{out}: images are written as {suffix}; name a {suffix} file or a folder")
    if count > 1:
        raise UserError(f"{out}: one file for {count} images; name a folder, or --grid")


def targets(
    out: Path | None,
    prompts: Sequence[str],
    seeds: Sequence[int],
    grid: bool,
    suffix: str = ".png",
) -> list[Path]:
    """Files to write, as they are named before any of them is found to be taken.

    Args:
        out: as given, checked by `check_out`.
        prompts, seeds: of each image.
        grid: write one picture of all, a PNG.
        suffix: of the files of single images.
    """
    if _is_file_name(out):
        return [out]
    names = [f"{_slug(text)}-{seed}{suffix}" for text, seed in zip(prompts, seeds, strict=True)]
    if grid:
        names = [f"{_slug(prompts[0])}-{seeds[0]}-grid.png"]
    return [(out or Path()) / name for name in names]


def strip_file(file: Path) -> Path:
    """File of the strip of frames that belongs to a picture.

    Args:
        file: of the picture.
    """
    return file.with_name(f"{file.stem}-frames.png")


def check_writable(
    files: Iterable[Path],
    inputs: Iterable[Path | None],
    replace: bool,
    option: str = "--out",
) -> None:
    """Check, without writing anything, that files can be written.

    Args:
        files: all in one folder, which need not exist.
        inputs: files that are read, and must not be replaced.
        replace: whether the files may be replaced.
        option: that names them, for messages.

    Raises:
        UserError: something other than a folder is in the way, a folder is in the place of a file,
            or an input would be replaced.
        OSError: the folder cannot be written, or a name is not possible.
    """
    files = list(files)
    inputs = [path for path in inputs if path is not None and path.exists()]
    for file in files:
        try:
            os.lstat(file)
        except (FileNotFoundError, NotADirectoryError):
            continue
        if replace and file.is_dir():
            raise UserError(f"--overwrite: {file} is a folder; name another file with {option}")
        if replace and any(file.exists() and file.samefile(path) for path in inputs):
            raise UserError(f"--overwrite: {file} is read; name another file with {option}")
    folder = files[0].parent
    place = folder
    while not os.path.lexists(place):
        place = place.parent
    if not place.is_dir():
        raise UserError(f"{option} {folder}: {place} is not a folder; name another place")
    try:
        tempfile.TemporaryFile(dir=place).close()
    except OSError as error:
        error.filename = str(folder)
        raise


def write_picture(
    file: Path,
    pixels: np.ndarray,
    metadata: dict[str, Any],
    replace: bool,
    format: PixelFormat = RGB,
) -> Path:
    """Write a picture or signal, beside a file of the same name unless that is to be replaced.

    Args:
        file: to write.
        pixels: (H, W, C); of a signal (L, C), or its plot; of an animation (F, H, W, 3).
        metadata: see `save_png` and `save_array`.
        replace: whether the file may be replaced.
        format: of the values.

    Returns:
        The file that was written, `file` or one with a number.

    Raises:
        OSError: it cannot be written; a file that was there is still there.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    if replace:
        _save(file, pixels, metadata, True, format)
        return file
    beside = ()
    if file.suffix.lower() in BESIDE:
        beside = (".json", *(PLOT,) * (format.spatial_dims == 1))
    for name in _numbered(file):
        if any(map(os.path.lexists, (name, *map(name.with_suffix, beside)))):
            continue
        try:
            _save(name, pixels, metadata, False, format)
        except FileExistsError:  # since a moment
            continue
        return name


def _save(
    file: Path, values: np.ndarray, metadata: dict[str, Any], replace: bool, format: PixelFormat
) -> None:
    """Write a file in the format of its suffix, and of a signal its plot beside it."""
    suffix = file.suffix.lower()
    if suffix not in BESIDE:
        save = save_animation if suffix in SUFFIXES else save_png
        save(file, values, metadata, replace)
        return
    if suffix == ".wav":
        save_wav(file, values, format.rate, replace)
        write_json(file.with_suffix(".json"), metadata)
    else:
        save_array(file, values, metadata, replace)
    if format.spatial_dims == 1:
        save_png(file.with_suffix(PLOT), plot(format.to_images(values), *PLOT_SIZE))


def note_of_names(wanted: Sequence[Path], written: Sequence[Path]) -> str | None:
    """Sentence about files that got a number, or None where none did.

    Args:
        wanted: names of the files before any was found to be taken.
        written: their names.
    """
    moved = [pair for pair in zip(wanted, written, strict=True) if pair[0] != pair[1]]
    if not moved:
        return None
    old, new = moved[0]
    more = f", and {len(moved) - 1} more" if moved[1:] else ""
    return f"{old} is there already and is kept: written to {new}{more} (--overwrite replaces)"


def _is_file_name(out: Path | None) -> bool:
    return out is not None and bool(out.suffix) and not out.is_dir()


def _numbered(file: Path) -> Iterable[Path]:
    """Names for a file: its own, then with the numbers 2, 3, …"""
    yield file
    for number in itertools.count(2):
        yield file.with_name(f"{file.stem}_{number}{file.suffix}")


def _slug(text: str) -> str:
    return re.sub(r"\W+", "-", text.lower()).strip("-")[:48] or "image"
