"""Commands on images before training: `doctor`, `pack`, `encode`."""

from __future__ import annotations

from pathlib import Path

import click

from latentddpm.choices import PRECISIONS
from latentddpm.cli.help import completion
from latentddpm.cli.options import FOLDER, catalog_option, data_option, strict_option
from latentddpm.cli.usage import command
from latentddpm.distribution.processes import STRATEGIES, parse_strategy
from latentddpm.errors import UserError, check_choice
from latentddpm.utils.console import say
from latentddpm.utils.startup import import_keras


@click.command()
@click.argument(
    "data",
    metavar="DATA[:WEIGHT]...",
    nargs=-1,
    required=True,
    shell_complete=completion.data,
)
@click.option("--resolution", type=int, help="Report images with a side shorter than this.")
@click.option(
    "--caption-template",
    "templates",
    multiple=True,
    metavar="T",
    help="As in data.caption_templates; may be given repeatedly.",
)
@click.option("--context-length", type=int, default=77, show_default=True, help="Tokens that fit.")
@click.option(
    "--mask",
    default="",
    metavar="SUFFIX|COLUMN",
    help="Check masks of the loss: .mask.png beside the images, or the column that names them.",
)
@click.option("--examples", type=int, help="Files per finding [default: 3; all in JSON].")
@click.option("--json", "machine", is_flag=True, help="JSON on stdout instead of the table.")
@click.option("--strict", is_flag=True, help="Exit with 2 when there are errors.")
@command
def doctor(
    data: tuple[str, ...],
    resolution: int | None,
    templates: tuple[str, ...],
    context_length: int,
    mask: str,
    examples: int | None,
    machine: bool,
    strict: bool,
    quiet: bool,
) -> None:
    """Check captioned images for problems, before training.

    DATA is a folder or shards, as --data of other commands takes them; several with a weight each
    are looked at together. Nothing in it is changed.
    """
    from latentddpm.data.doctor.doctor import examine
    from latentddpm.data.doctor.report import as_json, as_text
    from latentddpm.data.findings import ERROR

    if examples is not None and examples < 0:
        raise UserError(f"--examples: {examples}, expected 0 or more")
    report = examine(
        data[0] if len(data) == 1 else list(data),
        resolution=resolution,
        templates=templates,
        context_length=context_length,
        mask=mask,
        limit=examples if examples is not None else None if machine else 3,
        quiet=quiet,
    )
    click.echo(as_json(report) if machine else as_text(report))
    if strict and any(report.of(ERROR)):
        raise click.exceptions.Exit(2)


@click.command()
@data_option
@click.option("--out", type=FOLDER, required=True, help="New folder for the shards.")
@click.option(
    "--format",
    "kind",
    default="tar",
    show_default=True,
    shell_complete=completion.among("tar", "parquet", "tfrecord", "array-record"),
    help="tar (WebDataset), parquet (Hugging Face), tfrecord, array-record.",
)
@click.option("--shard-size", default="512MB", show_default=True, help="Bytes per shard.")
@command
def pack(data: str | list[str], out: Path, kind: str, shard_size: str, quiet: bool) -> None:
    """Pack captioned images into shards, for very large sets."""
    from latentddpm.data import pack as packing

    size = packing.parse_size(shard_size)
    count, shards = packing.pack(data, out, kind=kind, shard_size=size, quiet=quiet)
    say(f"{count} images in {shards} {kind} shards", quiet)
    click.echo(out)


@click.command()
@data_option
@click.option(
    "--vae",
    type=FOLDER,
    required=True,
    shell_complete=completion.models,
    help="Model folder or finished train-vae run.",
)
@click.option("--out", type=FOLDER, required=True, help="Folder of the latents cache.")
@catalog_option
@click.option("--resolution", type=int, help="Side in pixels [default: the model's own].")
@click.option("--aspect-buckets", is_flag=True, help="For data.aspect_buckets: true.")
@click.option("--bucket-step", type=click.IntRange(1), default=64, show_default=True)
@click.option("--bucket-max-ratio", type=click.FloatRange(1), default=2.0, show_default=True)
@click.option("--mirrored", is_flag=True, help="Encode a mirrored copy of each image too.")
@click.option(
    "--precision",
    default="float32",
    show_default=True,
    shell_complete=completion.among(*PRECISIONS),
    help=f"{', '.join(PRECISIONS)}; as data.latents_precision of the training.",
)
@click.option(
    "--strategy",
    default="auto",
    show_default=True,
    shell_complete=completion.among(*STRATEGIES),
    help="multi-worker: each process encodes a part.",
)
@strict_option
@command
def encode(
    data: str | list[str],
    vae: Path,
    out: Path,
    catalog: Path | None,
    resolution: int | None,
    aspect_buckets: bool,
    bucket_step: int,
    bucket_max_ratio: float,
    mirrored: bool,
    precision: str,
    strategy: str,
    strict: bool,
    quiet: bool,
) -> None:
    """Encode images into latents, for train-diffusion."""
    from latentddpm.training.encode_folder import encode_folder, plan_encoding

    parse_strategy(strategy)
    check_choice("--precision", precision, PRECISIONS)
    buckets = (bucket_step, bucket_max_ratio) if aspect_buckets else None
    plan_encoding(data, vae, out, resolution, buckets)
    import_keras()
    from latentddpm.distribution.strategy import make_strategy, translate_worker_errors

    devices = make_strategy(strategy)
    options = {"resolution": resolution, "aspect_buckets": buckets, "mirrored": mirrored}
    options |= {"precision": precision, "strategy": devices}
    with translate_worker_errors(devices):
        cache = encode_folder(
            data, vae, out, catalog=catalog, **options, strict=strict, quiet=quiet
        )
    say(f"{cache.count} images, latents {'×'.join(map(str, cache.latent_shape))}", quiet)
    click.echo(out)
