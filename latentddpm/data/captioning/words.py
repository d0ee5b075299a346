"""Words of a name: `red_apple_01.png` says "red apple", `IMG_1234.jpg` says nothing.

    name ─► no suffix ─► parts at _ - . space and before a capital ─► parts with digits go ─► words

A name of a camera, of a program or of chance (a number, a UUID, a hash) has no words, and neither
has a folder that only says that there are images in it. kohya's folders `10_sks dog` say after the
number of repeats what their images show.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from typing import NamedTuple

OF_CAMERAS = (
    *("img", "imgp", "image", "images", "dsc", "dscn", "dscf", "dcim", "pict", "pic", "pics"),
    *("mvimg", "pxl", "gopr", "gopro", "dji", "wp", "vid", "mov", "cimg", "sam", "kodak", "scan"),
    *("photo", "photos", "picture", "pictures", "foto", "fotos", "bild", "burst", "pano", "hdr"),
    *("screenshot", "screen", "shot", "capture", "snapshot", "frame", "frames", "still"),
)
"""Words that cameras and phones put into names."""

OF_PROGRAMS = (
    *("untitled", "unnamed", "unknown", "file", "files", "download", "downloads", "downloaded"),
    *("mask", "masks", "condition", "conditioning"),
    *("copy", "copies", "edit", "edited", "final", "new", "tmp", "temp", "crop", "cropped"),
    *("resized", "resize", "thumb", "thumbnail", "output", "outputs", "out", "input", "inputs"),
    *("example", "examples", "sample", "samples", "shard", "part", "index", "item", "id", "no"),
    *("whatsapp", "fb", "received", "signal", "telegram", "export", "exported", "generated"),
    *(
        "pexels",
        "unsplash",
        "pixabay",
        "istock",
        "shutterstock",
        "gettyimages",
        "tumblr",
        "flickr",
    ),
    *("nef", "cr2", "arw", "dng", "orf", "rw2"),
)
"""Words that programs put into names."""

OF_FOLDERS = (
    *("train", "training", "val", "valid", "validation", "test", "testing", "data", "dataset"),
    *(
        "datasets",
        "raw",
        "misc",
        "other",
        "others",
        "all",
        "folder",
        "dir",
        "set",
        "src",
        "source",
    ),
    *("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "small", "large", "full", "main"),
)
"""Words of folders that say nothing of what their images show."""

SAY_NOTHING = frozenset((*OF_CAMERAS, *OF_PROGRAMS, *OF_FOLDERS))

REPEATS = re.compile(r"(\d+)_(.+)")
"""Name of a folder as kohya's scripts read it: repeats, then what the images show."""

UUID = re.compile(r"[0-9a-f]{8}(-?[0-9a-f]{4}){3}-?[0-9a-f]{12}", re.IGNORECASE)
HEXADECIMAL = re.compile(r"[0-9a-f]{16,}", re.IGNORECASE)
HASH = re.compile(r"[0-9a-z_-]{20,}", re.IGNORECASE)
OF_CAPITALS = re.compile(r"(?<=[a-z])(?=[A-Z][a-z])")
"""Place before a capital inside a word: redApple."""
SHORT = re.compile(r"\d{1,4}[a-z]{1,2}|\d{1,2}[a-z]{3,}", re.IGNORECASE)
"""Number with letters that is a word: 3d, 80s, 2nd, 1girl."""
NUMBERED = re.compile(r"^([^\W\d_]{2,})\d+$")
"""Word with a number behind it: apple2."""
LINKS = frozenset(("of", "from", "with", "in", "on", "at", "by"))
"""Words behind which one that says nothing elsewhere belongs to a sentence: a photo of a dog."""
VOWELS = frozenset("aeiouy")


class Repeats(NamedTuple):
    """Repeats of a folder that is named as kohya's are.

    Attributes:
        count: how often its images are used, relative to others.
        words: what they show.
    """

    count: int
    words: str


def words_of_name(name: str) -> str:
    """Words of a file's name, in small letters where it has no capitals of its own; "" for none.

    Args:
        name: of an image, POSIX, with or without folders.
    """
    name = name.rpartition("/")[2]
    stem = name.rpartition(".")[0] or name
    return _words(stem)


def words_of_folder(name: str) -> str:
    """Words of the nearest folder of an image that says something; "" for none.

    Args:
        name: of the image, POSIX, with its folders.
    """
    for folder in reversed(name.split("/")[:-1]):
        named = repeats_of(folder)
        words = named.words if named else _words(folder)
        if words:
            return words
    return ""


def repeats_of(folder: str) -> Repeats | None:
    """Repeats that the name of a folder gives, such as 10 for `10_sks dog`; None for no such name.

    Args:
        folder: its name, without the folders above it.
    """
    match = REPEATS.fullmatch(folder.strip())
    if match is None or int(match[1]) == 0:
        return None
    words = " ".join(re.split(r"[_\s]+", match[2].strip("_ ")))
    return Repeats(int(match[1]), words) if any(map(str.isalpha, words)) else None


def _words(stem: str) -> str:
    """Words of a name without suffix and folders."""
    stem = unicodedata.normalize("NFC", stem).strip()
    if (
        UUID.search(stem)
        or HEXADECIMAL.fullmatch(stem)
        or (HASH.fullmatch(stem) and _by_chance(stem))
    ):
        return ""
    stem = re.sub(r"(?<=\w)['’](?=\w)", "", stem)
    parts = [one for part in re.split(r"[\W_]+", stem) for one in _at_capitals(part)]
    parts = [NUMBERED.sub(r"\1", part) for part in parts]
    parts = [part for part in parts if part.isalpha() or SHORT.fullmatch(part)]
    says = [part.casefold() not in SAY_NOTHING for part in parts]
    if not any(map(_is_word, itertools.compress(parts, says))):
        return ""
    first, last = says.index(True), len(says) - says[::-1].index(True)
    if first and parts[first].casefold() in LINKS:  # "photo of a dog", but "IMG_red_apple"
        first -= 1
    text = " ".join(parts[first:last])
    return text.lower() if text.isupper() or text.istitle() else text


def _at_capitals(part: str) -> list[str]:
    """Words of one part of a name: redApple is two of them, WhatsApp one that says nothing."""
    if part.casefold() in SAY_NOTHING or not OF_CAPITALS.search(part):
        return [part]
    return OF_CAPITALS.sub(" ", part).lower().split()


def _is_word(part: str) -> bool:
    """True for what can be a word: three letters or more with a vowel, or of another script."""
    if not part.isascii():
        return True
    if SHORT.fullmatch(part):
        return len(part) > 4
    return len(part) >= 3 and not VOWELS.isdisjoint(part.casefold())


def _by_chance(stem: str) -> bool:
    """True for letters and digits in an order of chance: digits inside, and few vowels."""
    changes = len(re.findall(r"(?<=[a-z])\d|\d(?=[a-z])", stem, re.IGNORECASE))
    return changes >= 3 or ("_" not in stem and "-" not in stem and changes >= 1)
