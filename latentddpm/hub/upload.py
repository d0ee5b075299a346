"""Uploading to the Hub: files of this machine as one commit of a repository.

A repository that is not there is made. Files that are there already are replaced where they
differ; others are left as they are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from latentddpm.errors import UserError
from latentddpm.hub.address import COMMIT, Address
from latentddpm.hub.client import (
    KINDS,
    LOGIN,
    cache_folder,
    has_token,
    library,
    make_client,
    translated,
)
from latentddpm.hub.fetch import progress_class
from latentddpm.utils.console import speaks

MAIN = "main"
SMALL = 20_000_000
"""Bytes below which no progress bars are shown."""


def check_login(address: Address) -> None:
    """Check that somebody is logged in, before anything is sent.

    Args:
        address: to upload to.

    Raises:
        UserError: nobody is, or the address names a commit or a file.
    """
    if address.path:
        raise UserError(f"{address.short}: expected owner/name alone, without a path")
    if COMMIT.fullmatch(address.revision):
        raise UserError(f"{address.short}: a commit does not change; name a branch")
    if not has_token():
        raise UserError(f"{address.short}: nobody is logged in; {LOGIN}")


def read_remote(address: Address, name: str) -> str | None:
    """Text of a file of a repository as it is now; None where there is no such file or repository.

    Args:
        address: of the repository.
        name: of the file.

    Raises:
        UserError, NoConnection: see `client.translated`.
    """
    errors = library().errors
    with translated(address, writes=True):
        client = make_client()
        try:
            info = client.repo_info(
                address.repo_id, repo_type=address.kind, revision=address.revision or None
            )
        except errors.GatedRepoError:
            raise
        except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError):
            return None
        if name not in (one.rfilename for one in info.siblings or ()):
            return None
        path = library().hf_hub_download(
            address.repo_id,
            name,
            repo_type=address.kind,
            revision=info.sha,
            endpoint=client.endpoint,
            cache_dir=cache_folder(),
            tqdm_class=progress_class(None),
        )
    return Path(path).read_text("utf-8", "replace")


def upload(address: Address, files: Mapping[str, Path | bytes], private: bool = False) -> Address:
    """Upload files as one commit.

    Args:
        address: of the repository, with a branch as revision; a branch that is not there is made.
        files: name in the repository → a file, or its bytes.
        private: make a new repository private.

    Returns:
        The address with the commit.

    Raises:
        UserError: nobody is logged in, or may not write there; `private`, and there is a public
            one.
        NoConnection: the Hub does not answer.
    """
    check_login(address)
    client, add = make_client(), library().CommitOperationAdd
    kind, branch = address.kind, address.revision or MAIN
    size = sum(len(c) if isinstance(c, bytes) else c.stat().st_size for c in files.values())
    with translated(address, writes=True), _bars(size >= SMALL and speaks()):
        _make_repository(client, address, private)
        if branch != MAIN:
            client.create_branch(address.repo_id, branch=branch, repo_type=kind, exist_ok=True)
        commit = client.create_commit(
            address.repo_id,
            [add(name, content) for name, content in files.items()],
            commit_message=f"Upload a {KINDS[kind]} with latentddpm",
            repo_type=kind,
            revision=branch,
        )
    return Address(address.owner, address.name, commit.oid, "", kind)


def _make_repository(client: Any, address: Address, private: bool) -> None:
    """Make a repository where there is none."""
    try:
        there = client.repo_info(address.repo_id, repo_type=address.kind)
    except library().errors.RepositoryNotFoundError:
        client.create_repo(address.repo_id, repo_type=address.kind, private=private)
        return
    if private and not there.private:
        raise UserError(
            f"{address.short}: is there and public; --private is for a new one (its settings on "
            "the Hub make it private)"
        )


@contextlib.contextmanager
def _bars(shown: bool) -> Iterator[None]:
    """Show the progress bars of `huggingface_hub` inside the block, or none."""
    utils = library().utils
    before = utils.are_progress_bars_disabled()
    if not shown:
        utils.disable_progress_bars()
    try:
        yield
    finally:
        if not shown and not before:
            utils.enable_progress_bars()
