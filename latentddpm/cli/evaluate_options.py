"""Options of `evaluate` that belong to some of its parts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click
from click.core import ParameterSource

from latentddpm.choices import SAMPLERS, TIMESTEP_SPACINGS
from latentddpm.cli.help import completion
from latentddpm.cli.options import FOLDER, engine_option
from latentddpm.errors import UserError
from latentddpm.pipeline.model_folder import read_model_folder

USED_BY = {
    "loras": ("generator", "nll", "denoise"),
    "extractor": ("autoencoder", "generator"),
    "perceptual": ("autoencoder",),
    "caption_templates": ("generator", "nll", "denoise"),
    "nll_timesteps": ("nll",),
    **dict.fromkeys(("projection", "group_by"), ("latents",)),
    **dict.fromkeys(("num_images", "sweep", "batch_size", "clip", "engine"), ("generator",)),
    **dict.fromkeys(
        ("num_steps", "sampler", "timestep_spacing", "guidance_scale"), ("generator",)
    ),
}
"""Parts that use an option; it is refused without any of them."""


def drawing_options(function: Callable[..., None]) -> Callable[..., None]:
    """Decorator with the options of --generator: number and settings of generated images.

    Args:
        function: of the command.
    """
    for option in (
        click.option(
            "--clip",
            type=FOLDER,
            help="Local folder of a CLIPModel, for the CLIP score of images and captions.",
        ),
        click.option("--batch-size", type=click.IntRange(1), default=16, show_default=True),
        engine_option,
        click.option(
            "--sweep",
            multiple=True,
            metavar="KEY=A,B,…",
            help="Compare settings: steps, guidance, sampler, spacing; may be given repeatedly.",
        ),
        click.option("--guidance-scale", type=float, help="1 = none [default: the model's]."),
        click.option(
            "--timestep-spacing",
            shell_complete=completion.among(*TIMESTEP_SPACINGS),
            help=f"{', '.join(TIMESTEP_SPACINGS)} [default: the model's].",
        ),
        click.option(
            "--sampler",
            shell_complete=completion.among(*SAMPLERS),
            help=f"{', '.join(SAMPLERS)} [default: the model's].",
        ),
        click.option(
            "--steps", "num_steps", type=int, help="Sampler steps [default: the model's]."
        ),
        click.option(
            "--seed",
            type=click.IntRange(0, 2**32 - 1),
            default=0,
            show_default=True,
            help="Of the first image, and of everything random.",
        ),
        click.option(
            "--num-images", type=int, default=500, show_default=True, help="To generate."
        ),
    ):
        function = option(function)
    return function


def default_parts(model: Path) -> frozenset[str]:
    """Parts that are measured where none is asked for; the bound for a model of pixels.

    Args:
        model: folder, or name of a model that ships.

    Raises:
        UserError: there is no such model.
    """
    pixels = read_model_folder(model, verify=False).first_stage == "none"
    return frozenset({"nll" if pixels else "autoencoder"})


def check_used(parts: set[str]) -> None:
    """Refuse options on the command line that none of the chosen parts uses.

    Args:
        parts: the chosen ones.

    Raises:
        UserError: naming the parts that use the option.
    """
    context = click.get_current_context()
    for parameter in context.command.params:
        users = USED_BY.get(parameter.name)
        given = context.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE
        if users and given and not parts & set(users):
            wanted = " or ".join(f"--{part}" for part in users)
            raise UserError(f"{parameter.opts[0]}: is for {wanted}, which was not asked for")
