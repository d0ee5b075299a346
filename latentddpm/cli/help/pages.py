"""Pages of the documentation on the command line: the command `help`, and the page of an error.

They ship with the package, so they are those of the version that runs.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator

from latentddpm.errors import UserError, nearest
from latentddpm.packaged import PACKAGE, packaged_files

HELP = "latentddpm help"
OF_COMMAND = {
    "doctor": "doctor",
    "pack": "scale",
    "encode": "training",
    "train": "train",
    "train-vae": "autoencoder",
    "train-diffusion": "training",
    "generate": "generate",
    "serve": "serve",
    "evaluate": "evaluate",
    "info": "terminal",
    "merge": "fine-tuning",
    "convert": "stable-diffusion",
    "export": "export",
    "push": "hub",
    "configs": "configurations",
}
"""Command → its page."""
OF_ROOM = {
    "config": "configurations",
    "config_file": "configurations",
    "conditions": "conditions",
    "data": "data",
    "data.conditions": "conditions",
    "data.captioning": "captions",
    "data.doctor": "doctor",
    "data.pack": "scale",
    "data.places": "captions",
    "distribution": "distributed",
    "diffusion.guidance": "generate",
    "generation.controls": "control",
    "generation.embeddings": "fine-tuning",
    "generation.loras": "fine-tuning",
    "hub": "hub",
    "interop.embedding": "fine-tuning",
    "interop.lora": "fine-tuning",
    "interop.lora_file": "fine-tuning",
    "pipeline.control": "control",
    "pipeline.regions": "regions",
    "pipeline.told": "conditions",
    "recipe": "train",
    "serve": "serve",
    "training.control": "control",
    "training.finetune": "fine-tuning",
    "training.plan.augment": "small-sets",
    "training.run": "checkpoints",
    "training.subject": "fine-tuning",
}
"""Room or module that raises an error → the page on it, where that is not the command's."""
EVERYWHERE = ("errors", "utils", "packaged", "cli")
"""Rooms whose functions check what others hand them: the caller tells the page."""


def read_page(name: str) -> str:
    """Text of a page, in Markdown.

    Args:
        name: such as "data"; a command's name stands for its page.

    Raises:
        UserError: there is no such page; the message has the nearest one.
    """
    ready = packaged_files("docs")
    if (path := ready.get(name) or ready.get(OF_COMMAND.get(name, ""))) is None:
        raise UserError(f"{name}: no such page{nearest(name, ready) or f'; {HELP} lists them'}")
    return path.read_text("utf-8")


def list_pages() -> str:
    """Pages that ship: name and title of each.

    Returns:
        Lines of text.
    """
    ready = packaged_files("docs")
    width = max(map(len, ready), default=0)
    lines = [
        f"  {name:{width}}  {_title(path.read_text('utf-8'))}" for name, path in ready.items()
    ]
    return "\n".join([f"{HELP} PAGE", *lines])


def with_page(message: str, error: UserError, command: str) -> str:
    """Message of an error that ends with the page that helps.

    Args:
        message: one line.
        error: that was raised, with its traceback.
        command: that ran.
    """
    page = page_of(error, command)
    if page not in packaged_files("docs") or HELP in message:
        return message
    return f"{message}; see {HELP} {page}"


def page_of(error: BaseException, command: str) -> str:
    """Page on what an error is about: of the room that raised it, else of the command.

    Args:
        error: that was raised, with its traceback.
        command: that ran.

    Returns:
        Name of the page; "" where there is none.
    """
    for module in _modules(error):
        room = module.split(".")
        if room[0] in EVERYWHERE:
            continue
        for end in range(len(room), 0, -1):
            if page := OF_ROOM.get(".".join(room[:end])):
                return page
        break
    return OF_COMMAND.get(command, "")


def _modules(error: BaseException) -> Iterator[str]:
    """Modules of the package that an error came through, below `latentddpm`, the raising first."""
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        package, dot, module = frame.f_globals.get("__name__", "").partition(".")
        if package == PACKAGE.name and dot:
            yield module


def _title(text: str) -> str:
    """First heading of a page."""
    return text.partition("\n")[0].lstrip("# ")
