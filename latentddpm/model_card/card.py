"""Model card: the `README.md` of a model, filled in from its files and from its run.

    model folder, run ──► front matter, use, data, networks, training, limits ──► README.md
                          last grid of the training                           ──► samples.png

The last line of a card says that latentddpm wrote it, with a digest of the text above. A card
without that line, or whose text has changed since, is a person's own and is kept.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from latentddpm.hub.address import address_of, parse_address
from latentddpm.model_card.facts import RunFacts, read_runs
from latentddpm.model_card.product import Product, read_product
from latentddpm.model_card.sections import (
    HERE,
    SAMPLES,
    data_section,
    front_matter,
    heading,
    limits_section,
    networks_section,
    training_section,
    usage,
)
from latentddpm.pipeline.control.folder import FOLDER as CONTROL_FOLDER
from latentddpm.utils.files import atomic_path

CARD = "README.md"
PARTS = ("model", CONTROL_FOLDER)
"""Folders that a run writes its product to."""

_SIGNED = re.compile(
    r"(?P<text>.*)<!-- written by latentddpm, (?P<digest>[0-9a-f]{64}); .*-->\n", re.DOTALL
)


def write_card(model: Path, run: Path | None = None, *, license_id: str = "") -> Path:
    """Write the card of a model, a LoRA or a ControlNet, beside its files.

    The last grid of the training is copied beside it, as `samples.png`. A card that a person
    wrote or changed is kept as it is.

    Args:
        model: its folder; of a LoRA the file, or the run that made it.
        run: folder of the run that trained it, or of a training of both networks; None for the
            folder that it lies in, if that is a run, and else for a card without a training.
        license_id: of the weights, such as "apache-2.0"; "" where nobody has said it.

    Returns:
        The card.

    Raises:
        UserError: there is no such product, or it is damaged.
        OSError: the disk is full, or the folder cannot be written.
    """
    product = read_product(model)
    card = product.folder / CARD
    if card.is_file() and not is_own(card.read_text("utf-8", "replace")):
        return card
    text, picture = draft_card(product, run, license_id)
    samples = product.folder / SAMPLES
    if picture is not None and picture != samples:
        with atomic_path(samples) as temporary:
            shutil.copyfile(picture, temporary)
    with atomic_path(card) as temporary:
        temporary.write_text(text, "utf-8")
    return card


def draft_card(
    product: Product, run: Path | None = None, license_id: str = ""
) -> tuple[str, Path | None]:
    """Text of a card, and the picture that it shows as `samples.png`; nothing is written.

    Args:
        product: as it was read.
        run: see `write_card`.
        license_id: see there.

    Returns:
        The text, and the last grid of the run, else the picture beside the card; None for none.
    """
    runs = read_runs(run or _run_around(product))
    picture = next((one.samples for one in reversed(runs) if one.samples is not None), None)
    beside = product.folder / SAMPLES
    if picture is None and beside.is_file():
        picture = beside
    return _text(product, runs, license_id, picture is not None), picture


def _text(product: Product, runs: list[RunFacts], license_id: str, has_samples: bool) -> str:
    sections = (
        heading(product, _name(product.folder), has_samples),
        usage(product),
        data_section(runs),
        networks_section(product),
        training_section(runs),
        limits_section(product, runs),
    )
    return sign(front_matter(product, runs, license_id) + "\n" + "\n".join(sections))


def sign(text: str) -> str:
    """Text of a card with the last line, by which `is_own` knows it again.

    Args:
        text: of the card, ending in a line break.
    """
    digest = hashlib.sha256(text.encode()).hexdigest()
    return f"{text}\n<!-- written by latentddpm, {digest}; edit it freely: it is kept then -->\n"


def is_own(text: str) -> bool:
    """True for the text of a card that `sign` returned and that nobody has changed.

    Args:
        text: of a card.
    """
    found = _SIGNED.fullmatch(text)
    return found is not None and sign(found["text"].removesuffix("\n")) == text


def addressed(text: str, address: str) -> str:
    """Text of an own card with an address in its commands.

    Args:
        text: of the card; one that is not `is_own` is returned as it is.
        address: on the Hub.
    """
    found = _SIGNED.fullmatch(text)
    if found is None or not is_own(text):
        return text
    body = found["text"].removesuffix("\n")
    return sign(re.sub(rf"`{HERE}` is .*\n\n|\b{HERE}\b", _replaced(address), body))


def _replaced(address: str) -> Callable[[re.Match[str]], str]:
    return lambda match: "" if match[0].startswith("`") else address


def _run_around(product: Product) -> Path:
    """Folder of the run that a product lies in; its own folder where it lies in none."""
    folder = product.folder
    return folder.parent if folder.name in PARTS else folder


def _name(folder: Path) -> str:
    """Name of a product: that of its repository, its run or its folder."""
    if (found := address_of(folder)) is not None:
        return parse_address(found).name
    folder = folder.absolute()
    return (folder.parent if folder.name in PARTS else folder).name
