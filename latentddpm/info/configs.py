"""Ready configurations: the list of them, and one with its comments, as `configs` prints them."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

from latentddpm.config import COMMANDS, AutoencoderRun, DiffusionRun
from latentddpm.config_file import find_config, load_config, ready_configs
from latentddpm.errors import UserError

WIDTH = 96
END_OF_SENTENCE = re.compile(r"\.(?=\s+[A-Z-]|$)")


def list_configs() -> str:
    """Ready configurations, by command: name, sizes, and the first sentence of the comment.

    Returns:
        Lines of text.
    """
    ready = ready_configs()
    settings = {name: settings_by_command(path) for name, path in ready.items()}
    width = max(map(len, ready), default=0)
    lines = []
    for command in COMMANDS:
        lines += ["", f"latentddpm {command} --config NAME"]
        for name, path in ready.items():
            if command in settings[name]:
                lines += [f"  {name:{width}}  {_sizes(settings[name][command])}"]
                rows = textwrap.wrap(first_sentence(path), WIDTH - width)
                lines += [f"  {'':{width}}  {row}" for row in rows]
    return "\n".join(lines[1:])


def read_config(name: str) -> str:
    """Text of a configuration, with its comments.

    Args:
        name: of a ready one, or the path of a file.

    Raises:
        UserError: there is none.
    """
    return find_config(name).read_text("utf-8")


def settings_by_command(path: Path) -> dict[str, AutoencoderRun | DiffusionRun]:
    """Settings of a configuration for the commands that take it: command → settings.

    Args:
        path: of the file.
    """
    found = {}
    for command, kind in COMMANDS.items():
        try:
            found[command] = load_config(kind, path)
        except UserError:
            continue
    return found


def first_sentence(path: Path) -> str:
    """First sentence of the comment that a configuration begins with.

    Args:
        path: of the file.
    """
    comment = " ".join(line.lstrip("# ") for line in _comment(path))
    return END_OF_SENTENCE.split(comment, maxsplit=1)[0] + "."


def _comment(path: Path) -> Iterator[str]:
    for line in path.read_text("utf-8").splitlines():
        if not line.startswith("#"):
            return
        yield line


def _sizes(settings: AutoencoderRun | DiffusionRun) -> str:
    """Resolution and length of a training."""
    side, training = settings.data.resolution, settings.training
    pixels = f"{side}×{side} pixels, " if side else ""
    return f"{pixels}{training.num_steps:,} steps of {training.batch_size}"
