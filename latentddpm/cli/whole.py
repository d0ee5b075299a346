"""Command `train`: the whole way from a folder of images to a model."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from latentddpm.choices import FIRST_STAGES, QUALITIES
from latentddpm.cli.help import completion
from latentddpm.cli.options import FOLDER, strategy_option, strict_option
from latentddpm.cli.places import PLACE_TEXT
from latentddpm.cli.usage import command
from latentddpm.distribution.processes import parse_strategy
from latentddpm.errors import UserError, check_choice
from latentddpm.utils.console import say
from latentddpm.utils.startup import import_keras


@click.command("train")
@click.option(
    "--data",
    multiple=True,
    metavar="PLACE[:WEIGHT]",
    shell_complete=completion.data,
    help="Folder of images, or of shards; hf://datasets/owner/name. Repeatable. Not needed with "
    "--resume.",
)
@click.option("--out", type=FOLDER, required=True, help="Folder of the whole run.")
@click.option(
    "--quality",
    shell_complete=completion.among(*QUALITIES),
    help=f"{', '.join(QUALITIES)} [default: {QUALITIES[0]}].",
)
@click.option("--time", "duration", metavar="TIME", help="Of the whole run: 90s, 10m, 2h, 1h30m.")
@click.option(
    "--vae",
    type=PLACE_TEXT,
    metavar="MODEL|none",
    shell_complete=completion.models,
    help="Autoencoder to use, or hf://owner/name; none: on pixels [default: by rule].",
)
@click.option(
    "--init",
    type=PLACE_TEXT,
    metavar="MODEL|none",
    shell_complete=completion.models,
    help="Model whose UNet is trained on, or hf://owner/name; none: a new one [default: by rule].",
)
@click.option("--plan", "plan_only", is_flag=True, help="Print and write the plan; stop.")
@click.option("--resume", is_flag=True, help="Go on with the run in OUT.")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="K=V",
    help="Override vae.a.b=c or diffusion.a.b=c.",
)
@click.option("--precision", help="auto, float32, bfloat16, float16 [default: auto].")
@strategy_option
@strict_option
@command
def train(
    data: tuple[str, ...],
    out: Path,
    strategy: str,
    plan_only: bool,
    resume: bool,
    strict: bool,
    quiet: bool,
    **given: Any,
) -> None:
    """Train a whole model from a folder of images.

    The plan is printed first: autoencoder, UNet, sizes, steps and times, by the images, the
    machine, --quality and --time. Stopped or killed, the run goes on with --out OUT --resume.
    """
    from latentddpm.recipe import folder
    from latentddpm.recipe.settings import split_overrides

    began = time.monotonic()
    goal = _goal(given)
    split_overrides(given["overrides"])
    if parse_strategy(strategy)[0] == "multi-worker":
        raise UserError(
            "--strategy multi-worker: train plans one process; --plan writes the settings that "
            "train-vae and train-diffusion take on several"
        )
    plan = None
    if folder.check_folder(out, resume, plan_only):
        plan = folder.read_plan(out)
        _check_same(plan, data, goal, given)
    elif not data:
        raise UserError(f"--data: needed, {out} holds no plan to go on with")
    import_keras(training=True)
    from latentddpm.distribution.strategy import make_strategy, translate_worker_errors
    from latentddpm.recipe import run

    devices = make_strategy(strategy)
    overrides, precision = tuple(given["overrides"]), given["precision"]
    options = run.Options(overrides, precision, devices, strict, quiet)
    if plan is None:
        plan = run.make_plan(data, out, goal, options, began)
    if plan_only:
        for line in plan.commands(out):
            click.echo(line)
        return
    with translate_worker_errors(devices, resumes=True):
        model = run.follow(plan, out, options, began)
    say("\n".join(run.closing_lines(out)), quiet)
    click.echo(model)


def _goal(given: Mapping[str, Any]) -> Any:
    """Goal that the options name; without a quality the first one."""
    from latentddpm.recipe.goal import Goal
    from latentddpm.utils.timing import parse_duration

    quality = check_choice("--quality", given["quality"] or QUALITIES[0], QUALITIES)
    seconds = given["duration"] and parse_duration("--time", given["duration"])
    return Goal(quality, seconds, _whole(given["vae"]), _whole(given["init"]))


def _whole(place: str | None) -> str | None:
    """Place as another working directory finds it; a name that is no path stays."""
    is_path = place not in (None, FIRST_STAGES[1]) and Path(place).exists()
    return str(Path(place).resolve()) if is_path else place


def _check_same(plan: Any, data: Sequence[str], goal: Any, given: Mapping[str, Any]) -> None:
    """Refuse options that differ from those of the plan; those that are left out are its own."""
    from latentddpm.recipe.folder import resolved

    told = {
        "--data": (resolved(data) if data else None, plan.data),
        "--quality": (given["quality"], plan.goal.quality),
        "--time": (goal.seconds, plan.goal.seconds),
        "--vae": (goal.vae, plan.goal.vae),
        "--init": (goal.init, plan.goal.init),
        "--precision": (given["precision"], plan.precision),
        "--set": (list(given["overrides"]) or None, plan.overrides),
    }
    for option, (now, planned) in told.items():
        if now is not None and now != planned:
            was = "without it" if planned is None else f"with {planned}"
            raise UserError(
                f"{option} {now}: the run was planned {was}; leave {option} out, or take another "
                "--out"
            )
