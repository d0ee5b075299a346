"""Opening of a source of captioned images: a folder, or shards with many images each.

    open_source(place) ──► Folder | ParquetShards | TarShards | TFRecordShards | ArrayRecordShards

Nothing here writes, renames or deletes: the data belong to the user. TensorFlow is imported only
for places with a scheme and for records.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from latentddpm.data.sources import storage
from latentddpm.data.sources.base import Source
from latentddpm.data.sources.folder import Folder
from latentddpm.data.sources.kinds import is_picture, is_shard, is_table
from latentddpm.data.sources.packed.parquet import ParquetShards
from latentddpm.data.sources.packed.records import ArrayRecordShards, TFRecordShards
from latentddpm.data.sources.packed.shards import Shards, without_tables
from latentddpm.data.sources.packed.tar import TarShards
from latentddpm.data.sources.walk import NO_SECOND, Second, Walk
from latentddpm.errors import UserError
from latentddpm.hub.address import Address, is_address, parse_address
from latentddpm.hub.fetch import fetch_data

KINDS = {
    ".parquet": ParquetShards,
    ".tar": TarShards,
    ".tfrecord": TFRecordShards,
    ".tfrecords": TFRecordShards,
    ".array_record": ArrayRecordShards,
    ".arrayrecord": ArrayRecordShards,
}
"""Suffix of a shard → its class."""


def open_source(place: str | Path, second: Second = NO_SECOND) -> Source:
    """Open the source at a place, whose kind follows from the files there.

    Args:
        place: a folder of images; a folder of shards; one shard; or a pattern of shards such
            as `train-{0000..0099}.tar`. It is on this machine or, with a scheme (gs://, hdfs://),
            on any filesystem that TensorFlow reads; or a data set on the Hub,
            hf://datasets/owner/name[@revision][/split], which is fetched.
        second: second pictures in a folder of images, which a condition reads and which are no
            images of the folder themselves.

    Raises:
        UserError: there is nothing, or a file of another kind.
    """
    place = str(place)
    if is_address(place):
        return _open_fetched(parse_address(place), second)
    if storage.is_folder(place):
        names = _find_shards(place)
        return _open_shards(place, place, names) if names else Folder(place, second)
    if is_shard(place):
        return _open_shards(place, *_expanded(place))
    if storage.is_file(place):
        raise UserError(
            f"{place}: is a file, not a folder of images, and no shard ({', '.join(KINDS)})"
        )
    raise UserError(f"{place}: no such folder")


def _open_fetched(address: Address, second: Second) -> Source:
    """Open a data set of the Hub, after fetching what is not here.

    Raises:
        UserError, OSError: see `hub.fetch.fetch_data`.
    """
    found, folder, names = fetch_data(address)
    if not any(is_shard(name) for name in names):
        inside = os.path.commonpath([os.path.dirname(name) for name in names])
        return Folder(os.path.join(folder, inside), second)
    return _open_shards(str(found), str(folder), sorted(names, key=storage.order))


def expand(pattern: str) -> list[str]:
    """Names of a pattern such as `a-{00..02}.tar`, sorted; without braces, that name alone.

    Raises:
        UserError: the braces of `pattern` are not a range.
    """
    match = re.fullmatch(r"(.*?)\{(\d+)\.\.(\d+)\}(.*)", pattern)
    if match is None:
        if "{" in pattern or "}" in pattern:
            raise UserError(f"{pattern}: braces hold a range such as {{0000..0099}}")
        return [pattern]
    before, first, last, after = match.groups()
    low, high = int(first), int(last)
    if low > high or high - low > 10_000_000:
        raise UserError(f"{pattern}: {first}..{last} is no range from low to high")
    width = len(first) if len(first) == len(last) or first.startswith("0") else 0
    return [
        name
        for number in range(low, high + 1)
        for name in expand(f"{before}{number:0{width}d}{after}")
    ]


def _find_shards(folder: str) -> list[str]:
    """Names of the shards in a folder of shards; empty for a folder of images.

    A folder that holds a picture or a table of captions, in whatever depth, is one of images: its
    survey names the shards in it.
    """
    shards = [name for name in Walk(folder).content("").files if is_shard(name)]
    if shards and any(
        is_picture(name) or is_table(name.rpartition("/")[2]) for name, _ in Walk(folder).files()
    ):
        return []
    return sorted(without_tables(shards), key=storage.order)


def _open_shards(place: str, folder: str, names: list[str]) -> Shards:
    """Open shards as a source.

    Raises:
        UserError: they are of several kinds.
    """
    suffixes = {os.path.splitext(name)[1].lower(): name for name in names}
    classes = {KINDS[suffix] for suffix in suffixes}
    if len(classes) > 1:
        raise UserError(
            f"{place}: shards of several kinds ({', '.join(sorted(suffixes.values()))}); "
            "name one kind, such as 'DIR/shard-{000000..000099}.tar'"
        )
    return classes.pop()(place, folder, names)


def _expanded(pattern: str) -> tuple[str, list[str]]:
    """Folder of a pattern of shards, and their names in it.

    Raises:
        UserError: one of them does not exist.
    """
    folder = os.path.dirname(pattern.partition("{")[0])
    names = []
    for path in expand(pattern):
        if not storage.is_file(path):
            raise UserError(f"{path}: no such file")
        names.append(path[len(folder) :].lstrip("/"))
    return folder, sorted(names, key=storage.order)
