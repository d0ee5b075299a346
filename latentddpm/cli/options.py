"""Options that several commands take."""

from __future__ import annotations

from pathlib import Path

import click

FOLDER = click.Path(path_type=Path)

data_option = click.option(
    "--data",
    required=True,
    metavar="PLACE",
    help="Folder of images, or of shards; a shard; a pattern such as a-{00..99}.tar.",
)
catalog_option = click.option(
    "--catalog", type=FOLDER, help="Catalog to share [default: below OUT]."
)
strict_option = click.option("--strict", is_flag=True, help="Refuse data with unreadable images.")
model_option = click.option(
    "--model", type=FOLDER, required=True, help="Model folder or ready model."
)
lora_option = click.option(
    "--lora",
    "loras",
    multiple=True,
    metavar="FILE[:SCALE]",
    help="LoRA file or run to apply; may be given repeatedly.",
)
strategy_option = click.option(
    "--strategy",
    default="auto",
    show_default=True,
    help="auto, one, mirrored, mirrored:N, multi-worker.",
)
