"""Copies on this machine: which commit a revision was, and which files of it are whole.

    CACHE/models--owner--name/
      snapshots/COMMIT/…       the files, as `huggingface_hub` lays them out
      latentddpm.json          revision → commit; commit and path → files that were verified

A copy that is written there was compared with the digests of the Hub, so it is used without asking
the Hub where the address has a commit, or where there is no connection.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from latentddpm.errors import UserError
from latentddpm.hub.address import COMMIT, Address
from latentddpm.hub.client import cache_folder
from latentddpm.utils.files import read_json, write_json

RECORD = "latentddpm.json"
COMMITS, WHOLE = "commits", "whole"
MAIN = "main"


def repository_folder(address: Address) -> Path:
    """Folder of the copies of a repository.

    Args:
        address: in it.
    """
    return cache_folder() / f"{address.kind}s--{address.owner}--{address.name}"


def snapshot_folder(address: Address) -> Path:
    """Folder of the copy of a commit.

    Args:
        address: with a commit as revision.
    """
    return repository_folder(address) / "snapshots" / address.revision


def known_commit(address: Address) -> Address | None:
    """Address with the commit that its revision was when it was fetched; None where never.

    Args:
        address: with any revision.
    """
    if COMMIT.fullmatch(address.revision):
        return address
    commit = _read(address).get(COMMITS, {}).get(address.revision or MAIN)
    return replace(address, revision=commit) if isinstance(commit, str) else None


def whole_copy(address: Address, want: str = "") -> list[str] | None:
    """Files of an address that were verified and are there still; None where one is missing.

    Args:
        address: with a commit.
        want: variant that was asked for.
    """
    entry = _read(address).get(WHOLE, {}).get(_key(address, want))
    if not isinstance(entry, dict) or not entry:
        return None
    folder = snapshot_folder(address)
    for name, size in entry.items():
        file = folder / name
        if not file.is_file() or file.stat().st_size != size:
            return None
    return list(entry)


def remember(asked: Address, found: Address, names: Iterable[str], want: str = "") -> None:
    """Remember a copy as whole.

    Args:
        asked: address with the revision that was asked for.
        found: the same with its commit.
        names: of its files, which were verified.
        want: variant that was asked for.
    """
    before, record = _read(asked), _read(asked)
    folder = snapshot_folder(found)
    if not COMMIT.fullmatch(asked.revision):
        record.setdefault(COMMITS, {})[asked.revision or MAIN] = found.revision
    sizes = {name: (folder / name).stat().st_size for name in names}
    record.setdefault(WHOLE, {})[_key(found, want)] = sizes
    if record != before:
        write_json(repository_folder(asked) / RECORD, record)


def _key(address: Address, want: str) -> str:
    return f"{address.revision}/{address.path}" + (f"?{want}" if want else "")


def _read(address: Address) -> dict[str, Any]:
    try:
        return read_json(repository_folder(address) / RECORD, optional=True)
    except UserError:  # written by something else: fetched again, and then written anew
        return {}
