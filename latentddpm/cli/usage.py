"""Commands in groups, and their errors: one line on stderr that names a page, and an exit code.

Exit codes: 1 the system failed (disk, memory, permission) or a training diverged, 2 the input was
wrong, 128 + n ended by signal n after saving (130 Ctrl-C, 143 SIGTERM, 138 SIGUSR1).
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import click
from click.core import ParameterSource

from latentddpm.cli.help.pages import with_page
from latentddpm.cli.places import fetched
from latentddpm.errors import UserError, check_choice, nearest, one_line
from latentddpm.utils.console import say, speaking

NO_MEMORY = "ResourceExhaustedError"
"""Name of TensorFlow's error class: this module does not import TensorFlow."""


class Failure(click.ClickException):
    """Error that ends a command with one line on stderr.

    Args:
        message: one line.
        exit_code: 1 or 2, or 128 + a signal.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code

    def show(self, file: Any = None) -> None:
        name = painted("latentddpm:", fg="red", bold=True)
        click.echo(f"{name} {self.message}", err=True, color=True)


# Click ≥ 8.2 raises this for a bare `latentddpm`: not an error, its message is the help.
HELP_IS_WANTED = getattr(click.exceptions, "NoArgsIsHelpError", ())


def wants_colour(environment: Mapping[str, str] = os.environ) -> bool | None:
    """True or False where the user says whether output has colours; None: on a terminal only.

    Args:
        environment: `NO_COLOR` of any value and `TERM=dumb` mean none; `FORCE_COLOR` means
            colours in a file or a pipe too.
    """
    if environment.get("NO_COLOR") or environment.get("TERM") == "dumb":
        return False
    return True if environment.get("FORCE_COLOR") else None


def painted(text: str, **style: Any) -> str:
    """Text for stderr, in a style of `click.style` where it has colours.

    Args:
        text: one line.
        style: such as `fg="yellow"`.
    """
    wanted = wants_colour()
    return (
        click.style(text, **style) if wanted or (wanted is None and sys.stderr.isatty()) else text
    )


class Commands(click.Group):
    """Commands in groups, as `--help` lists them; click's own errors are one line too."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.groups: dict[str, list[str]] = {}

    def add_group(self, title: str, commands: Sequence[click.Command]) -> None:
        """Add commands below one title.

        Args:
            title: of the group.
            commands: in the order of `--help`.
        """
        for one in commands:
            self.add_command(one)
        self.groups[title] = [one.name for one in commands if one.name]

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for names in self.groups.values() for name in names]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(map(len, self.list_commands(ctx)))
        for title, names in self.groups.items():
            limit = formatter.width - width - 6
            rows = [
                (f"{name:{width}}", self.commands[name].get_short_help_str(limit))
                for name in names
            ]
            with formatter.section(title):
                formatter.write_dl(rows)

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        with one_line_usage():
            return super().make_context(*args, color=wants_colour(), **kwargs)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if not args[0].startswith("-") and not ctx.resilient_parsing:
            check_choice("command", args[0], self.list_commands(ctx))
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        with one_line_usage():
            return super().invoke(ctx)


@contextlib.contextmanager
def one_line_usage() -> Iterator[None]:
    """Turn click's errors and `UserError`, inside the block, into a `Failure` of one line.

    Raises:
        Failure: instead of them.
    """
    try:
        yield
    except HELP_IS_WANTED:
        raise
    except click.UsageError as error:
        message = error.format_message().rstrip(".")
        if isinstance(error, click.NoSuchOption):
            known = [name for p in error.ctx.command.get_params(error.ctx) for name in p.opts]
            message = f"no such option {error.option_name}{nearest(error.option_name, known)}"
        help_line = f"; see {error.ctx.command_path} --help" if error.ctx else ""
        raise Failure(f"{message[0].lower()}{message[1:]}{help_line}", 2) from None
    except UserError as error:
        raise Failure(one_line(error), 2) from None


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Decorator of all commands: `--quiet`, `--traceback`, and errors in one line.

    Args:
        function: of the command.
    """

    @click.option("--quiet", is_flag=True, help="No progress bars or messages.")
    @click.option("--traceback", is_flag=True, help="Show the traceback of an error.")
    @functools.wraps(function)
    def run(*args: Any, traceback: bool, **kwargs: Any) -> None:
        warnings.showwarning = _show_warning
        logging.getLogger("tensorflow").setLevel(logging.ERROR)
        try:
            with speaking(kwargs["quiet"]):
                function(*args, **fetched(kwargs))
        except (UserError, OSError, ArithmeticError, MemoryError) as error:
            if traceback:
                raise
            message = one_line(error)
            if isinstance(error, UserError):
                name = click.get_current_context().info_name or ""
                raise Failure(with_page(name_option(message), error, name), 2) from None
            raise Failure(message, 1) from None
        except Exception as error:
            if traceback or type(error).__name__ != NO_MEMORY:
                raise
            raise Failure(f"out of memory{_less_memory()}", 1) from None
        except KeyboardInterrupt as error:
            code = getattr(error, "exit_code", 130)
            raise Failure(one_line(error) if error.args else "interrupted", code) from None

    return run


LESS_MEMORY = {
    "batch_size": "fewer at a time (--batch-size)",
    "overrides": "a smaller batch (--set training.batch_size=N) or data.resolution",
    "height": "smaller ones (--height, --width)",
    "size": "smaller ones (--size)",
}
"""Argument of a command → what takes less memory."""


def _less_memory() -> str:
    """Advice on memory, in the options of the command that runs; "" where it has none."""
    names = {option.name for option in click.get_current_context().command.params}
    advice = [words for name, words in LESS_MEMORY.items() if name in names]
    return f"; make {', or '.join(advice)}" if advice else ""


def name_option(message: str) -> str:
    """Message of an error, with the names of arguments replaced by those of their options.

    Functions write `num_steps: …`, `height 30 …` and `give init_image`; on the command line these
    are `--steps`, `--height` and `--init-image`. A word such as "height" is an option only where
    it begins the message and was given.

    Args:
        message: one line.
    """
    context = click.get_current_context()
    for option in context.command.params:
        given = context.get_parameter_source(option.name) is ParameterSource.COMMANDLINE
        own = option.opts[0].removeprefix("--").replace("-", "_")
        named = re.match(rf"({option.name}|{own})(?=: | -?\d)", message)
        if given and named and option.opts[0].startswith("--"):
            message = option.opts[0] + message[named.end() :]
        if "_" in option.name and option.opts[0].startswith("--"):
            word = rf"(?<![\w./'\"=-])(?<!has ){option.name}(?![\w./'\"=(-])"
            message = re.sub(word, option.opts[0], message)
    return message


def _show_warning(message: Warning | str, category: type[Warning], *rest: Any) -> None:
    """Print a warning as one line; those of other libraries are dropped."""
    if "latentddpm" in getattr(category, "__module__", "") or category is UserWarning:
        say(f"{painted('warning:', fg='yellow')} {one_line(message)}")
