"""Command that generates images: `generate`."""

from __future__ import annotations

from typing import Any

import click

from latentddpm.choices import JIT, SAMPLERS, SIGMA_SPACINGS, TIMESTEP_SPACINGS
from latentddpm.cli.help import completion
from latentddpm.cli.options import (
    FOLDER,
    NAMED_NUMBER,
    NUMBERS,
    PAIR,
    engine_option,
    lora_option,
    precision_option,
    strategy_option,
)
from latentddpm.cli.places import PLACE, SCALED_PLACE
from latentddpm.cli.usage import command


@click.command()
@click.option("--prompt", "prompts", multiple=True, help="What to show; may be given repeatedly.")
@click.option(
    "--negative-prompt",
    multiple=True,
    help="What not to show: one for all prompts, or one for each.",
)
@click.option(
    "--label",
    "labels",
    multiple=True,
    metavar="[NAME=]VALUE",
    help="What a condition is told: 7, smile,glasses, age=0.3; repeated, a row for each.",
)
@click.option(
    "--condition",
    "pictures",
    multiple=True,
    metavar="[NAME=]FILE",
    shell_complete=completion.data,
    help="Picture that a condition is told, such as line art.",
)
@click.option(
    "--model",
    type=PLACE,
    shell_complete=completion.models,
    help="Model folder, ready model, or hf://owner/name [default: emoji-128].",
)
@lora_option
@click.option(
    "--embedding",
    "embeddings",
    multiple=True,
    metavar="[WORD=]FILE",
    help="Textual inversion, file or run, for its word; may be given repeatedly.",
)
@click.option("--num-images", type=int, help="Images per prompt [default: 1].")
@click.option("--seed", type=int, help="Of the first image; image k has seed + k.")
@click.option("--steps", "num_steps", type=int, help="Sampler steps [default: the model's].")
@click.option(
    "--sampler",
    shell_complete=completion.among(*SAMPLERS),
    help=f"{', '.join(SAMPLERS)} [default: the model's].",
)
@click.option(
    "--timestep-spacing",
    shell_complete=completion.among(*TIMESTEP_SPACINGS),
    help=f"{', '.join(TIMESTEP_SPACINGS)} [default: the model's].",
)
@click.option(
    "--sigma-spacing",
    shell_complete=completion.among(*SIGMA_SPACINGS),
    help=f"Of samplers in sigma: {', '.join(SIGMA_SPACINGS)}.",
)
@click.option(
    "--eta",
    type=NUMBERS,
    help="Of ddim: 0 no noise, 1 as much as ddpm; or one for each step: 1,0.5,0.",
)
@click.option(
    "--variance",
    shell_complete=completion.among("small", "large", "learned_range"),
    help="Of ddpm, ddim, pc: small, large, learned_range (not ddim).",
)
@click.option("--clip-sample/--no-clip-sample", default=None, help="Clip each clean estimate.")
@click.option("--shift", type=float, help="Of flow models: above 1 more steps at high noise.")
@click.option("--corrector-steps", type=int, help="Of pc: Langevin steps a level [default: 1].")
@click.option(
    "--original-steps", type=int, help="Of lcm: those it was distilled along [default: 50]."
)
@click.option("--snr", type=float, help="Of pc: size of a Langevin step [default: 0.16].")
@click.option(
    "--start-step", type=int, help="Leave out the first N steps; start from noise of that level."
)
@click.option("--guidance-scale", type=float, help="1 = none [default: the model's].")
@click.option("--guidance-rescale", type=float, help="0 = none, 0.7 against overexposure.")
@click.option(
    "--guidance-interval",
    type=PAIR,
    metavar="LOW,HIGH",
    help="Guide only from LOW to HIGH of the timesteps, 0 (clean) to 1 (noise) [default: 0,1].",
)
@click.option(
    "--condition-scale",
    "condition_scales",
    type=NAMED_NUMBER,
    multiple=True,
    metavar="NAME=SCALE",
    help="Guidance scale of one condition; may be given repeatedly.",
)
@click.option(
    "--autoguidance",
    type=SCALED_PLACE,
    metavar="MODEL[:SCALE]",
    shell_complete=completion.models,
    help="Weaker model that guidance leads away from [default scale: 2].",
)
@click.option("--init-image", type=FOLDER, help="Picture to start from.")
@click.option(
    "--strength", type=float, help="How much to change it, up to 1 [default: 0.75; 1 with --mask]."
)
@click.option("--mask", type=FOLDER, help="Of --init-image: white is repainted, black is kept.")
@click.option(
    "--region",
    "regions",
    type=(FOLDER, str),
    multiple=True,
    metavar="FILE WORDS",
    help="Another prompt, or label, where a mask is white; may be given repeatedly.",
)
@click.option(
    "--control",
    "controls",
    type=SCALED_PLACE,
    multiple=True,
    metavar="RUN[:SCALE]",
    shell_complete=completion.data,
    help="ControlNet to follow a picture with, or hf://owner/name; may be given repeatedly.",
)
@click.option(
    "--control-image",
    "control_images",
    type=FOLDER,
    multiple=True,
    help="Picture that a --control sees, one for each, in order.",
)
@click.option("--height", type=int, help="Pixels [default: the model's].")
@click.option("--width", type=int, help="Pixels [default: the model's].")
@click.option("--length", type=int, help="Of signals: samples [default: the model's].")
@click.option(
    "--tile",
    default="auto",
    show_default=True,
    help="Decode in strips: auto (when memory is short), off, or their height in pixels.",
)
@click.option("--batch-size", type=int, default=16, show_default=True)
@strategy_option
@engine_option
@precision_option
@click.option(
    "--jit",
    shell_complete=completion.among(*JIT),
    help="auto, on, off: compile Keras's networks with XLA [default: auto].",
)
@click.option("--no-cache", is_flag=True, help="Keep no traced functions for the next start.")
@click.option("--from", "source", type=FOLDER, help="PNG made by latentddpm, to make again.")
@click.option("--out", type=FOLDER, help="PNG, or a folder [default: named after the prompt].")
@click.option(
    "--overwrite", is_flag=True, help="Replace files that are there; else names get a number."
)
@click.option("--grid", is_flag=True, help="One picture, a row for each prompt.")
@click.option("--frames", type=int, help="A strip beside each image: the way to it, in N steps.")
@click.option("--animate", type=FOLDER, help="The whole way as a .gif or .webp file.")
@click.option("--timing", is_flag=True, help="Print the time of each stage.")
@command
def generate(quiet: bool, timing: bool, no_cache: bool, **options: Any) -> None:
    """Generate images from prompts and from pictures."""
    from latentddpm.generation.generate import generate_images

    for path in generate_images(**options, cache=not no_cache, quiet=quiet, timing=timing):
        click.echo(path)
