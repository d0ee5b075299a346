"""Command that serves a page: `serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from latentddpm.choices import JIT
from latentddpm.cli.help import completion
from latentddpm.cli.options import FOLDER, engine_option, lora_option, precision_option
from latentddpm.cli.places import PLACE
from latentddpm.cli.usage import command


@click.command()
@click.argument(
    "model",
    type=PLACE,
    default="emoji-128",
    metavar="[MODEL]",
    shell_complete=completion.models,
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Others need a token.")
@click.option("--port", type=int, default=7860, show_default=True, help="0 takes a free one.")
@click.option(
    "--token",
    help="Token that visitors have to show; better set LATENTDDPM_TOKEN.",
)
@click.option(
    "--out",
    type=FOLDER,
    default=Path("drawings"),
    show_default=True,
    help="Folder of the pictures.",
)
@click.option(
    "--runs", type=FOLDER, help="Folder of runs to show [default: the model's, or runs]."
)
@lora_option
@click.option("--max-images", type=click.IntRange(1), default=16, show_default=True)
@click.option("--max-steps", type=click.IntRange(1), default=250, show_default=True)
@click.option(
    "--max-pixels",
    type=click.IntRange(1),
    default=1 << 20,
    show_default=True,
    help="Height times width of an image.",
)
@click.option(
    "--queue",
    type=click.IntRange(1),
    default=64,
    show_default=True,
    help="Drawings that may wait.",
)
@click.option(
    "--keep",
    type=click.IntRange(1),
    help="Pictures that are kept, of those since the start [default: all].",
)
@engine_option
@precision_option
@click.option(
    "--jit",
    shell_complete=completion.among(*JIT),
    help="auto, on, off: compile Keras's networks with XLA [default: auto].",
)
@command
def serve(quiet: bool, max_images: int, max_steps: int, max_pixels: int, **options: Any) -> None:
    """Serve a page that draws with a model, and a JSON API.

    MODEL is a model folder, a run, a ready model, or hf://owner/name [default: emoji-128].
    """
    from latentddpm.serve.requests import Limits
    from latentddpm.serve.server import ServeOptions
    from latentddpm.serve.server import serve as run

    limits = Limits(max_images, max_steps, max_pixels)
    run(ServeOptions(**options, limits=limits), quiet)
