"""Fetching from the Hub: an address becomes the path of a copy that was compared with the Hub's.

    hf://owner/name ──listing──► commit, files that are read ──► copies ──digests──► path

Files that are here already are not fetched again. Where the Hub does not answer, a whole copy of
the revision is used, and this is said. An address with a commit needs no answer.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm import tqdm

from latentddpm.errors import UserError
from latentddpm.hub.address import (
    COMMIT,
    DATASET,
    DATASETS,
    MODEL,
    SCHEME,
    Address,
    is_address,
    parse_address,
)
from latentddpm.hub.choice import choose_files
from latentddpm.hub.client import (
    NoConnection,
    cache_folder,
    library,
    make_client,
    translated,
)
from latentddpm.hub.copies import known_commit, remember, snapshot_folder, whole_copy
from latentddpm.hub.dataset import choose_data
from latentddpm.hub.listing import Listing, RemoteFile, read_listing
from latentddpm.utils.console import say, speaks

WORKERS = 4

Choice = Callable[[Listing], list[str]]
"""Choice of the files of a listing."""


def fetch(place: str | Path, variant: str | None = None) -> Path:
    """Fetch a model, a LoRA, a ControlNet or a checkpoint, or find its copy on this machine.

    Args:
        place: an address `hf://owner/name[@revision][/path]`; another path is returned as it is.
        variant: of the weights of a diffusers folder, such as "fp16"; None for the plain ones.

    Returns:
        Path of a folder; of a file where the address names one, or where the repository has
        nothing else.

    Raises:
        UserError: no such repository, revision or file, a private or gated one; a pickle or
            code; a file whose digest is not that of the Hub.
        NoConnection: the Hub does not answer, and there is no copy.
    """
    if not is_address(place):
        return Path(place)
    address = parse_address(place)
    if address.kind != MODEL:
        raise UserError(f"{address.short}: is a data set; name it with --data")

    def choose(listing: Listing) -> list[str]:
        return choose_files(listing.files, address.path, listing.address.short, variant or "")

    found, names = fetch_files(address, choose, variant or "")
    return _place(found, names)


def fetch_data(address: Address) -> tuple[Address, Path, list[str]]:
    """Fetch a data set: the shards of a split, or its pictures.

    Args:
        address: `hf://datasets/owner/name[@revision][/path]`.

    Returns:
        The address with its commit, the folder of the copy, and the names of the files in it.

    Raises:
        UserError, NoConnection: see `fetch`, and `dataset.choose_data`.
    """
    if address.kind != DATASET:
        raise UserError(f"{address.short}: is a model; a data set is {SCHEME}{DATASETS}owner/name")

    def choose(listing: Listing) -> list[str]:
        return choose_data(listing.files, address.path, listing.address.short)

    found, names = fetch_files(address, choose)
    return found, snapshot_folder(found), names


def copy_of(place: str | Path) -> Path | None:
    """Path of the copy of an address that is on this machine and whole; the Hub is not asked.

    Args:
        place: an address.
    """
    found = known_commit(parse_address(place))
    names = found and whole_copy(found)
    return _place(found, names) if found and names else None


def fetch_files(address: Address, choose: Choice, want: str = "") -> tuple[Address, list[str]]:
    """Fetch the files of an address that a choice takes.

    Args:
        address: of a model or a data set.
        choose: which of the files.
        want: variant, by which the copy is remembered.

    Returns:
        The address with its commit, and the names of the files.

    Raises:
        UserError, NoConnection: see `fetch`.
    """
    if COMMIT.fullmatch(address.revision) and (names := whole_copy(address, want)):
        return address, names
    try:
        listing = read_listing(address)
    except NoConnection as error:
        found = known_commit(address)
        names = found and whole_copy(found, want)
        if not names:
            raise
        say(f"{error}: the copy of {found.short} is used")
        return found, names
    found = listing.address
    names = whole_copy(found, want)
    if names is None:
        names = choose(listing)
        _download(listing, names)
    remember(address, found, names, want)
    say(f"using {found.short}", quiet=not speaks() or address == found)
    return found, names


def _download(listing: Listing, names: list[str]) -> None:
    """Download the files that are not here, and compare them with the digests of the Hub."""
    folder = snapshot_folder(listing.address)
    missing = [name for name in names if not (folder / name).is_file()]
    size = sum(listing.files[name].size for name in missing)
    with (
        tqdm(
            desc=f"fetch {listing.address.name}",
            total=size,
            unit="B",
            unit_scale=True,
            delay=2,
            disable=not speaks(),
        ) as total,
        ThreadPoolExecutor(WORKERS) as threads,
        translated(listing.address),
    ):
        bars = progress_class(total)
        list(threads.map(lambda name: _get(listing.address, name, bars), missing))
    for name in names:
        _verify(listing.address, folder / name, listing.files[name])


def _get(address: Address, name: str, bars: type[tqdm]) -> None:
    library().hf_hub_download(
        address.repo_id,
        name,
        repo_type=address.kind,
        revision=address.revision,
        endpoint=make_client().endpoint,
        cache_dir=cache_folder(),
        tqdm_class=bars,
    )


def progress_class(total: tqdm | None) -> type[tqdm]:
    """Class of the progress bars of single files, which show nothing and move a common one.

    Args:
        total: the common one; None for none.
    """

    class Bar(tqdm):
        """Progress bar of a file."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("name", None)
            super().__init__(*args, **{**kwargs, "disable": True})

        def update(self, n: float | None = 1) -> bool | None:
            """Move the common bar by `n` bytes."""
            return None if total is None else total.update(n)

    return Bar


def _verify(address: Address, file: Path, expected: RemoteFile) -> None:
    """Compare a copy with the Hub's digest; one that differs is removed.

    Raises:
        UserError: it differs.
    """
    if difference := expected.difference(file):
        blob = file.resolve()
        for path in {file, blob}:
            path.unlink(missing_ok=True)
        raise UserError(
            f"{address.short}: {file.name} {difference}: it was damaged on its way, and is "
            "removed; call again to fetch it anew"
        )


def _place(address: Address, names: list[str]) -> Path:
    """Path of a copy: of the file that is its only one and no manifest, else of its folder."""
    folder = snapshot_folder(address)
    if address.kind == DATASET:
        return folder
    if len(names) == 1:
        return folder / names[0]
    return folder / address.path
