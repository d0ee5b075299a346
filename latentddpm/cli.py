"""The command line: parse → config → one call.

Kept free of work and of heavy imports on purpose: `--help` answers at once, every command
imports what it needs when it runs. Results go to stdout, everything else to stderr. Exit
codes: see `usage`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from latentddpm import __version__
from latentddpm.choices import SAMPLERS, SIGMA_SPACINGS, TIMESTEP_SPACINGS
from latentddpm.cli_evaluate import evaluate
from latentddpm.errors import UserError
from latentddpm.modelfolder import LORA
from latentddpm.startup import import_keras
from latentddpm.usage import DATA_HELP, FOLDER, Commands, command

strategy_option = click.option(
    "--strategy",
    default="auto",
    show_default=True,
    help="auto, one, mirrored, mirrored:N, multi-worker.",
)


def training_options(function: Callable[..., None]) -> Callable[..., None]:
    """Options of both trainers."""
    for option in (
        strategy_option,
        click.option("--precision", help="float32, bfloat16, float16 [default: the config's]."),
        click.option("--dry-run", is_flag=True, help="Print the configuration and sizes; stop."),
        click.option("--strict", is_flag=True, help="Refuse data with unreadable images."),
        click.option("--on-nan", help="stop or skip: a loss or gradient that is not finite."),
        click.option("--wandb", metavar="PROJECT", help="Log to Weights & Biases as well."),
        click.option(
            "--allow-changes", is_flag=True, help="With --resume: other settings or data."
        ),
        click.option("--resume", is_flag=True, help="Go on from the newest checkpoint."),
        click.option("--set", "overrides", multiple=True, metavar="K=V", help="Override a.b=c."),
        click.option("--init", type=FOLDER, help="Model folder to fine-tune."),
        click.option("--config", type=FOLDER, help="YAML with what differs from the defaults."),
        click.option("--out", type=FOLDER, required=True, help="Run folder."),
        click.option("--catalog", type=FOLDER, help="Catalog to share [default: below OUT]."),
        click.option("--data", required=True, metavar="PLACE", help=DATA_HELP),
    ):
        function = option(function)
    return function


@click.group(
    "latentddpm",
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__)
def main() -> None:
    """Train and run latent diffusion models in Keras 3.

    \b
    From your images to your model:
      latentddpm train-vae       --data DIR --config configs/small-64-vae.yaml --out runs/vae
      latentddpm train-diffusion --data DIR --vae runs/vae --config ... --out runs/ldm
      latentddpm generate        --prompt "red apple" --model runs/ldm
    """


@main.command("train-vae")
@training_options
@command
def train_vae(
    data: str,
    catalog: Path | None,
    out: Path,
    config: Path | None,
    init: Path | None,
    overrides: tuple[str, ...],
    precision: str | None,
    on_nan: str | None,
    wandb: str | None,
    strategy: str,
    resume: bool,
    allow_changes: bool,
    strict: bool,
    dry_run: bool,
    quiet: bool,
) -> None:
    """Train the autoencoder: images to latents and back."""
    from latentddpm.config import AutoencoderRun, dump_config, load_config

    settings = load_config(
        AutoencoderRun,
        config,
        _with(overrides, precision=precision, on_nan=on_nan, wandb=wandb),
        init=init,
    )
    import_keras()
    from latentddpm.training import autoencoder
    from latentddpm.training.distribute import crew_of, make_strategy, together

    if dry_run:
        settings, model = autoencoder.build_autoencoder(settings)
        click.echo(dump_config(settings), nl=False)
        adversary = autoencoder.build_adversary(settings)
        judge = adversary and adversary.discriminator
        _echo_sizes(encoder=model.encoder, decoder=model.decoder, discriminator=judge)
        return
    devices = make_strategy(strategy)
    with together(devices, resumes=True):
        model = autoencoder.train_autoencoder(
            settings,
            data,
            out,
            catalog=catalog,
            resume=resume,
            allow_changes=allow_changes,
            strict=strict,
            quiet=quiet,
            strategy=devices,
        )
    if not crew_of(devices).chief:
        return
    if settings.training.train == "all":
        _note(quiet, f"latent std {model.latent_statistics['std']:.4f}: ", nl=False)
        _note(quiet, f"scaling_factor {model.scaling_factor:.5f} is stored in the model")
    click.echo(out / "model")


@main.command("train-diffusion")
@training_options
@click.option(
    "--vae", type=FOLDER, help="Model folder or finished train-vae run [default: that of --init]."
)
@click.option("--latents", type=FOLDER, help="Latents cache [default: OUT/latents].")
@command
def train_diffusion(
    data: str,
    catalog: Path | None,
    vae: Path | None,
    latents: Path | None,
    out: Path,
    config: Path | None,
    init: Path | None,
    overrides: tuple[str, ...],
    precision: str | None,
    on_nan: str | None,
    wandb: str | None,
    strategy: str,
    resume: bool,
    allow_changes: bool,
    strict: bool,
    dry_run: bool,
    quiet: bool,
) -> None:
    """Train the UNet (and its text encoder) in the latent space."""
    from latentddpm.config import DiffusionRun, dump_config, load_config

    settings = load_config(
        DiffusionRun,
        config,
        _with(overrides, precision=precision, on_nan=on_nan, wandb=wandb),
        init=init,
    )
    import_keras()
    from latentddpm.training import diffusion, networks
    from latentddpm.training.distribute import make_strategy, together

    if dry_run:
        settings, sources = networks.read_sources(settings, vae)
        diffusion.build_schedule(settings)
        unet, text_encoder, _ = networks.build_networks(settings, sources)
        click.echo(dump_config(settings), nl=False)
        _echo_sizes(unet=unet, text_encoder=text_encoder)
        return
    folders = {"latents": latents, "catalog": catalog}
    devices = make_strategy(strategy)
    with together(devices, resumes=True):
        diffusion.train_diffusion(
            settings,
            data,
            vae,
            out,
            **folders,
            resume=resume,
            allow_changes=allow_changes,
            strict=strict,
            quiet=quiet,
            strategy=devices,
        )
    click.echo(out / (LORA if settings.lora.rank else "model"))


@main.command()
@click.option("--data", required=True, metavar="PLACE", help=DATA_HELP)
@click.option("--vae", type=FOLDER, required=True, help="Model folder or finished train-vae run.")
@click.option("--out", type=FOLDER, required=True, help="Folder of the latents cache.")
@click.option("--catalog", type=FOLDER, help="Catalog to share [default: below OUT].")
@click.option("--resolution", type=int, help="Side in pixels [default: the model's own].")
@click.option("--aspect-buckets", is_flag=True, help="For data.aspect_buckets: true.")
@click.option("--bucket-step", type=click.IntRange(1), default=64, show_default=True)
@click.option("--bucket-max-ratio", type=click.FloatRange(1), default=2.0, show_default=True)
@click.option("--mirrored", is_flag=True, help="A second, mirrored row for each image.")
@click.option(
    "--strategy", default="auto", show_default=True, help="multi-worker: a part in each process."
)
@click.option("--strict", is_flag=True, help="Refuse data with unreadable images.")
@command
def encode(
    data: str,
    vae: Path,
    out: Path,
    catalog: Path | None,
    resolution: int | None,
    aspect_buckets: bool,
    bucket_step: int,
    bucket_max_ratio: float,
    mirrored: bool,
    strategy: str,
    strict: bool,
    quiet: bool,
) -> None:
    """Encode images into a latents cache for train-diffusion."""
    import_keras()
    from latentddpm.training.distribute import make_strategy, together
    from latentddpm.training.encode import encode_folder

    devices = make_strategy(strategy)
    options = {"resolution": resolution, "mirrored": mirrored, "strategy": devices}
    if aspect_buckets:
        options["aspect_buckets"] = bucket_step, bucket_max_ratio
    with together(devices):
        cache = encode_folder(
            data, vae, out, catalog=catalog, **options, strict=strict, quiet=quiet
        )
    _note(quiet, f"{cache.count} images, latents {'×'.join(map(str, cache.latent_shape))}")
    click.echo(out)


@main.command()
@click.option("--data", required=True, metavar="PLACE", help=DATA_HELP)
@click.option("--out", type=FOLDER, required=True, help="New folder for the shards.")
@click.option(
    "--format",
    "kind",
    default="tar",
    show_default=True,
    help="tar (WebDataset), tfrecord, array-record.",
)
@click.option("--shard-size", default="512MB", show_default=True, help="Bytes a shard.")
@command
def pack(data: str, out: Path, kind: str, shard_size: str, quiet: bool) -> None:
    """Pack captioned images into shards, for sets of millions."""
    from latentddpm.data import pack as packing

    size = packing.parse_size(shard_size)
    count, shards = packing.pack(data, out, kind=kind, shard_size=size, quiet=quiet)
    _note(quiet, f"{count} images in {shards} {kind} shards")
    click.echo(out)


@main.command()
@click.option("--prompt", "prompts", multiple=True, help="What to show; may be given repeatedly.")
@click.option("--negative-prompt", default=None, help="What to lead away from.")
@click.option("--model", type=FOLDER, help="Model folder or ready model [default: emoji-64].")
@click.option(
    "--lora",
    "loras",
    multiple=True,
    metavar="FILE[:SCALE]",
    help="LoRA file or run to apply; may be given repeatedly.",
)
@click.option("--num-images", type=int, help="Images per prompt [default: 1].")
@click.option("--seed", type=int, help="Of the first image; image k has seed + k.")
@click.option("--steps", type=int, help="Sampler steps [default: the model's].")
@click.option("--sampler", help=f"{', '.join(SAMPLERS)} [default: the model's].")
@click.option("--timestep-spacing", help=f"{', '.join(TIMESTEP_SPACINGS)} [default: the model's].")
@click.option("--sigma-spacing", help=f"Of samplers in sigma: {', '.join(SIGMA_SPACINGS)}.")
@click.option("--eta", type=float, help="Of ddim: 0 draws no noise, 1 as much as ddpm.")
@click.option("--guidance-scale", type=float, help="1 = none [default: the model's].")
@click.option("--guidance-rescale", type=float, help="0 = none, 0.7 against overexposure.")
@click.option("--init-image", type=FOLDER, help="Picture to start from.")
@click.option(
    "--strength", type=float, help="How far to go from it [default: 0.75; 1 with --mask]."
)
@click.option("--mask", type=FOLDER, help="Of --init-image: white is repainted, black is kept.")
@click.option("--height", type=int, help="Pixels [default: the model's].")
@click.option("--width", type=int, help="Pixels [default: the model's].")
@click.option(
    "--tile",
    default="auto",
    show_default=True,
    help="Decode in strips: auto (when memory is short), off, or their height in pixels.",
)
@click.option("--batch-size", type=int, default=16, show_default=True)
@strategy_option
@click.option("--from", "source", type=FOLDER, help="PNG made by latentddpm, to make again.")
@click.option("--out", type=FOLDER, help="PNG, or a folder [default: named after the prompt].")
@click.option("--grid", is_flag=True, help="One picture, a row for each prompt.")
@click.option("--timing", is_flag=True, help="Say where the time went.")
@command
def generate(quiet: bool, timing: bool, **options: Any) -> None:
    """Make images from words, and from pictures."""
    from latentddpm.commands import generate_images

    for path in generate_images(**options, quiet=quiet, timing=timing):
        click.echo(path)


@main.command()
@click.option("--model", type=FOLDER, required=True, help="Model folder or ready model.")
@click.option(
    "--format",
    "kind",
    default="keras",
    show_default=True,
    help="keras, saved-model, onnx, litert.",
)
@click.option("--storage", default="float32", show_default=True, help="float16 halves .keras.")
@click.option("--out", type=FOLDER, required=True, help="New folder.")
@command
def export(model: Path, kind: str, storage: str, out: Path, quiet: bool) -> None:
    """Write a model for other programs, checked against the original."""
    import_keras()
    from latentddpm.interop.export import check_request
    from latentddpm.interop.export import export as write
    from latentddpm.pipeline import LatentDiffusion

    check_request(out, kind, storage)
    note = functools.partial(_note, quiet)
    write(LatentDiffusion.load(model), out, kind, storage, note)
    click.echo(out)


@main.command()
@click.option(
    "--from",
    "source",
    type=FOLDER,
    metavar="PATH",
    help="Diffusers folder, a part of one, or a Stable Diffusion 1.x .safetensors file.",
)
@click.option("--variant", help="Of the weight files in the folder, such as fp16.")
@click.option("--to", "target", help="diffusers; with --model.")
@click.option("--model", type=FOLDER, help="Model folder or ready model to write for others.")
@click.option("--storage", default="float32", show_default=True, help="float16 halves the files.")
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
    """Read diffusers and Stable Diffusion 1.x weights, or write them.

    \b
    latentddpm convert --from stable-diffusion-v1-5 --out runs/sd15
    latentddpm convert --to diffusers --model runs/ldm --out runs/ldm-diffusers
    """
    reads, writes = source is not None, target is not None or model is not None
    if reads == writes or (writes and None in (target, model)):
        raise UserError("convert: expected --from PATH, or --to diffusers with --model DIR")
    if writes and variant is not None:
        raise UserError("--variant: chooses files to read; it goes with --from")
    import_keras()
    from latentddpm.interop.convert import convert_from, convert_to

    if source is not None:
        convert_from(source, out, variant=variant, storage=storage, quiet=quiet)
    else:
        convert_to(target, model, out, storage=storage, quiet=quiet)
    click.echo(out)


@main.command()
@click.argument("data", metavar="DATA")
@click.option("--resolution", type=int, help="Report images with a side below so many pixels.")
@click.option(
    "--caption-template",
    "templates",
    multiple=True,
    metavar="T",
    help="As in data.caption_templates; may be given repeatedly.",
)
@click.option("--context-length", type=int, default=77, show_default=True, help="Tokens that fit.")
@click.option("--examples", type=int, help="Files named of each kind [default: 3; all in JSON].")
@click.option("--json", "machine", is_flag=True, help="JSON on stdout instead of the table.")
@click.option("--strict", is_flag=True, help="Exit with 2 when there are errors.")
@command
def doctor(
    data: str,
    resolution: int | None,
    templates: tuple[str, ...],
    context_length: int,
    examples: int | None,
    machine: bool,
    strict: bool,
    quiet: bool,
) -> None:
    """Look through captioned images for what training would stumble over.

    DATA is what --data takes elsewhere. Nothing in it is changed.
    """
    from latentddpm.data.doctor import examine
    from latentddpm.data.doctor_report import as_json, as_text
    from latentddpm.data.findings import ERROR

    if examples is not None and examples < 0:
        raise UserError(f"--examples: {examples}, expected 0 or more")
    report = examine(
        data,
        resolution=resolution,
        templates=templates,
        context_length=context_length,
        limit=examples if examples is not None else None if machine else 3,
        quiet=quiet,
    )
    click.echo(as_json(report) if machine else as_text(report))
    if strict and any(report.of(ERROR)):
        raise click.exceptions.Exit(2)


@main.command()
@click.option("--model", type=FOLDER, required=True, help="Model folder or ready model.")
@click.option(
    "--lora",
    "loras",
    multiple=True,
    required=True,
    metavar="FILE[:SCALE]",
    help="LoRA file or run; may be given repeatedly.",
)
@click.option("--storage", default="float32", show_default=True, help="float16 halves the files.")
@click.option("--out", type=FOLDER, required=True, help="New folder.")
@command
def merge(model: Path, loras: tuple[str, ...], storage: str, out: Path, quiet: bool) -> None:
    """Write a model with LoRA files in its weights."""
    from latentddpm.loras import apply_loras, read_loras

    chosen = read_loras(loras)
    import_keras()
    from latentddpm.interop.diffusers import check_new
    from latentddpm.pipeline import LatentDiffusion

    check_new(out)
    merged = LatentDiffusion.load(model)
    apply_loras(merged, chosen)
    merged.save(out, storage)
    click.echo(out)


@main.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option("--plot", type=FOLDER, metavar="FILE", help="Draw runs' curves: .png, .svg, .pdf.")
@command
def info(paths: tuple[str, ...], plot: Path | None, quiet: bool) -> None:
    """Describe a PNG made here, a model, a run, latents, a catalog or shards."""
    from latentddpm.describe import describe

    if plot is not None:
        from latentddpm.curves import plot_runs

        plot_runs([Path(path) for path in paths], plot)
    click.echo("\n\n".join(describe(path, quiet) for path in paths))


main.add_command(evaluate)


def _with(overrides: tuple[str, ...], **options: str | None) -> tuple[str, ...]:
    """What `--set` gave, and behind it the settings of training that have an option."""
    given = {key: value for key, value in options.items() if value is not None}
    return (*overrides, *(f"training.{key}={value}" for key, value in given.items()))


def _echo_sizes(**parts: Any) -> None:
    click.echo("parameters:")
    for name, part in parts.items():
        if part is not None:
            click.echo(f"  {name}: {part.count_params()}")


def _note(quiet: bool, text: str, nl: bool = True) -> None:
    if not quiet:
        click.echo(text, err=True, nl=nl)
