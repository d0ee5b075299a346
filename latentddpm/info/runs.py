"""Description of runs: their curves, checkpoints and state."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from latentddpm.errors import UserError
from latentddpm.pipeline.control.folder import FOLDER as CONTROL
from latentddpm.pipeline.model_folder import EMBEDDING, LORA, is_model
from latentddpm.pipeline.recognise import is_control, is_run, recognise
from latentddpm.pipeline.weight_files import convert_line
from latentddpm.recipe.folder import read_plan, read_state
from latentddpm.recipe.settings import PARTS
from latentddpm.training.plan.first_stage import NONE
from latentddpm.training.run.contract import Contract
from latentddpm.training.run.curves import LOG, VALIDATION, Curve, read_curves
from latentddpm.utils.files import size_text
from latentddpm.utils.timing import clock

CONFIG, CHECKPOINTS, RUN, STATE = "config.yaml", "checkpoints", "run.json", "state.safetensors"


def describe_run(path: Path) -> Iterator[str]:
    """Describe a run: its last losses, its newest checkpoint, and what comes next.

    Args:
        path: of its folder, with or without a log.

    Yields:
        Lines of text.
    """
    config = _settings(path)
    curves = read_curves(path) if (path / LOG).is_file() else {}
    yield f"run        {path}"
    if config:
        steps = config.get("training", {}).get("num_steps")
        yield f"command    {_command(config)}, {steps} steps"
        for name, one in (config.get("conditions") or {}).items():
            yield f"condition  {name} ({one.get('kind')}): {_where(one)}"
        yield from _augmentation(config.get("data", {}).get("augment") or {})
    if "loss" in curves:
        steps, losses = curves["loss"]
        yield f"step       {steps[-1]}, loss {losses[-1]:.5g}{_quartiles(curves)}"
    elif _is_finished(path):
        yield "step       none logged: it is shorter than training.log_every"
    else:
        yield "step       none logged: it was stopped before its first log line"
    if "examples_per_second" in curves:
        yield f"speed      {curves['examples_per_second'].values[-1]:.4g} examples/s"
    for name, (steps, values) in curves.items():
        if name.startswith(VALIDATION) and "loss_q" not in name:
            what = name.removeprefix(VALIDATION)
            more = _quartiles(curves, VALIDATION) if what == "loss" else ""
            if what == "loss" and values.argmin() < len(values) - 1:
                more += f"; lowest {values.min():.5g} at step {steps[values.argmin()]}"
            yield f"validation {what} {values[-1]:.5g} at step {steps[-1]}{more}"
    for kept in sorted(path.glob(f"{CHECKPOINTS}/best/step-*"))[-1:]:
        yield f"best       step {_step(kept)}, in {kept.relative_to(path)}"
    for newest in sorted(path.glob(f"{CHECKPOINTS}/step-*"))[-1:]:
        if _of_pixels(newest):
            yield "pixels     trained on them, without an autoencoder"
        yield f"checkpoint step {_step(newest)}, in {newest.relative_to(path)}"
    if (path / LORA).is_file():
        yield f"model      finished: a LoRA; generate --model MODEL --lora {path}"
    elif (path / EMBEDDING).is_file():
        yield f"model      finished: a new word; generate --model MODEL --embedding {path}"
    elif is_control(path / CONTROL):
        yield (
            f"model      finished: a ControlNet; generate --model MODEL --control {path} "
            "--control-image FILE"
        )
    elif (path / "model").is_dir():
        yield f"model      finished, in {path / 'model'}"
    else:
        yield "model      not finished; the command that began it goes on with --resume"


def _is_finished(path: Path) -> bool:
    """True for a run that left a LoRA, a ControlNet or a model."""
    return (path / LORA).is_file() or is_control(path / CONTROL) or (path / "model").is_dir()


def _augmentation(settings: Mapping[str, Any]) -> Iterator[str]:
    """Line on the augmentation of a run; none without it."""
    if share := settings.get("probability"):
        apart = ("probability", "variants")
        strengths = [f"{key} {value:g}" for key, value in settings.items() if key not in apart]
        yield (
            f"augment    {share:.0%} of the examples, one of {settings.get('variants')} variants: "
            f"{', '.join(strengths)}; generating tells the network that nothing is changed"
        )


def describe_whole_run(path: Path) -> Iterator[str]:
    """Describe a whole run, of the command `train`: its plan and each of its trainings.

    Args:
        path: of its folder.

    Yields:
        Lines of text.

    Raises:
        UserError: its plan is damaged.
    """
    plan = read_plan(path)
    state = read_state(path)
    wish = f"quality {plan.goal.quality}"
    if plan.goal.seconds is not None:
        wish += f", in {clock(plan.goal.seconds)}, {clock(state['spent'])} of it spent"
    yield f"run        {path}: train, {wish}"
    yield f"data       {' + '.join(plan.data)}"
    for line in plan.commands(path):
        yield f"repeats    {line}"
    for part in PARTS:
        if is_run(path / part):
            yield from describe_run(path / part)
    if is_model(path / "model"):
        yield f"model      finished, in {path / 'model'}"
    else:
        yield f"model      not finished; latentddpm train --out {path} --resume goes on"


def holds_runs(path: Path) -> bool:
    """True for a folder of runs or models.

    Args:
        path: of the folder.
    """
    return any(_is_any(one) for one in path.iterdir())


def describe_runs(path: Path) -> Iterator[str]:
    """Describe a folder of runs and models, each in a line.

    Args:
        path: of the folder.

    Yields:
        Lines of text.
    """
    found = sorted(one for one in path.iterdir() if _is_any(one))
    yield f"folder     {path}, with {len(found)} runs or models; info describes each"
    for one in found:
        yield f"{one.name:<10} {_state(one)}"


def is_checkpoint(path: Path) -> bool:
    """True for the checkpoint of a training.

    Args:
        path: of its folder.
    """
    return (path / STATE).is_file() and (path / RUN).is_file()


def describe_checkpoint(path: Path) -> Iterator[str]:
    """Describe a checkpoint of a training: its run, step and size.

    Args:
        path: of its folder.

    Yields:
        Lines of text.

    Raises:
        UserError: its `run.json` is damaged.
    """
    try:
        contract = Contract.parse((path / RUN).read_bytes())
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path / RUN}: damaged ({error})") from None
    yield f"checkpoint {path}, step {_step(path)} of {contract.command}"
    yield f"state      {size_text((path / STATE).stat().st_size)}: weights, optimizer, average"
    for name, value in contract.data.items():
        yield f"data       {name}: {str(value)[:40]}"
    yield "use        the command that began the run goes on from it, with --resume"
    yield f"use        once the run is finished, {convert_line(path)}"


def _is_any(path: Path) -> bool:
    return path.is_dir() and (is_model(path) or is_run(path) or is_model(path / "model"))


def _state(path: Path) -> str:
    """State of a run or a model, in a few words."""
    thing = recognise(path)
    if not is_run(path) or thing is None:
        return "a model folder"
    curves = read_curves(path) if (path / LOG).is_file() else {}
    step = f", step {curves['loss'].steps[-1]}" if "loss" in curves else ", no step logged"
    return f"{thing.what}{step}"


def _settings(path: Path) -> Mapping[str, Any]:
    """Resolved settings of a run; empty where they cannot be read."""
    try:
        settings = yaml.safe_load((path / CONFIG).read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return settings if isinstance(settings, dict) else {}


def _command(settings: Mapping[str, Any]) -> str:
    return "train-diffusion" if "unet" in settings else "train-vae"


def _where(condition: Mapping[str, Any]) -> str:
    """Place of a condition in the data, and how often it is dropped alone."""
    column = condition.get("column")
    names = ", ".join(column) if isinstance(column, list) else column
    place = f"column {names}, " if names else ""
    return f"{place}dropped alone from {condition.get('dropout', 0):g} of the examples"


def _step(path: Path) -> str:
    return path.name.removeprefix("step-").lstrip("0") or "0"


def _of_pixels(checkpoint: Path) -> bool:
    """True for a checkpoint of a run on pixels; False too where that cannot be read."""
    try:
        return Contract.parse((checkpoint / RUN).read_bytes()).data["autoencoder"] == NONE
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _quartiles(curves: Mapping[str, Curve], kind: str = "") -> str:
    """Last loss of each quarter of the timesteps, as text; "" where none was logged."""
    found: Iterable[Curve | None] = [curves.get(f"{kind}loss_q{q}") for q in (1, 2, 3, 4)]
    if not any(found):
        return ""
    values = (f"{curve.values[-1]:.3g}" if curve else "?" for curve in found)
    return f" (from little to much noise {', '.join(values)})"
