"""Commands that show what ships with the package: `configs`, `help`."""

from __future__ import annotations

import json

import click

from latentddpm.cli.help import completion
from latentddpm.cli.help.pages import list_pages, read_page
from latentddpm.cli.usage import command
from latentddpm.errors import UserError, check_choice

EITHER = "either"


@click.command()
@click.argument("name", required=False, metavar="[NAME]", shell_complete=completion.configs)
@click.option(
    "--schema",
    metavar="[COMMAND]",
    is_flag=False,
    flag_value=EITHER,
    shell_complete=completion.among("train-vae", "train-diffusion"),
    help="JSON schema for editors, of train-vae or train-diffusion [default: of either].",
)
@command
def configs(name: str | None, schema: str | None, quiet: bool) -> None:
    """List or print ready configurations, or the schema.

    \b
    latentddpm configs
    latentddpm configs small-64-vae > mine.yaml
    latentddpm configs --schema train-vae > train-vae.schema.json
    """
    if schema is not None:
        if name is not None:
            raise UserError("--schema: is of all configurations; give no NAME with it")
        click.echo(_schema(schema))
        return
    from latentddpm.info.configs import list_configs, read_config

    click.echo(list_configs() if name is None else read_config(name), nl=name is None)


def _schema(of: str) -> str:
    """JSON schema of one command's configurations, or of either command's."""
    from latentddpm.config import COMMANDS
    from latentddpm.config.schema import config_schema

    check_choice("--schema", of, (*COMMANDS, EITHER))
    commands = COMMANDS if of == EITHER else (of,)
    return json.dumps(config_schema(*commands), indent=2, ensure_ascii=False)


@click.command("help")
@click.argument("page", required=False, metavar="[PAGE]", shell_complete=completion.pages)
@command
def show_page(page: str | None, quiet: bool) -> None:
    """List the pages of the documentation, or print one.

    On a terminal a page opens in the pager. The options of a command are in COMMAND --help.
    """
    if page is None:
        click.echo(list_pages())
    else:
        click.echo_via_pager(read_page(page))
