"""Completion of the command line by the shell: bash, zsh, fish.

    eval "$(latentddpm --completion bash)"      in ~/.bashrc; zsh: in ~/.zshrc
    latentddpm --completion fish > ~/.config/fish/completions/latentddpm.fish

The shell asks `latentddpm` itself, which answers before Keras is imported. Commands and options
are click's business; here are the words that an option takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, get_args, get_origin

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    ZshComplete,
    add_completion_class,
    get_completion_class,
)

from latentddpm.packaged import packaged_files
from latentddpm.pipeline.model_folder import ready_names

SHELLS = ("bash", "zsh", "fish")
FILES = "file"
"""Kind of an item that stands for the files of the working directory."""
Completer = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]

BASH = """\
%(complete_func)s() {
    local IFS=$'\\n' current=${COMP_WORDS[COMP_CWORD]} kind value
    [[ $current == "=" ]] && current=""
    while IFS=',' read -r kind value; do
        if [[ $kind == file ]]; then
            compopt -o filenames
            COMPREPLY+=($(compgen -f -- "$current"))
        elif [[ $kind == dir ]]; then
            compopt -o filenames
            COMPREPLY+=($(compgen -d -- "$current"))
        else
            [[ $value == *= ]] && compopt -o nospace
            COMPREPLY+=("$value")
        fi
    done < <(env COMP_WORDS="${COMP_WORDS[*]}" COMP_CWORD=$COMP_CWORD \\
        %(complete_var)s=bash_complete "$1")
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""

ZSH = """\
#compdef %(prog_name)s
%(complete_func)s() {
    local -a words_alone words_described keys response
    response=("${(@f)$(env COMP_WORDS="${words[*]}" COMP_CWORD=$((CURRENT-1)) \\
        %(complete_var)s=zsh_complete %(prog_name)s)}")
    for kind value help in ${response}; do
        if [[ $kind == file ]]; then _path_files -f
        elif [[ $kind == dir ]]; then _path_files -/
        elif [[ $kind == key ]]; then keys+=("$value:$help")
        elif [[ $help == _ ]]; then words_alone+=("$value")
        else words_described+=("$value:$help")
        fi
    done
    (( $#keys )) && _describe -V keys keys -U -S ''
    (( $#words_described )) && _describe -V described words_described -U
    (( $#words_alone )) && compadd -U -V alone -a words_alone
}
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    %(complete_func)s "$@"
else
    compdef %(complete_func)s %(prog_name)s
fi
"""


class Bash(BashComplete):
    """Completion for bash: files beside words, and words that bash has cut at `=` as one."""

    source_template = BASH

    def get_completion_args(self) -> tuple[list[str], str]:
        args, incomplete = super().get_completion_args()
        self.done = ""
        if incomplete == "=":
            args, incomplete = [*args, "="], ""
        if len(args) > 1 and args[-1] == "=":
            self.done = f"{args[-2]}="
            return args[:-2], self.done + incomplete
        return args, incomplete

    def format_completion(self, item: CompletionItem) -> str:
        return f"{item.type},{item.value.removeprefix(self.done)}"


class Zsh(ZshComplete):
    """Completion for zsh: no blank after a key that ends in `=`."""

    source_template = ZSH

    def format_completion(self, item: CompletionItem) -> str:
        line = super().format_completion(item)
        return f"key{line.removeprefix(item.type)}" if item.value.endswith("=") else line


def print_completion(context: click.Context, _: click.Parameter, shell: str | None) -> None:
    """Callback of `--completion`: print the script of a shell, and stop.

    Args:
        context: of the program.
        shell: one of `SHELLS`; None where the option was not given.
    """
    if shell is None or context.resilient_parsing:
        return
    name = context.info_name or "latentddpm"
    variable = f"_{name.replace('-', '_').replace('.', '_')}_complete".upper()
    kind = get_completion_class(shell)
    click.echo(kind(context.command, {}, name, variable).source())
    context.exit()


def among(*words: str, files: bool = False) -> Completer:
    """Completer of an option that takes one of some words.

    Args:
        words: that it takes.
        files: it takes the path of a file too.
    """
    return among_names(lambda: words, files)


def among_names(names: Callable[[], Iterable[str]], files: bool = True) -> Completer:
    """Completer of an option that takes a name of a thing that ships, or a path.

    Args:
        names: function that returns the names.
        files: it takes the path of a file too.
    """

    def complete(
        context: click.Context, parameter: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        found = [CompletionItem(name) for name in names() if name.startswith(incomplete)]
        return [*found, *[CompletionItem(incomplete, type=FILES)] * files]

    return complete


models = among_names(ready_names)
"""Completer of `--model`."""
configs = among_names(lambda: packaged_files("configs"))
"""Completer of `--config`."""
pages = among_names(lambda: packaged_files("docs"), files=False)
"""Completer of `help`."""
data = among(files=True)
"""Completer of what is a path, or a pattern of several."""


def settings(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Completer of `--set`: the settings of the command, then the values of the chosen one."""
    known = dict(_settings(context.info_name))
    key, equals, _ = incomplete.partition("=")
    if not equals:
        return [
            CompletionItem(f"{one}=", help=field.description)
            for one, field in known.items()
            if one.startswith(incomplete)
        ]
    words = _words(known[key].annotation) if key in known else ()
    found = [f"{key}={word}" for word in words]
    return [CompletionItem(one) for one in found if one.startswith(incomplete)]


def _settings(command: str | None) -> Iterator[tuple[str, Any]]:
    """Settings of a command, as `section.key`, with their fields."""
    from latentddpm.config import COMMANDS

    for name, field in COMMANDS[command].model_fields.items() if command in COMMANDS else ():
        yield from _inside(name, field.annotation)


def _inside(prefix: str, section: Any) -> Iterator[tuple[str, Any]]:
    """Settings of a section and of the sections in it; none of what is no section."""
    for name, setting in getattr(section, "model_fields", {}).items():
        if hasattr(setting.annotation, "model_fields"):
            yield from _inside(f"{prefix}.{name}", setting.annotation)
        else:
            yield f"{prefix}.{name}", setting


def _words(annotation: Any) -> tuple[str, ...]:
    """Values of a setting that takes one of a few."""
    if annotation is bool:
        return "true", "false"
    if get_origin(annotation) is Literal:
        return tuple(map(str, get_args(annotation)))
    return tuple(word for one in get_args(annotation) for word in _words(one))


for kind in (Bash, Zsh):
    add_completion_class(kind)
