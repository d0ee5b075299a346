"""Commands on finished models: `info`, `merge`, `convert`, `export`."""

from __future__ import annotations

import functools
from pathlib import Path

import click

from latentddpm.choices import CONVERSIONS, EXPORTS, STORAGE
from latentddpm.cli.help import completion
from latentddpm.cli.options import FOLDER, model_option, storage_option
from latentddpm.cli.places import PLACE, PLACE_TEXT, SCALED_PLACE
from latentddpm.cli.usage import command
from latentddpm.errors import UserError, check_choice
from latentddpm.pipeline.control.folder import control_folder, read_control_folder
from latentddpm.pipeline.model_folder import check_convertible, read_model_folder
from latentddpm.pipeline.recognise import is_checkpoint
from latentddpm.utils.console import activity, say
from latentddpm.utils.files import check_new
from latentddpm.utils.startup import import_keras


@click.command()
@click.argument(
    "paths", nargs=-1, metavar="[PATH...]", type=PLACE_TEXT, shell_complete=completion.models
)
@click.option(
    "--plot", type=FOLDER, metavar="FILE", help="Plot the learning curves: .png, .svg, .pdf."
)
@command
def info(paths: tuple[str, ...], plot: Path | None, quiet: bool) -> None:
    """Describe a PNG, model, run or data; or this machine.

    Without a path: versions, devices, memory, the cache, and the extras that are installed or
    missing, with the commands that need them.
    """
    from latentddpm.info import describe

    if not paths and plot is None:
        from latentddpm.info.machine import describe_machine

        for line in describe_machine():
            click.echo(line.replace(" missing ", click.style(" missing ", fg="yellow")))
        return
    if not paths:
        raise UserError("--plot: expected the runs whose curves it plots")
    if plot is not None:
        from latentddpm.training.run.curves import plot_runs

        plot_runs([Path(path) for path in paths], plot)
    click.echo("\n\n".join(describe(path, quiet) for path in paths))


@click.command()
@model_option
@click.option(
    "--lora",
    "loras",
    type=SCALED_PLACE,
    multiple=True,
    required=True,
    metavar="FILE[:SCALE]",
    shell_complete=completion.data,
    help="LoRA file or run; may be given repeatedly.",
)
@storage_option
@click.option("--out", type=FOLDER, required=True, help="New folder.")
@command
def merge(model: Path, loras: tuple[str, ...], storage: str, out: Path, quiet: bool) -> None:
    """Write a model with LoRA files in its weights."""
    from latentddpm.generation.loras import load_model, read_loras

    check_choice("storage", storage, STORAGE)
    check_new(out)
    folder = read_model_folder(model, verify=False)
    chosen = read_loras(loras, folder.path)
    folder.file("unet")
    import_keras()
    with activity(f"loading {folder.path.name}", quiet):
        merged = load_model(folder.path, chosen)
    merged.save(out, storage)
    click.echo(out)


@click.command()
@click.option(
    "--from",
    "source",
    type=PLACE,
    metavar="PATH",
    help="Diffusers folder, a part of one, a Stable Diffusion 1.x .safetensors file, or RUN/"
    "checkpoints/STEP; or one on the Hub, hf://owner/name.",
)
@click.option("--variant", help="Of the weight files in the folder, such as fp16.")
@click.option(
    "--to",
    "target",
    shell_complete=completion.among(*CONVERSIONS),
    help="diffusers; with --model.",
)
@click.option(
    "--model",
    type=PLACE,
    shell_complete=completion.models,
    help="Model folder or ready model to write for others.",
)
@storage_option
@click.option("--out", type=FOLDER, required=True, help="New folder.")
@command
def convert(
    source: Path | None,
    variant: str | None,
    target: str | None,
    model: Path | None,
    storage: str,
    out: Path,
    quiet: bool,
) -> None:
    """Read or write weights of diffusers and Stable Diffusion.

    \b
    latentddpm convert --from stable-diffusion-v1-5 --out runs/sd15
    latentddpm convert --to diffusers --model runs/ldm --out runs/ldm-diffusers
    latentddpm convert --from runs/ldm/checkpoints/step-00010000 --out runs/weaker
    """
    reads, writes = source is not None, target is not None or model is not None
    if reads == writes or (writes and None in (target, model)):
        raise UserError("convert: expected --from PATH, or --to diffusers with --model DIR")
    if writes and variant is not None:
        raise UserError("--variant: chooses files to read; it goes with --from")
    check_choice("storage", storage, STORAGE)
    check_new(out)
    if source is not None and is_checkpoint(source) and variant is None:
        _convert_checkpoint(source, out, storage, quiet)
        return
    if source is not None:
        check_convertible(source, variant)
    else:
        check_choice("--to", target, CONVERSIONS)
        if control_folder(model) is not None:
            read_control_folder(model, verify=False)
        else:
            read_model_folder(model, verify=False)
    import_keras()
    from latentddpm.interop.convert import convert_from, convert_to

    if source is not None:
        convert_from(source, out, variant=variant, storage=storage, quiet=quiet)
    else:
        convert_to(target, model, out, storage=storage, quiet=quiet)
    click.echo(out)


def _convert_checkpoint(source: Path, out: Path, storage: str, quiet: bool) -> None:
    """Write the model of a checkpoint of a training."""
    from latentddpm.training.checkpoint_model import checkpoint_model, run_of

    run_of(source)
    import_keras()
    with activity(f"loading {source.name}", quiet):
        model = checkpoint_model(source)
    model.save(out, storage)
    click.echo(out)


@click.command()
@model_option
@click.option(
    "--format",
    "kind",
    default="keras",
    show_default=True,
    shell_complete=completion.among(*EXPORTS),
    help="keras, graphs, saved-model, onnx, litert.",
)
@storage_option
@click.option("--out", type=FOLDER, help="New folder.")
@command
def export(model: Path, kind: str, storage: str, out: Path | None, quiet: bool) -> None:
    """Write a model for other programs, and check it.

    A train-vae run is exported too: its encoder and decoder. The format graphs puts into an
    older model folder what new ones have from the start.
    """
    from latentddpm.export.request import check_request

    check_request(out, kind, storage)
    folder = read_model_folder(model, verify=False)
    if folder.first_stage != "none":
        folder.file("vae")
    import_keras()
    from latentddpm.export.export import export_model
    from latentddpm.pipeline.parts import load_parts

    with activity(f"loading {folder.path.name}", quiet):
        loaded = load_parts(folder.path)
    out = out or folder.path
    export_model(loaded, out, kind, storage, functools.partial(say, quiet=quiet))
    click.echo(out)
