"""Publication of a product: what of it is sent to the Hub, with its card, licence and samples.

    RUN or model folder ──► Publication: name in the repository → file  ──hub.upload──► commit

Nothing is guessed: the licence is named by whoever publishes, or stands in a card of their own.
Only files that readers open are sent: no checkpoints, no logs, no data.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from latentddpm.errors import UserError, one_line
from latentddpm.hub.address import MODEL as HUB_MODEL
from latentddpm.hub.address import SCHEME, Address, is_address, parse_address
from latentddpm.model_card.card import CARD, addressed, draft_card, is_own
from latentddpm.model_card.product import CONTROL, MODEL, Product, read_product
from latentddpm.model_card.sections import SAMPLES
from latentddpm.pipeline.control.folder import read_control_folder
from latentddpm.pipeline.model_folder import read_model_folder
from latentddpm.utils.files import size_text

LICENCES = "apache-2.0, mit, cc-by-4.0, cc-by-sa-4.0, cc-by-nc-4.0, cc0-1.0, openrail, other"
"""Identifiers of licences that the Hub knows, for messages; it knows more."""
_LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]{1,40}")
_FRONT = re.compile(r"---\n(.*?)^---\s*$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Publication:
    """Publication that is ready to be sent.

    Attributes:
        address: to send it to.
        product: that is sent.
        license_id: of the weights.
        files: name in the repository → a file, or its bytes.
    """

    address: Address
    product: Product
    license_id: str
    files: dict[str, Path | bytes]

    def lines(self) -> Iterator[str]:
        """Lines on what would be sent: one for each file, then the whole."""
        sizes = {name: _size(content) for name, content in self.files.items()}
        for name, size in sizes.items():
            yield f"{size_text(size):>8}  {name}"
        yield (
            f"{size_text(sum(sizes.values())):>8}  in {len(sizes)} files to {self.address}, "
            f"licence {self.license_id}"
        )


def parse_target(name: str, revision: str | None = None) -> Address:
    """Address that `push` names.

    Args:
        name: `owner/name`, or its address.
        revision: a branch; None for the main one.

    Raises:
        UserError: it is neither, or not that of a whole repository of a model.
    """
    address = parse_address(name if is_address(name) else f"{SCHEME}{name}")
    if address.path:
        raise UserError(f"{name}: expected owner/name alone, without a path")
    if address.kind != HUB_MODEL:
        raise UserError(f"{name}: expected owner/name of a model, not of a data set")
    if revision is None:
        return address
    if address.revision not in ("", revision):
        raise UserError(f"--revision {revision}: {name} names another, {address.revision}")
    return parse_address(f"{SCHEME}{address.repo_id}@{revision}")


def prepare(place: Path, address: Address, license_id: str | None = None) -> Publication:
    """Prepare a publication: check the product, and draft a card where it has none of yours.

    Nothing is written.

    Args:
        place: a finished run, a model folder, a ControlNet or a LoRA file.
        address: to send it to.
        license_id: of the weights, such as "apache-2.0"; None for that of a card of your own.

    Raises:
        UserError: there is no product, or it is damaged; no licence, or another than the card's.
    """
    if license_id is not None and not _LICENCE.fullmatch(license_id):
        raise UserError(f"--license: {license_id!r} is no identifier such as {LICENCES}")
    product = read_product(place)
    _verify(product)
    card = product.folder / CARD
    text = card.read_text("utf-8", "replace") if card.is_file() else ""
    stated = stated_license(text, card)
    if license_id is None and not stated:
        raise UserError(
            f"{place}: under which licence? Name it with --license, such as {LICENCES}"
        )
    picture = product.folder / SAMPLES if (product.folder / SAMPLES).is_file() else None
    if text and not is_own(text):
        if license_id not in (None, stated):
            said = f"says {stated}" if stated else "names no licence"
            raise UserError(
                f"--license {license_id}: {card} {said}, and a card of yours is not changed; "
                f"write `license: {license_id}` between the lines --- at its top"
            )
    else:
        text, picture = draft_card(product, None, license_id or stated)
        text = addressed(text, str(address))
    files: dict[str, Path | bytes] = {CARD: text.encode()}
    if picture is not None:
        files[SAMPLES] = picture
    files |= {name.as_posix(): product.folder / name for name in product.files}
    return Publication(address, product, license_id or stated, files)


def keep_remote_card(publication: Publication, remote: str | None) -> Publication:
    """Publication without its card where somebody wrote one on the Hub.

    A card of your own beside the model is sent all the same.

    Args:
        publication: that is ready.
        remote: card on the Hub; None for none.
    """
    own = publication.files[CARD]
    if remote is None or not isinstance(own, bytes) or not is_own(own.decode()):
        return publication
    if is_own(remote) or not _FRONT.sub("", remote, count=1).strip():
        return publication
    files = {name: content for name, content in publication.files.items() if name != CARD}
    return replace(publication, files=files)


def stated_license(text: str, card: Path) -> str:
    """Licence in the front matter of a card; "" for none.

    Args:
        text: of the card.
        card: its file, for messages.

    Raises:
        UserError: the front matter is no YAML.
    """
    found = _FRONT.match(text)
    try:
        keys = yaml.safe_load(found[1]) if found else None
    except yaml.YAMLError as error:
        raise UserError(f"{card}: no YAML at its top ({one_line(error, 120)})") from None
    value = keys.get("license") if isinstance(keys, dict) else None
    return value if isinstance(value, str) else ""


def _verify(product: Product) -> None:
    """Compare the digests of a product's files, so that nothing damaged is sent."""
    if product.kind == CONTROL:
        read_control_folder(product.folder)
    elif product.kind == MODEL:
        read_model_folder(product.folder)


def _size(content: Path | bytes) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size
