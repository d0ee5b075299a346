"""Lines of a plan for people: what will be done, in which time, and why."""

from __future__ import annotations

from collections.abc import Iterator

from latentddpm.data.doctor.report import Report
from latentddpm.data.findings import ERROR, KINDS, NOTE, WARNING
from latentddpm.recipe.plan import Plan
from latentddpm.recipe.rules import NONE, OWN, READY, SMALL_SET
from latentddpm.utils.timing import clock

ROUGH_STEPS = 1000
"""Steps of a UNet below which its pictures are rough: after 128 there were colours and blobs."""
SHOWN = 6
"""Findings of the doctor that are named."""


def doctor_lines(report: Report, place: str) -> Iterator[str]:
    """Lines on the findings of the doctor.

    Args:
        report: of the data.
        place: of the data, as the user names it.

    Yields:
        One line with the number of images, and one for each kind of error or warning.
    """
    found = [*report.of(ERROR), *report.of(WARNING)]
    quiet = "" if found else "; no errors, no warnings"
    yield f"doctor     {report.images} readable images{quiet}"
    for key, finding in found[:SHOWN]:
        severity, what, does = KINDS[key]
        yield f"           {severity}: {what} ({finding.count}): {does}"
    if len(found) > SHOWN or any(report.of(NOTE)):
        yield f"           more: latentddpm doctor {place}"


def plan_lines(plan: Plan) -> Iterator[str]:
    """Lines on a plan.

    Args:
        plan: to print.

    Yields:
        Lines of text.
    """
    facts, recipe, times = plan.task.facts, plan.recipe, plan.times
    asked, machine = plan.task.goal, plan.task.machine
    why = recipe.reasons
    captions = "without captions" if not facts.captioned else f"{facts.captioned:.0%} captioned"
    small = f", a small set (at most {SMALL_SET})" if facts.images <= SMALL_SET else ""
    yield f"data       {facts.images} images of about {facts.side} pixels, {captions}{small}"
    goal = f"quality {asked.quality}"
    if asked.seconds is not None:
        goal += f", in {clock(asked.seconds)}"
    yield f"goal       {goal}, on {machine.name}"
    yield f"resolution {recipe.resolution}×{recipe.resolution}: {why['resolution']}"
    stages = {NONE: "pixels, without an autoencoder", OWN: "an autoencoder of its own"}
    stage = stages.get(plan.stage.name, f"the autoencoder of {plan.stage.name}")
    yield f"1st stage  {stage}: {why['first_stage']}"
    unet_steps, own_steps = plan.steps
    if plan.autoencoder is not None:
        yield _training("autoencoder", plan.autoencoder, own_steps, times.autoencoder.step)
    elif plan.stage.seen is not None:
        seen = plan.stage.seen
        yield (
            f"           {seen.psnr:.1f} dB on {seen.images} of these images; encoding all takes "
            f"about {clock(times.encoding)}"
        )
    name = f" ({recipe.unet})" if recipe.unet else ""
    yield _training(f"UNet{name}", plan.diffusion, unet_steps, times.unet.step)
    grids = f"{times.validations} sample grid" + "s" * (times.validations > 1)
    passes = unet_steps * plan.diffusion["training"]["batch_size"] / facts.images
    yield f"           {why['unet']}; each image {passes:.3g} times, {grids}"
    if plan.stage.name == READY and recipe.start is None:
        yield f"           a new UNet: {why['start']}"
    if unet_steps < ROUGH_STEPS and recipe.start is None:
        yield f"expect     colours and rough shapes: {unet_steps} steps are few; more time helps"
    yield (
        f"time       about {clock(plan.seconds)} in all, {clock(times.before)} of it until here "
        "(measured on the first steps, on this machine as it is now)"
    )


def _training(what: str, settings: dict, steps: int, step: float) -> str:
    size = settings["training"]["batch_size"]
    return (
        f"{'train':<10} {what}: {steps} steps of {size} at {size / step:.3g} images/s, about "
        f"{clock(steps * step)}"
    )
