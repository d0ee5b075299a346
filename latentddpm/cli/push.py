"""Command that uploads a finished model: `push`."""

from __future__ import annotations

from pathlib import Path

import click

from latentddpm.cli.options import FOLDER
from latentddpm.cli.usage import command
from latentddpm.utils.console import activity, say


@click.command()
@click.argument("run", type=FOLDER, metavar="RUN")
@click.argument("target", metavar="OWNER/NAME")
@click.option(
    "--license",
    "license_id",
    metavar="ID",
    help="Of the weights, such as apache-2.0, mit, cc-by-4.0, openrail, other [required, unless a "
    "card of yours names it].",
)
@click.option("--private", is_flag=True, help="Make a new repository private.")
@click.option("--revision", metavar="BRANCH", help="Branch to write to [default: main].")
@click.option("--dry-run", is_flag=True, help="Print what would be sent, and send nothing.")
@command
def push(
    run: Path,
    target: str,
    license_id: str | None,
    private: bool,
    revision: str | None,
    dry_run: bool,
    quiet: bool,
) -> None:
    """Upload a model with its card to Hugging Face's Hub.

    RUN is a finished run, a model folder, a ControlNet or a LoRA. A card is written where there
    is none; one that you wrote or changed is sent as it is. Log in with `hf auth login`, or set
    HF_TOKEN: no option takes a token.
    """
    from latentddpm.hub.upload import check_login, read_remote, upload
    from latentddpm.model_card.card import CARD, write_card
    from latentddpm.model_card.publication import keep_remote_card, parse_target, prepare

    address = parse_target(target, revision)
    if not dry_run:
        check_login(address)
    publication = prepare(run, address, license_id)
    if dry_run:
        click.echo("\n".join(publication.lines()))
        return
    with activity(f"uploading to {address}", quiet):
        publication = keep_remote_card(publication, read_remote(address, CARD))
        if CARD not in publication.files:
            say(f"{address}: the {CARD} there was written by a person, and is kept", quiet)
        found = upload(address, publication.files, private)
    write_card(run, license_id=publication.license_id)
    click.echo(found)
