"""Options that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from latentddpm.choices import AUTO, ENGINES, PRECISIONS, STORAGE
from latentddpm.cli.help import completion
from latentddpm.cli.places import PLACE, SCALED_PLACE
from latentddpm.distribution.processes import STRATEGIES

FOLDER = click.Path(path_type=Path)


class Numbers(click.ParamType):
    """Option that is a number, or several with commas between them: `0.5` or `1,0.5,0`.

    Args:
        count: how many there have to be; None for any number of them.
    """

    name = "number[,number…]"

    def __init__(self, count: int | None = None) -> None:
        self.count = count

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float | list[float]:
        if not isinstance(value, str):
            return value
        try:
            numbers = [float(word) for word in value.split(",")]
        except ValueError:
            self.fail(f"{value!r} is not a number, nor numbers with commas between them", param)
        if self.count not in (None, len(numbers)):
            self.fail(f"{value!r}: expected {self.count} numbers with a comma between them", param)
        return numbers if len(numbers) > 1 else numbers[0]


class NamedNumber(click.ParamType):
    """Option that gives a number to a name: `lines=1.5`."""

    name = "NAME=NUMBER"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, float]:
        name, equals, number = value.rpartition("=")
        try:
            if name and equals:
                return name.strip(), float(number)
        except ValueError:
            pass
        self.fail(f"{value!r}: expected {self.name}, such as lines=1.5", param)


NUMBERS = Numbers()
PAIR = Numbers(2)
NAMED_NUMBER = NamedNumber()


def one_or_several(
    ctx: click.Context, param: click.Parameter, value: tuple[str, ...]
) -> str | list[str]:
    """Place of the data, or a list of the places where the option was given several times.

    Args:
        ctx: of the command.
        param: the option.
        value: all places.
    """
    return value[0] if len(value) == 1 else list(value)


data_option = click.option(
    "--data",
    required=True,
    multiple=True,
    callback=one_or_several,
    metavar="PLACE[:WEIGHT]",
    shell_complete=completion.data,
    help="Folder of images, or of shards; a shard; a pattern such as a-{00..99}.tar; "
    "hf://datasets/owner/name[/split]. Repeatable; weight: how often an image of the place is "
    "used, relative to others.",
)
catalog_option = click.option(
    "--catalog", type=FOLDER, help="Catalog to share [default: below OUT]."
)
strict_option = click.option("--strict", is_flag=True, help="Refuse data with unreadable images.")
model_option = click.option(
    "--model",
    type=PLACE,
    required=True,
    shell_complete=completion.models,
    help="Model folder, ready model, or hf://owner/name.",
)
lora_option = click.option(
    "--lora",
    "loras",
    type=SCALED_PLACE,
    multiple=True,
    metavar="FILE[:SCALE]",
    shell_complete=completion.data,
    help="LoRA file or run to apply, or hf://owner/name; may be given repeatedly.",
)
precision_option = click.option(
    "--precision",
    shell_complete=completion.among(AUTO, *PRECISIONS),
    help=f"auto, {', '.join(PRECISIONS)} [default: auto].",
)
engine_option = click.option(
    "--engine",
    shell_complete=completion.among(*ENGINES),
    help=f"{', '.join(ENGINES)} [default: auto].",
)
storage_option = click.option(
    "--storage",
    default="float32",
    show_default=True,
    shell_complete=completion.among(*STORAGE),
    help="float16 halves the files of weights.",
)
strategy_option = click.option(
    "--strategy",
    default="auto",
    show_default=True,
    shell_complete=completion.among(*STRATEGIES),
    help="auto, one, mirrored, mirrored:N, multi-worker.",
)
