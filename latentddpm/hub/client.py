"""Client of the Hub: the optional package `huggingface_hub`, and its errors in one line each.

The address of the Hub, the token and the cache are that package's own: `HF_ENDPOINT`, `HF_TOKEN`
or `hf auth login`, `HF_HUB_CACHE`; with `HF_HUB_OFFLINE=1` nothing is asked for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from latentddpm.errors import UserError, nearest, one_line
from latentddpm.hub.address import DATASET, Address
from latentddpm.utils.console import speaks

LOGIN = "log in with: hf auth login (or set HF_TOKEN)"
KINDS = {"model": "model", DATASET: "data set"}
"""Kind of a repository → its name in messages."""


class NoConnection(ConnectionError):
    """Error: the Hub does not answer, or must not be asked."""


def library() -> Any:
    """Module `huggingface_hub`.

    Raises:
        UserError: it is not installed.
    """
    try:
        import huggingface_hub
    except ImportError:
        raise UserError(
            'hf:// needs the package huggingface_hub: pip install "latentddpm[hub]", '
            'in a checkout pip install ".[hub]"'
        ) from None
    if speaks():  # a command says by itself what went wrong
        huggingface_hub.logging.set_verbosity_error()
    return huggingface_hub


def make_client() -> Any:
    """Client with the address and the token of the environment.

    Raises:
        UserError: huggingface_hub is not installed.
    """
    import latentddpm

    return library().HfApi(library_name="latentddpm", library_version=latentddpm.__version__)


def cache_folder() -> Path:
    """Folder of the copies of all repositories.

    Raises:
        UserError: huggingface_hub is not installed.
    """
    library()
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser()


def has_token() -> bool:
    """True where somebody is logged in."""
    return bool(library().get_token())


@contextlib.contextmanager
def translated(address: Address, writes: bool = False) -> Iterator[None]:
    """Turn the errors of `huggingface_hub` inside the block into errors of one line.

    Args:
        address: that is asked for.
        writes: True for an upload.

    Raises:
        UserError: no such repository or revision, a private or gated one, a refused token.
        NoConnection: the Hub does not answer.
    """
    library()
    from huggingface_hub import errors

    where, kind = address.short, KINDS[address.kind]
    try:
        yield
    except (UserError, NoConnection):
        raise
    except errors.GatedRepoError:
        raise UserError(
            f"{where}: is gated; accept its terms on its page of the Hub, then {LOGIN}"
        ) from None
    except errors.RevisionNotFoundError:
        raise UserError(f"{where}: {_no_revision(address)}") from None
    except errors.RepositoryNotFoundError:
        raise UserError(f"{where}: {_no_repository(kind, writes)}") from None
    except errors.OfflineModeIsEnabled:
        raise NoConnection(
            f"{where}: HF_HUB_OFFLINE is set, and there is no whole copy on this machine; unset "
            "it, or name a folder"
        ) from None
    except errors.HfHubHTTPError as error:
        raise _answered(where, error, writes) from None
    except Exception as error:
        for one in _chain(error):
            if isinstance(one, errors.HfHubHTTPError):
                raise _answered(where, one, writes) from None
        if not any(map(_of_connection, _chain(error))):
            raise
        raise NoConnection(
            f"{where}: the Hub does not answer ({one_line(_chain(error)[-1], 100)}); look at the "
            "network and at HF_ENDPOINT, or name a folder"
        ) from None


def _chain(error: BaseException) -> list[BaseException]:
    """Error, and those that it followed from."""
    found = [error]
    while (before := found[-1].__cause__ or found[-1].__context__) is not None:
        found.append(before)
    return found


def _of_connection(error: BaseException) -> bool:
    """True for an error of the HTTP client, or of the network below it."""
    package = type(error).__module__.split(".")[0]
    return package in ("httpx", "httpx2", "httpcore") or isinstance(error, ConnectionError)


def _no_revision(address: Address) -> str:
    """Message on a revision that is not there, with those that are."""
    names: list[str] = []
    with contextlib.suppress(Exception):  # it only adds to the message
        refs = make_client().list_repo_refs(address.repo_id, repo_type=address.kind)
        names = [ref.name for ref in (*refs.branches, *refs.tags)]
    hint = nearest(address.revision, names)
    known = f"; it has {', '.join(names[:8])}" if names else ""
    return f"no revision {address.revision!r}{hint}{known}"


def _no_repository(kind: str, writes: bool) -> str:
    if not has_token():
        return f"no such {kind}, or a private one: {LOGIN}"
    if writes:
        return f"no such {kind}, or one that your account may not write to"
    return f"no such {kind}, or a private one that your account may not read"


def _answered(where: str, error: Any, writes: bool) -> Exception:
    """Error for an answer that is no success."""
    status = getattr(error.response, "status_code", 0)
    if status == 401:
        return UserError(f"{where}: the Hub refuses the token; {LOGIN}")
    if status == 403:
        verb = "write" if writes else "read"
        return UserError(f"{where}: your token may not {verb} it; take one that may: {LOGIN}")
    if status == 429:
        return NoConnection(f"{where}: too many requests for the Hub; try again in some minutes")
    if status >= 500:
        return NoConnection(f"{where}: the Hub answers {status}; try again later")
    return UserError(f"{where}: the Hub answers {status}: {one_line(error, 160)}")
