"""Commands that train: `train-vae` the autoencoder, then `train-diffusion` the UNet."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from latentddpm.choices import AUTO, JIT, PRECISIONS
from latentddpm.cli.help import completion
from latentddpm.cli.options import (
    FOLDER,
    catalog_option,
    data_option,
    strategy_option,
    strict_option,
)
from latentddpm.cli.places import PLACE, PLACE_TEXT
from latentddpm.cli.usage import command
from latentddpm.distribution.processes import parse_strategy
from latentddpm.pipeline.control.folder import FOLDER as CONTROL
from latentddpm.pipeline.model_folder import EMBEDDING, LORA
from latentddpm.utils.console import say
from latentddpm.utils.startup import import_keras

if TYPE_CHECKING:
    from latentddpm.config_file import Run
    from latentddpm.training.plan.plan import Plan


def training_options(function: Callable[..., None]) -> Callable[..., None]:
    """Decorator with the options of both commands.

    Args:
        function: of the command.
    """
    for option in (
        strategy_option,
        click.option(
            "--precision",
            shell_complete=completion.among(AUTO, *PRECISIONS),
            help="auto, float32, bfloat16, float16 [default: the config's].",
        ),
        click.option(
            "--jit",
            shell_complete=completion.among(*JIT),
            help="auto, on, off: compile the step with XLA.",
        ),
        click.option("--dry-run", is_flag=True, help="Print the configuration and sizes; stop."),
        strict_option,
        click.option(
            "--on-nan",
            shell_complete=completion.among("stop", "skip"),
            help="stop or skip: a loss or gradient that is not finite.",
        ),
        click.option("--wandb", metavar="PROJECT", help="Log to Weights & Biases as well."),
        click.option(
            "--allow-changes", is_flag=True, help="With --resume: accept other settings or data."
        ),
        click.option("--resume", is_flag=True, help="Go on from the newest checkpoint."),
        click.option(
            "--set",
            "overrides",
            multiple=True,
            metavar="K=V",
            shell_complete=completion.settings,
            help="Override a.b=c.",
        ),
        click.option(
            "--init",
            type=PLACE,
            shell_complete=completion.models,
            help="Model folder to fine-tune, or hf://owner/name.",
        ),
        click.option(
            "--config",
            type=FOLDER,
            metavar="NAME|FILE",
            shell_complete=completion.configs,
            help="YAML with what differs from the defaults, or a ready one (latentddpm configs).",
        ),
        click.option("--out", type=FOLDER, required=True, help="Run folder."),
        catalog_option,
        data_option,
    ):
        function = option(function)
    return function


@click.command("train-vae")
@training_options
@command
def train_vae(out: Path, strategy: str, dry_run: bool, quiet: bool, **options: Any) -> None:
    """Train the autoencoder: images to latents and back."""
    from latentddpm.config import AutoencoderRun

    settings, run = _settings(AutoencoderRun, **options)
    if dry_run:
        from latentddpm.training.plan.settle import dry_vae

        settings = dry_vae(settings, run["data"])
        import_keras(training=True)
        from latentddpm.training import autoencoder_networks

        settings = _settled(settings, out, **run, quiet=quiet)
        model = autoencoder_networks.build_autoencoder(settings)
        adversary = autoencoder_networks.build_adversary(settings)
        judge = adversary and adversary.discriminator
        _echo(settings, encoder=model.encoder, decoder=model.decoder, discriminator=judge)
        return
    from latentddpm.training.plan.plan import plan_vae

    plan, devices = _planned(plan_vae, strategy, settings, out=out, **run, quiet=quiet)
    from latentddpm.distribution.strategy import process_group, translate_worker_errors
    from latentddpm.training import autoencoder

    with translate_worker_errors(devices, resumes=True):
        model = autoencoder.train_planned(plan)
    if not process_group(devices).is_chief:
        return
    if settings.training.train == "all":
        std, scale = model.latent_statistics["std"], model.latent_space.scaling_factor
        scaling = f"scaling_factor {scale:.5f} is" if isinstance(scale, float) else None
        scaling = scaling or "mean and standard deviation of each channel are"
        say(f"latent std {std:.4f}: {scaling} stored in the model", quiet)
    click.echo(out / "model")


@click.command("train-diffusion")
@training_options
@click.option(
    "--vae",
    type=PLACE_TEXT,
    metavar="PATH|none",
    shell_complete=completion.models,
    help="Model folder, finished train-vae run, or hf://owner/name; none: on pixels "
    "[default: that of --init].",
)
@click.option(
    "--distill",
    shell_complete=completion.among("lcm"),
    help="lcm: make --init a model that needs few steps.",
)
@click.option("--latents", type=FOLDER, help="Latents cache [default: OUT/latents].")
@command
def train_diffusion(
    vae: str | None, out: Path, strategy: str, dry_run: bool, quiet: bool, **options: Any
) -> None:
    """Train the UNet and its text encoder on latents or pixels."""
    from latentddpm.config import DiffusionRun

    settings, run = _settings(DiffusionRun, **options)
    if dry_run:
        from latentddpm.training.plan.settle import dry_diffusion

        settings, sources = dry_diffusion(settings, run["data"], vae)
        sources.first_stage.latents_folder(out, run["latents"])
        import_keras(training=True)
        from latentddpm.training import diffusion_networks

        settings = _settled(settings, out, **run, quiet=quiet)
        unet, text_encoder, _ = diffusion_networks.build_networks(settings, sources)
        _echo(settings, unet=unet, text_encoder=text_encoder)
        return
    from latentddpm.training.plan.plan import plan_diffusion

    plan, devices = _planned(
        plan_diffusion, strategy, settings, vae=vae, out=out, **run, quiet=quiet
    )
    from latentddpm.distribution.strategy import translate_worker_errors
    from latentddpm.training import diffusion

    with translate_worker_errors(devices, resumes=True):
        diffusion.train_planned(plan)
    made = LORA if settings.lora.rank else CONTROL if settings.control.trained else "model"
    click.echo(out / (EMBEDDING if settings.text.new_token else made))


def _planned(
    make_plan: Callable[..., Plan], strategy: str, settings: Any, **options: Any
) -> tuple[Plan, Any]:
    """Plan of a run, and its strategy; Keras is imported only once the plan stands.

    Of several processes each opens a part of the data, so there the strategy comes first.
    """
    kind, _ = parse_strategy(strategy)
    several = "TF_CONFIG" in os.environ or "SLURM_PROCID" in os.environ
    if kind == "multi-worker" or (kind == "auto" and several):
        devices = _devices(strategy)
        return make_plan(settings, **options, strategy=devices), devices
    plan = make_plan(settings, **options)
    devices = _devices(strategy)
    return replace(plan, run=replace(plan.run, strategy=devices)), devices


def _devices(strategy: str) -> Any:
    import_keras(training=True)
    from latentddpm.distribution.strategy import make_strategy

    return make_strategy(strategy)


def _settings(
    kind: type[Run],
    *,
    config: Path | None,
    init: Path | None,
    overrides: tuple[str, ...],
    precision: str | None,
    jit: str | None,
    on_nan: str | None,
    wandb: str | None,
    distill: str | None = None,
    **run: Any,
) -> tuple[Run, dict[str, Any]]:
    """Configuration from the options, and the remaining options, for the training function.

    Settings with an option of their own, such as `--precision`, override those of `--set`.
    """
    from latentddpm.config_file import load_config

    training = {"precision": precision, "jit_compile": jit, "on_nan": on_nan, "wandb": wandb}
    own = {f"training.{key}": value for key, value in training.items()} | {"distill.kind": distill}
    own = [f"{key}={value}" for key, value in own.items() if value is not None]
    return load_config(kind, config, (*overrides, *own), init=init), run


def _settled(settings: Run, out: Path, *, resume: bool, quiet: bool, **_: Any) -> Run:
    """Configuration with the precision and the compilation that the run would have."""
    from latentddpm.training.precision import settle_jit, settle_precision

    settings, note = settle_precision(settings, out if resume else None)
    say(note, quiet or not note)
    return settle_jit(settings)[0]


def _echo(settings: Any, **parts: Any) -> None:
    """Print the output of `--dry-run`: all settings, and the sizes of the networks."""
    from latentddpm.config_file import dump_config

    click.echo(dump_config(settings), nl=False)
    click.echo("parameters:")
    for name, part in parts.items():
        if part is not None:
            click.echo(f"  {name}: {part.count_params()}")
