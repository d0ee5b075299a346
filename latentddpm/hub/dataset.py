"""Choice of the files of a data set's repository: the shards of a split, or its pictures.

    hf://datasets/owner/name            the split "train" where the names tell splits, else all
    hf://datasets/owner/name/test       that split
    hf://datasets/owner/name/en/test    a split of a subset, which is a folder
    hf://datasets/owner/name/a.parquet  that file, or that folder

A split is a word in a file's path, as in `data/train-00000-of-00004.parquet`. Scripts are never
run: `@refs/convert/parquet` is the Hub's own copy of every data set, in parquet.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Callable, Iterable, Sequence

from latentddpm.errors import UserError, nearest
from latentddpm.hub.choice import check_file

TRAIN = "train"
SPLITS = ("train", "training", "validation", "valid", "val", "dev", "test", "testing", "eval")
"""Words for splits in the paths of files."""
PARQUET = "@refs/convert/parquet"
SHARDS = (".parquet",), (".tar",), (".tfrecord", ".tfrecords"), (".array_record", ".arrayrecord")
"""Suffixes of shards; of several kinds in a repository the first is taken."""
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")
BESIDE = (".txt", ".caption", ".jsonl", ".csv", ".tsv")
"""Suffixes of captions beside pictures."""


def choose_data(names: Iterable[str], path: str, where: str) -> list[str]:
    """Files of a repository of a data set that are read.

    Args:
        names: of all its files.
        path: a file, a folder, a split, or a subset and a split; "" for the training split.
        where: the address, for messages.

    Raises:
        UserError: there is none, the path names none, or several subsets are left.
    """
    names = sorted(name for name in names if not name.startswith("."))
    if path in names:
        check_file(path, where, exists=False)  # no pickle, no code
        if not path.lower().endswith((*PICTURES, *(one for kind in SHARDS for one in kind))):
            raise UserError(f"{where}: {path} is no shard and no picture; name a split or a shard")
        return [path]
    pictures = [name for name in names if name.lower().endswith(PICTURES)]
    stems = {posixpath.join(posixpath.dirname(name), "metadata") for name in pictures}
    stems |= {os.path.splitext(name)[0] for name in names if name.lower().endswith(".tar")}
    for suffixes in SHARDS:
        shards = [name for name in names if name.lower().endswith(suffixes)]
        if suffixes == SHARDS[0]:  # a table beside a tar of its name, or beside pictures
            shards = [name for name in shards if os.path.splitext(name)[0] not in stems]
        if shards:
            chosen = _of_split(shards, path, where)
            _check_one_subset(chosen, where)
            return chosen
    if not pictures:
        raise UserError(f"{where}: {_nothing(names)}")
    texts = [name for name in names if name.lower().endswith(BESIDE)]
    chosen = _of_split(pictures, path, where, _folder)
    folders = {posixpath.dirname(name) for name in chosen}
    above = {folder[:end] for folder in folders for end in _ends(folder)}
    return sorted([*chosen, *(one for one in texts if posixpath.dirname(one) in above)])


def _ends(folder: str) -> list[int]:
    """Lengths of a folder's path and of those above it."""
    return [0, *(match.start() for match in re.finditer("/", folder)), len(folder)]


def _folder(name: str) -> str:
    """Folder of a picture, which may tell a split; its own name is a caption."""
    return posixpath.join(posixpath.dirname(name), "")


def _of_split(
    names: Sequence[str], path: str, where: str, telling: Callable[[str], str] = str
) -> list[str]:
    """Files of a folder, of a split, or of a subset's split, by the part of a name that tells."""
    told = {name: telling(name) for name in names}
    found = splits(told.values())
    if not path:
        chosen = [name for name in names if _has_word(told[name], TRAIN)]
        return chosen or list(names)
    inside = [name for name in names if name.startswith(f"{path}/")]
    if inside:
        return inside
    *folders, split = path.split("/")
    below = "/".join([*folders, ""])
    inside = [name for name in names if name.startswith(below)]
    chosen = [name for name in inside if _has_word(told[name][len(below) :], split)]
    if chosen:
        return chosen
    known = [*found, *sorted({posixpath.dirname(name) for name in names} - {""})]
    listed = f"; it has {', '.join(known[:8])}" if known else ""
    raise UserError(f"{where}: no split or folder {path!r}{nearest(path, known)}{listed}")


def splits(names: Iterable[str]) -> list[str]:
    """Splits that the paths of files tell: those of `SPLITS`, then others, as in `NAME-00000-of`.

    Args:
        names: of the files.
    """
    names = list(names)
    known = [word for word in SPLITS if any(_has_word(name, word) for name in names)]
    others = (re.search(r"(?:^|/)([\w.]+)-\d+-of-\d+", name) for name in names)
    return list(dict.fromkeys([*known, *(match[1] for match in others if match)]))


def _has_word(name: str, word: str) -> bool:
    stem = os.path.splitext(name)[0]
    return bool(re.search(rf"(?<![A-Za-z0-9]){re.escape(word)}(?![A-Za-z0-9])", stem))


def _check_one_subset(names: Sequence[str], where: str) -> None:
    """Refuse shards of several subsets, whose columns differ."""
    folders = sorted({posixpath.dirname(name) for name in names})
    subsets = sorted({_subset(folder) for folder in folders})
    if len(subsets) > 1:
        raise UserError(
            f"{where}: holds several subsets ({', '.join(subsets[:8])}); add one of them to the "
            "address"
        )


def _subset(folder: str) -> str:
    """Folder of a subset: without the folder of a split at its end."""
    parts = folder.split("/")
    return "/".join(parts[:-1] if parts[-1] in SPLITS else parts) or folder


def _nothing(names: Sequence[str]) -> str:
    script = next((name for name in names if name.endswith(".py")), None)
    shown = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
    if script:
        return (
            f"no shards and no pictures, but {script}, a script that makes them, which is never "
            f"run; try {PARQUET} behind the name"
        )
    return f"no shards and no pictures in it (it holds {shown}); try {PARQUET} behind the name"
