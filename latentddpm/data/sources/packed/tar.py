"""Tar shards in the layout of WebDataset: neighbouring members with one key are a sample.

    000000017.png   the image
    000000017.txt   its caption                                     (or none; also .caption)
    000000017.json  its columns, with `text` for captions and `file_name` for its original name

The key of `folder/0001.seg.png` ends at the first dot of the base name: "folder/0001", and its
extension is "seg.png". The image of a sample is the member whose extension is that of a picture
and nothing else; all others (.cls, .seg.png, .meta.json, …) belong to the sample and are counted.

In a sample without such an image a single picture is its image. Several are images of their own,
each with the texts that have its name up to the last dot; but if there is a text for the whole
sample, too, nobody can know which picture it is about, and they are named and left out.

Hidden members are ignored; links and devices are named.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from latentddpm.data.findings import Findings
from latentddpm.data.sources import storage
from latentddpm.data.sources.base import Entry, Unit
from latentddpm.data.sources.kinds import (
    CAPTION_SUFFIXES,
    PICTURES_NAMED,
    is_image,
    is_picture,
    is_table,
    suffix_of,
)
from latentddpm.data.sources.metadata import (
    FILE_NAME,
    MAX_SIDECAR,
    Row,
    image_name,
    with_sidecars,
)
from latentddpm.data.sources.packed.shards import Shards, own_name, parse_columns
from latentddpm.data.sources.tables import MetadataTable
from latentddpm.errors import UserError

COLUMNS_SUFFIX = ".json"


class TarShards(Shards):
    """Shards in tar files; an image is read by its offset."""

    kind = "tar"

    def entries(
        self, unit: Unit, metadata: MetadataTable, findings: Findings | None = None
    ) -> Iterator[Entry]:
        path = self.path(unit.name)
        findings = Findings() if findings is None else findings
        sample = _Sample(path, "", findings)
        with storage.opened(path) as stream:
            for member in _members(path, stream, findings):
                key = split_key(member.name)[0]
                if key != sample.key:
                    yield from sample.entries()
                    sample = _Sample(path, key, findings)
                sample.add(member, stream)
            yield from sample.entries()

    def read(self, unit: str, offset: int, size: int) -> bytes:
        return storage.read(self.path(unit), offset, size)


def split_key(name: str) -> tuple[str, str]:
    """Key and extension of a member: they part at the first dot of the base name.

    Args:
        name: of the member.
    """
    folder, slash, base = name.rpartition("/")
    key, dot, extension = base.partition(".")
    return folder + slash + key, dot + extension.lower()


def member_places(path: str) -> dict[str, tuple[int, int]]:
    """Members of a tar: name → offset and size of the bytes.

    Args:
        path: of the tar.

    Raises:
        UserError: it is compressed, not a tar, damaged, or has a member with an unsafe name.
    """
    with storage.opened(path) as stream:
        members = _members(path, stream, Findings())
        return {one.name: (one.offset_data, one.size) for one in members}


class _Member(NamedTuple):
    """Member of a sample: a picture, with `data` if its shard is remote, or a text."""

    name: str
    offset: int
    size: int
    data: bytes | None = None
    problem: str = ""

    @property
    def is_plain(self) -> bool:
        """True if the extension has one part."""
        return split_key(self.name)[1].count(".") == 1

    @property
    def stem(self) -> str:
        """Name up to the last dot."""
        return self.name.rpartition(".")[0]


class _Sample:
    """Sample: the members with one key that were read so far."""

    def __init__(self, path: str, key: str, findings: Findings) -> None:
        self.path, self.key, self.findings = path, key, findings
        self.pictures: list[_Member] = []
        self.texts: list[_Member] = []

    def add(self, member: tarfile.TarInfo, stream: BinaryIO) -> None:
        """Add a member; texts are read."""
        name, suffix = member.name, suffix_of(member.name)
        data, problem = None, ""
        is_text = suffix in CAPTION_SUFFIXES or suffix == COLUMNS_SUFFIX
        if is_text and member.size > MAX_SIDECAR:
            problem = (
                f"{self.path}: {name}: {member.size:,} bytes, expected at most {MAX_SIDECAR:,}"
            )
        elif is_text or (is_image(name) and storage.is_remote(self.path)):
            stream.seek(member.offset_data)  # one pass, not a request per image
            data = stream.read(member.size)
        found = _Member(name, member.offset_data, member.size, data, problem)
        if is_text:
            self.texts.append(found)
        elif is_image(name):
            self.pictures.append(found)
        elif is_table(name.rpartition("/")[2]):
            self.findings.note("table_not_read", name, "in a tar; unpack the tar")
        elif suffix in PICTURES_NAMED and found.is_plain:
            self.findings.note("picture_not_read", name, f"{suffix}: {PICTURES_NAMED[suffix]}")
        else:
            self._other(found)

    def entries(self) -> Iterator[Entry]:
        """Images of the sample; what is not used is noted."""
        unused = {member.name: member for member in (*self.pictures, *self.texts)}
        for picture, texts in self._images():
            for member in (picture, *texts):
                unused.pop(member.name, None)
            row = self._row(texts)
            name = own_name(row, picture.name)
            where = f"{self.path}: {name}"
            captions = [
                (text.data, f"{self.path}: {text.name}")
                for text in texts
                if suffix_of(text.name) in CAPTION_SUFFIXES and text.data is not None
            ]
            if captions:
                row = with_sidecars(row, where, captions, ())
            yield Entry(
                name,
                where,
                picture.offset,
                picture.size,
                row,
                self._loader(picture),
                bool(captions),
            )
        for member in unused.values():
            self._unused(member)

    def _images(self) -> list[tuple[_Member, list[_Member]]]:
        """Images of the sample, each with its texts."""
        common = [text for text in self.texts if text.is_plain]
        plain = [picture for picture in self.pictures if picture.is_plain]
        # Beside a picture an array (features, a mask) is another member of the sample.
        plain = [one for one in plain if is_picture(one.name)] or plain
        if plain:
            return [(picture, common) for picture in plain]
        own = [
            (picture, [text for text in self.texts if text.stem == picture.stem])
            for picture in self.pictures
        ]
        if len(own) == 1:
            return [(own[0][0], common + own[0][1])]
        return own if not common or all(texts for _, texts in own) else []

    def _row(self, texts: list[_Member]) -> Row:
        """Row of the columns in the JSON member; if it is malformed the row has a problem."""
        row = Row()
        for text in texts:
            if not row.problem and text.problem:
                row = Row(problem=text.problem)
            elif not row.problem and suffix_of(text.name) == COLUMNS_SUFFIX:
                row = parse_columns(text.data, f"{self.path}: {text.name}")
        return row

    def _unused(self, member: _Member) -> None:
        is_text = suffix_of(member.name) in CAPTION_SUFFIXES
        if is_text and not self.pictures:
            reason = "no image beside it in the shard: members of a sample lie side by side"
            self.findings.note("missing_image", member.name, reason)
        elif not any(picture.is_plain for picture in self.pictures) and is_image(member.name):
            reason = "one of several in its sample; call the image KEY.png or KEY.jpg"
            self.findings.note("picture_not_read", member.name, reason)
        else:
            self._other(member)

    def _other(self, member: _Member) -> None:
        extension = split_key(member.name)[1]
        self.findings.note("other_member", member.name, extension or "without a suffix")

    def _loader(self, member: _Member) -> Any:
        if member.data is not None:
            return lambda: member.data
        return lambda: storage.read(self.path, member.offset, member.size)


def _members(path: str, stream: BinaryIO, findings: Findings) -> Iterator[tarfile.TarInfo]:
    """Members of a tar that are regular files and not hidden, with normalised names.

    Raises:
        UserError: it is compressed, not a tar, damaged, or has a member with an unsafe name.
    """
    try:
        with tarfile.open(fileobj=stream, mode="r:") as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # or all members of the shard stay in memory
                if not member.isreg() or member.issparse():
                    if not member.isdir():
                        remedy = (
                            "in a tar; write the file itself: tar --dereference --hard-dereference"
                        )
                        findings.note("link_not_followed", member.name, remedy)
                    continue
                member.name = image_name({FILE_NAME: member.name}, f"{path}: a member")
                if not any(part.startswith(".") for part in member.name.split("/")):
                    yield member
            # `tarfile` takes a broken header for the end of the archive.
            stream.seek(archive.offset)
            if stream.read(tarfile.BLOCKSIZE).strip(b"\0"):
                raise UserError(f"{path}: damaged at byte {archive.offset}; expected a tar header")
    except tarfile.TarError as error:
        raise UserError(
            f"{path}: not a whole, uncompressed tar file ({error}); shards are not compressed, "
            "images are already"
        ) from None
