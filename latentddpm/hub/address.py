"""Addresses of models and data sets on Hugging Face's Hub, and of their copies on this machine.

    hf://owner/name[@revision][/path]             a model, or a file or a folder of it
    hf://datasets/owner/name[@revision][/path]    a data set, or a split or a file of it

A revision is a branch, a tag or a commit. Copies lie in the cache of `huggingface_hub`, in
`models--owner--name/snapshots/COMMIT`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from latentddpm.errors import UserError

SCHEME = "hf://"
MODEL, DATASET = "model", "dataset"
DATASETS = "datasets/"
SHOWN = 7
"""Digits of a commit in messages."""

COMMIT = re.compile(r"[0-9a-f]{40}")
_NAME = r"[A-Za-z0-9_](?:[\w.-]*[A-Za-z0-9_])?"
_ADDRESS = re.compile(
    rf"(?P<kind>{DATASETS})?(?P<owner>(?!datasets/|spaces/){_NAME})/(?P<name>{_NAME})"
    r"(?:@(?P<revision>refs/(?:pr|convert)/[^/@]+|[^/@]+))?(?:/(?P<path>[^@]*))?"
)
_COPY = re.compile(
    r".*/(?P<kind>models|datasets)--(?P<owner>[^/]+?)--(?P<name>[^/]+?)/snapshots/"
    rf"(?P<revision>{COMMIT.pattern})(?:/(?P<path>.*))?"
)


@dataclass(frozen=True)
class Address:
    """Address on the Hub.

    Attributes:
        owner: user or organisation.
        name: of the repository.
        revision: branch, tag or commit; "" for the main branch.
        path: of a file or a folder in it; "" for all of it.
        kind: "model" or "dataset".
    """

    owner: str
    name: str
    revision: str = ""
    path: str = ""
    kind: str = MODEL

    @property
    def repo_id(self) -> str:
        """Owner and name, as the Hub calls the repository."""
        return f"{self.owner}/{self.name}"

    @property
    def short(self) -> str:
        """Address for messages, with a short commit."""
        is_commit = COMMIT.fullmatch(self.revision)
        return str(replace(self, revision=self.revision[:SHOWN])) if is_commit else str(self)

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        path = f"/{self.path}" if self.path else ""
        return f"{SCHEME}{DATASETS * (self.kind == DATASET)}{self.repo_id}{revision}{path}"


def is_address(place: object) -> bool:
    """True for an address on the Hub; also for a `Path` of one, which has lost a slash.

    Args:
        place: a text or a path.
    """
    return str(place).startswith(("hf://", "hf:/"))


def parse_address(place: str | Path) -> Address:
    """Address in a text.

    Args:
        place: such as "hf://owner/name@v1/file.safetensors".

    Raises:
        UserError: it is none.
    """
    text = re.sub(r"^hf:/+", "", str(place)).rstrip("/")
    found = _ADDRESS.fullmatch(text)
    if found is None or ".." in (found["path"] or "").split("/"):
        raise UserError(
            f"{SCHEME}{text}: expected hf://owner/name[@revision][/file], of data sets "
            "hf://datasets/owner/name[@revision][/split]"
        )
    return _address(found, DATASET if found["kind"] else MODEL)


def address_of(path: str | Path) -> str | None:
    """Address whose copy lies at a path, with its commit; None for another path.

    Args:
        path: of a file or a folder.
    """
    found = _COPY.fullmatch(Path(path).as_posix())
    if found is None:
        return None
    return str(_address(found, DATASET if found["kind"] == "datasets" else MODEL))


def shown(path: str | Path) -> str:
    """Name of a path for messages: that of the address whose copy it is, else the path.

    Args:
        path: of a file or a folder.
    """
    found = address_of(path)
    return parse_address(found).short if found else str(path)


def _address(found: re.Match[str], kind: str) -> Address:
    return Address(
        found["owner"], found["name"], found["revision"] or "", found["path"] or "", kind
    )
