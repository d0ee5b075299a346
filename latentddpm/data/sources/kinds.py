"""Kinds of files that are read as data, and kinds that are named instead.

Everything here is a table from which `data.sources.walk` decides and from which the documentation
lists "what is read". Suffixes are in lower case and are compared in any case. Whatever looks like
a picture, a caption or a table of captions and is not read is in one of the tables `…_NAMED`,
with what to do about it.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable

from PIL import features

READS_AVIF = "avif" in features.modules and bool(features.check("avif"))
"""True where the installed Pillow reads AVIF: version 11.3 or newer, built with libavif."""

AVIF_NAMED = "needs Pillow 11.3 or newer: pip install --upgrade pillow"
_AS_PNG = "save it as PNG"
_FRAMES = "save its frames as PNG"

# === Pictures ===

PICTURES_READ = {
    **dict.fromkeys((".png", ".apng"), "PNG"),
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".pjpeg", ".pjp", ".mpo"), "JPEG"),
    ".webp": "WEBP",
    ".bmp": "BMP",
    **dict.fromkeys((".tif", ".tiff"), "TIFF"),
    ".gif": "GIF",
    **({".avif": "AVIF"} if READS_AVIF else {}),
}
"""Suffix of a picture that is read → its format. The format of a file follows from its bytes."""

PICTURES_NAMED = {
    **({} if READS_AVIF else {".avif": AVIF_NAMED}),
    **dict.fromkeys(
        (".heic", ".heif", ".hif"), "save it as PNG or JPEG; the package pillow-heif reads HEIC"
    ),
    ".jxl": "save it as PNG; the package pillow-jxl-plugin reads JPEG XL",
    **dict.fromkeys((".jp2", ".j2k", ".jpf", ".jpx", ".j2c", ".jpc"), _AS_PNG + "; Pillow can"),
    **dict.fromkeys((".jxr", ".wdp", ".hdp"), "save it as PNG; the package imagecodecs reads it"),
    **dict.fromkeys(
        (".pbm", ".pgm", ".ppm", ".pnm", ".pfm", ".tga", ".qoi", ".dds", ".pcx", ".sgi", ".dib"),
        _AS_PNG + "; Pillow can",
    ),
    **dict.fromkeys((".ico", ".icns", ".cur", ".xbm", ".xpm"), _AS_PNG + "; Pillow can"),
    **dict.fromkeys(
        (".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".rw2", ".raf", ".raw"),
        "develop it to PNG or JPEG; the package rawpy reads camera files",
    ),
    **dict.fromkeys((".exr", ".hdr"), "save it as PNG; the package imageio reads it"),
    **dict.fromkeys((".svg", ".svgz"), "draw it as PNG; the package cairosvg does"),
    **dict.fromkeys((".psd", ".psb", ".xcf", ".kra", ".ai", ".eps"), _AS_PNG + " (export it)"),
    ".pdf": "save its pages as PNG",
    ".avifs": _FRAMES,
    **dict.fromkeys((".lnk", ".url", ".webloc"), "put the file itself here, not a shortcut to it"),
    **dict.fromkeys((".mp4", ".webm", ".mov", ".avi", ".mkv", ".m4v", ".gifv"), _FRAMES),
}
"""Suffix of a picture that is not read → what to do with it."""

ARRAYS_READ = {".npy": "NPY", ".npz": "NPZ", ".wav": "WAV"}
"""Suffix of an array that is read as an image or a signal → its format. A place is one of pictures
or of arrays: beside pictures (features, masks, sounds) arrays are not read."""

ARRAYS_NAMED = "an array beside pictures; give arrays a folder of their own"
"""Advice for an array that is not read."""

MAGIC = (
    (0, b"\x89PNG\r\n\x1a\n", ".png"),
    (0, b"\xff\xd8\xff", ".jpg"),
    (0, b"GIF8", ".gif"),
    (0, b"II*\0", ".tif"),
    (0, b"MM\0*", ".tif"),
    (8, b"WEBPVP8", ".webp"),
    (4, b"ftypavif", ".avif"),
    (4, b"ftypheic", ".heic"),
    (4, b"ftypmif1", ".heic"),
    (0, b"\xff\x0a", ".jxl"),
    (0, b"\0\0\0\x0cJXL ", ".jxl"),
)
"""Bytes of a picture, with their place in the file, and the suffix of its format."""

# === Captions ===

CAPTION_SUFFIXES = (".txt", ".caption")
"""Suffixes of sidecars, text files with the caption of the picture beside them."""

CAPTIONS_NAMED = {
    **dict.fromkeys(
        (".cap", ".captions", ".text", ".prompt", ".tag", ".tags", ".wd14", ".booru", ".desc"),
        "not read; rename it to NAME.txt",
    ),
    **dict.fromkeys(
        (".json", ".yaml", ".yml", ".toml", ".xml", ".csv", ".tsv", ".jsonl"),
        "not read beside a picture; write the caption to NAME.txt, or all to metadata.jsonl",
    ),
    **dict.fromkeys(
        (".md", ".rtf", ".doc", ".docx", ".srt", ".vtt"),
        "not read; save it as plain text, NAME.txt",
    ),
}
"""Suffix of a file with a picture's name, which may hold its caption → what to do with it."""

