"""Listing of a repository: its commit, and the files in it with their sizes and digests."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from latentddpm.errors import UserError
from latentddpm.hub.address import Address
from latentddpm.hub.client import make_client, translated
from latentddpm.utils.files import CHUNK, file_digest


@dataclass(frozen=True)
class RemoteFile:
    """File of a repository.

    Attributes:
        size: in bytes.
        sha256: of the bytes, of a large file; "" for a small one.
        blob: SHA-1 by which git knows a small file; "" where it is not told.
    """

    size: int
    sha256: str = ""
    blob: str = ""

    def difference(self, path: Path) -> str:
        """Difference of the file at a path from this one, in words; empty where there is none.

        Args:
            path: of a copy.
        """
        if not path.is_file():
            return "is missing"
        if (size := path.stat().st_size) != self.size:
            return f"has {size:,} bytes, the Hub has {self.size:,}"
        if self.sha256:
            return "" if file_digest(path) == self.sha256 else "has another SHA-256"
        if self.blob and git_digest(path) != self.blob:
            return "has another SHA-1"
        return ""


@dataclass(frozen=True)
class Listing:
    """Listing of a repository at a commit.

    Attributes:
        address: with the commit as revision.
        files: by name.
    """

    address: Address
    files: Mapping[str, RemoteFile]


def read_listing(address: Address) -> Listing:
    """Listing of the repository of an address, asked from the Hub.

    Args:
        address: with any revision.

    Raises:
        UserError, NoConnection: see `client.translated`.
    """
    with translated(address):
        info = make_client().repo_info(
            address.repo_id,
            repo_type=address.kind,
            revision=address.revision or None,
            files_metadata=True,
        )
    files = {}
    for one in info.siblings or ():
        if one.rfilename.startswith("/") or ".." in one.rfilename.split("/"):
            raise UserError(f"{address.short}: names a file {one.rfilename!r:.80}; refused")
        sha256 = one.lfs.sha256 if one.lfs else ""
        files[one.rfilename] = RemoteFile(one.size or 0, sha256, one.blob_id or "")
    return Listing(replace(address, revision=info.sha), files)


def git_digest(path: Path) -> str:
    """SHA-1 by which git knows the bytes of a file, in hexadecimal.

    Args:
        path: of the file.
    """
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with open(path, "rb") as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
