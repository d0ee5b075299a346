"""What goes wrong on the command line, in one line that a person can use.

Exit codes: 1 the system failed (disk, memory, permission) or a training diverged, 2 the input was
wrong, 128 + n ended by signal n after saving (130 Ctrl-C, 143 SIGTERM, 138 SIGUSR1).
"""

from __future__ import annotations

import contextlib
import functools
import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import click
from click.core import ParameterSource

from latentddpm.errors import UserError, check_choice, nearest, one_line
from latentddpm.utils.console import say

NO_MEMORY = "ResourceExhaustedError"
"""TensorFlow's; known by its name, for this module imports nothing heavy."""


class Failure(click.ClickException):
    """One line on stderr, with the exit code of its kind."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code

    def show(self, file: Any = None) -> None:
        click.echo(f"latentddpm: {self.message}", err=True)


# What click raises for a bare `latentddpm`, from 8.2 on: not an error, its message is the help.
HELP_IS_WANTED = getattr(click.exceptions, "NoArgsIsHelpError", ())


class Commands(click.Group):
    """All commands; what click finds wrong with an option or argument is one line as well."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        with one_line_usage():
            return super().make_context(*args, **kwargs)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if not args[0].startswith("-"):
            check_choice("command", args[0], self.list_commands(ctx))
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        with one_line_usage():
            return super().invoke(ctx)


@contextlib.contextmanager
def one_line_usage() -> Iterator[None]:
    """What click tells in three lines (usage, where help is, error) as a `Failure`."""
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
    """What all commands share: `--quiet`, `--traceback`, errors in one line."""

    @click.option("--quiet", is_flag=True, help="No progress bars or notes.")
    @click.option("--traceback", is_flag=True, help="Show where an error came from.")
    @functools.wraps(function)
    def run(*args: Any, traceback: bool, **kwargs: Any) -> None:
        warnings.showwarning = _show_warning
        try:
            function(*args, **kwargs)
        except (UserError, OSError, ArithmeticError, MemoryError) as error:
            if traceback:
                raise
            message = one_line(error)
            if isinstance(error, UserError):
                raise Failure(name_option(message), 2) from None
            raise Failure(message, 1) from None
        except Exception as error:
            if traceback or type(error).__name__ != NO_MEMORY:
                raise
            advice = "make fewer at a time (--batch-size), or smaller ones"
            raise Failure(f"out of memory; {advice}", 1) from None
        except KeyboardInterrupt as error:
            code = getattr(error, "exit_code", 130)
            raise Failure(one_line(error) if error.args else "interrupted", code) from None

    return run


def name_option(message: str) -> str:
    """A message that begins with an argument's name, by the option that gave it.

    Functions say `num_steps: …` and `height 30 …`; on the command line these are `--steps` and
    `--height`.
    """
    context = click.get_current_context()
    for option in context.command.params:
        given = context.get_parameter_source(option.name) is ParameterSource.COMMANDLINE
        own = option.opts[0].removeprefix("--").replace("-", "_")
        named = re.match(rf"({option.name}|{own})(?=: | -?\d)", message)
        if given and named and option.opts[0].startswith("--"):
            return option.opts[0] + message[named.end() :]
    return message


def _show_warning(message: Warning | str, category: type[Warning], *rest: Any) -> None:
    """Warnings as one plain line; other libraries' are left to `--traceback` sessions."""
    if "latentddpm" in getattr(category, "__module__", "") or category is UserWarning:
        say(f"warning: {one_line(message)}")