NO_CAPTIONS = ("readme", "license", "licence", "copying", "notice", "requirements", "changelog")
"""Names, without suffix, of text files that are no captions."""

NO_TEXT = (
    *("nan", "NaN", "-nan", "-NaN", "NAN", "null", "NULL", "Null", "None", "NONE"),
    *("<NA>", "NA", "N/A", "n/a", "#N/A", "#NA", "inf", "-inf", "Infinity", "-Infinity"),
)
"""Texts that programs write for a missing value: as a whole text they are no caption."""

CAPTION_COLUMNS = ("text", "caption", "prompt", "captions", "prompts")
"""Columns that hold captions, in any case: of an image's the first that has a text is used."""

# === Tables ===

TABLES_READ = ("metadata.jsonl", "metadata.csv", "metadata.tsv")
"""Names of tables of captions, in any case, in any folder."""

TABLES_NAMED = {
    **dict.fromkeys((".jsonl", ".ndjson"), "rename it to metadata.jsonl"),
    **dict.fromkeys((".csv", ".tsv"), "rename it to metadata{suffix}"),
    ".json": "save it as metadata.jsonl, one object with file_name and text on each line",
    **dict.fromkeys(
        (".arrow", ".feather", ".xlsx", ".xls", ".ods", ".sqlite", ".db"),
        "save its rows as metadata.csv with the columns file_name and text",
    ),
}
"""Suffix of a table that is not read under its name → what to do with it."""

NAME_COLUMNS = (
    *("file_name", "filename", "file", "image", "image_path", "image_file", "image_name"),
    *("img", "img_path", "file_path", "filepath", "path"),
)
"""Columns that name a row's image, in any case; the first that a row has is used."""

# === Archives ===

SHARD_SUFFIXES = (
    *(".parquet", ".tar", ".tfrecord", ".tfrecords"),
    *(".array_record", ".arrayrecord"),
)
"""Suffixes of shards, which are read where --data names them or a folder of nothing else."""

ARCHIVES_NAMED = {
    **dict.fromkeys(SHARD_SUFFIXES, "give it its own --data, several as 'NAME-{0000..0099}.tar'"),
    ".parquet": "with pictures in it give it its own --data; of a table of captions save the rows "
    "as metadata.csv with the columns file_name and text",
    **dict.fromkeys(
        (".zip", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar", ".lmdb", ".mdb", ".h5"),
        "unpack it",
    ),
}
"""Suffix of an archive in a folder of images → what to do with it."""

NOT_DATA = ("thumbs.db", "ehthumbs.db", "desktop.ini")
"""Files that systems leave in folders of pictures."""


def suffix_of(name: str) -> str:
    """Suffix of a file `name` with its dot, in lower case."""
    return os.path.splitext(name)[1].lower()


def is_picture(name: str) -> bool:
    """True for a file `name` with the suffix of a picture that is read."""
    return suffix_of(name) in PICTURES_READ


def is_array(name: str) -> bool:
    """True for a file `name` with the suffix of an array that is read."""
    return suffix_of(name) in ARRAYS_READ


def is_image(name: str) -> bool:
    """True for a file `name` with the suffix of an image that is read: a picture, or an array."""
    return is_picture(name) or is_array(name)


def is_table(name: str) -> bool:
    """True for the `name` of a table of captions."""
    return name.lower() in TABLES_READ


def is_shard(name: str) -> bool:
    """True for a file `name` with the suffix of a shard."""
    return name.lower().endswith(SHARD_SUFFIXES)


def canonical(name: str) -> str:
    """Form of a path in which those that only look alike are equal.

    That is Unicode's NFC, with "/" for a backslash and without spaces at the ends.
    """
    if name.isascii():
        return name.replace("\\", "/").strip()
    return unicodedata.normalize("NFC", name).replace("\\", "/").strip()


def first_column(columns: Iterable[str], wanted: tuple[str, ...]) -> str:
    """First of the `wanted` columns that is among `columns`, in any case; "" for none."""
    known = {}
    for column in columns:
        known.setdefault(column.strip().casefold(), column)
    return next((known[name] for name in wanted if name in known), "")
