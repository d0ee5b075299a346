"""Survey of a folder of images: everything in it that looks like data and is not read.

Only names are looked at, and the first bytes of files with an unknown suffix. So a survey takes
seconds where a scan takes minutes, and is made at each start.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence

from latentddpm.data.findings import Findings
from latentddpm.data.sources import storage
from latentddpm.data.sources.kinds import (
    ARCHIVES_NAMED,
    ARRAYS_NAMED,
    ARRAYS_READ,
    CAPTION_SUFFIXES,
    CAPTIONS_NAMED,
    MAGIC,
    NO_CAPTIONS,
    PICTURES_NAMED,
    PICTURES_READ,
    TABLES_NAMED,
    is_image,
    is_picture,
    is_table,
    suffix_of,
)
from latentddpm.data.sources.walk import (
    MASK,
    SECOND,
    Content,
    Walk,
    holds_arrays,
    in_hub_cache,
    stem,
)

HEAD = 16  # bytes that tell a picture


def survey(
    place: str, limit: int | None = 3, shards: Iterable[str] = (), second: Sequence[str] = ()
) -> Findings:
    """Survey of the folder `place`.

    Args:
        place: the folder.
        limit: number of files that are kept for each kind of finding; None for all.
        shards: names of the shards that are read there.
        second: ends of the names of second pictures, which a condition reads.

    Returns:
        Findings about files that are not read, and about captions of no image or of several.
    """
    findings, shards = Findings(limit), frozenset(shards)
    is_read = is_image if not shards and holds_arrays(place) else is_picture
    for content in Walk(place, findings).contents():
        images = Counter(stem(name) for name in content.files if is_read(name))
        full = {
            name for name in content.files if is_image(name) or suffix_of(name) in PICTURES_NAMED
        }
        for name in content.files:
            if content.is_second(name, second):
                continue
            if is_read(name) and content.is_second(name, (SECOND, MASK)):
                findings.note("second_picture", content.folder + name)
            if not (is_read(name) or is_table(name) or content.folder + name in shards):
                _look(place, content, name, images, full, findings)
    return findings


def _look(
    place: str,
    content: Content,
    name: str,
    images: Counter[str],
    full: set[str],
    findings: Findings,
) -> None:
    """Note a file that is neither a picture nor a table that is read.

    Args:
        place: the folder that is surveyed.
        content: of the folder that holds the file.
        name: of the file.
        images: number of pictures there by their stem.
        full: names of pictures there.
        findings: where to note it.
    """
    path, suffix, own = content.folder + name, suffix_of(name), stem(name)
    beside = images[own]
    if suffix in CAPTION_SUFFIXES:
        if beside > 1:
            findings.note("shared_caption", path, f"of {beside} images")
        elif not beside and own in full:
            right = os.path.splitext(own)[0] + suffix
            findings.note("caption_not_read", path, f"expected NAME{suffix}, such as {right}")
        elif not beside and own.casefold() not in NO_CAPTIONS:
            findings.note("missing_image", path, "no image beside it")
    elif suffix in PICTURES_NAMED or suffix in ARRAYS_READ:
        what = PICTURES_NAMED.get(suffix, ARRAYS_NAMED)
        findings.note("picture_not_read", path, f"{suffix}: {what}")
    elif suffix in CAPTIONS_NAMED and (beside or own in full):
        findings.note("caption_not_read", path, f"{suffix}: {CAPTIONS_NAMED[suffix]}")
    elif suffix in ARCHIVES_NAMED:
        findings.note("archive_not_read", path, f"{suffix}: {ARCHIVES_NAMED[suffix]}")
    elif suffix in TABLES_NAMED:
        remedy = TABLES_NAMED[suffix].format(suffix=suffix)
        findings.note("table_not_read", path, f"{suffix}: {remedy}")
    elif suffix not in CAPTIONS_NAMED and (found := picture_suffix(place, path)):
        what = f"rename it to NAME{found}" if found in PICTURES_READ else PICTURES_NAMED[found]
        findings.note("picture_not_read", path, f"is {found} by its bytes: {what}")


def picture_suffix(place: str, path: str) -> str:
    """Suffix of the picture that a file is by its first bytes; "" for another file.

    Files at a place with a scheme, and those of a Hub cache that its snapshots link to, are not
    looked at.

    Args:
        place: the folder that is surveyed.
        path: of the file in it.
    """
    full = storage.join(place, path)
    if storage.is_remote(place):
        return ""
    if path.split("/")[-2:-1] == ["blobs"] and in_hub_cache(os.path.realpath(full)):
        return ""
    try:
        with open(full, "rb") as stream:
            head = stream.read(HEAD)
    except OSError:
        return ""
    return next((s for at, magic, s in MAGIC if head[at : at + len(magic)] == magic), "")
