"""Runs as a server shows them: their losses, their sample grids, the time that is left.

    --runs DIR ─► runs in it, and one folder below ─► curves, samples, state

Nothing is written. Only files that a listing of these folders has are given out, and no links.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from latentddpm.errors import UserError
from latentddpm.pipeline.model_folder import LORA, is_model
from latentddpm.pipeline.recognise import is_run
from latentddpm.training.run.curves import LOG, Curve, read_curves
from latentddpm.utils.timing import duration

CONFIG, SAMPLES = "config.yaml", "samples"
MOST_RUNS = 200
MOST_SAMPLES = 200
ALIVE_SECONDS = 600
"""Age of the last line of a log up to which its run is thought to go on."""


@dataclass(frozen=True)
class RunView:
    """Run as it is shown.

    Attributes:
        name: below the folder of runs.
        path: of its folder.
        curves: by name, see `training.run.curves`.
        step, num_steps: done, and wanted; None where they are not known.
        state: "finished", "training" or "stopped".
        seconds_left: of a run that trains; None where it is not known.
        samples: sample grids, from the first to the last.
    """

    name: str
    path: Path
    curves: dict[str, Curve]
    step: int | None
    num_steps: int | None
    state: str
    seconds_left: float | None
    samples: list[Path]

    def summary(self) -> str:
        """Run in a line of text."""
        found = [self.state]
        if self.step is not None:
            found.append(f"step {self.step:,}" + f" of {self.num_steps:,}" * bool(self.num_steps))
        for name, title in (("loss", "loss"), ("validation_loss", "validation")):
            if name in self.curves:
                found.append(f"{title} {self.curves[name].values[-1]:.4g}")
        if self.seconds_left is not None:
            found.append(f"about {duration(self.seconds_left)} left")
        return ", ".join(found)

    def to_json(self) -> dict[str, Any]:
        """Run as JSON, with its curves."""
        curves = {
            name: {"steps": curve.steps.tolist(), "values": curve.values.tolist()}
            for name, curve in self.curves.items()
        }
        return {
            "name": self.name,
            "state": self.state,
            "step": self.step,
            "num_steps": self.num_steps,
            "seconds_left": self.seconds_left,
            "samples": [one.name for one in self.samples],
            "curves": curves,
        }


def default_folder(model: Path) -> Path:
    """Folder of runs that belongs to a model: its own run, else `runs` in the working directory.

    Args:
        model: its folder.
    """
    run = model.resolve().parent
    return run if _holds_runs(run) else Path("runs")


def run_names(folder: Path) -> dict[str, Path]:
    """Runs of a folder by name, the one that was changed last first.

    Args:
        folder: a run, or a folder of runs and of folders of runs; one that is not there has none.
    """
    folder = folder.resolve()
    found = {folder.name: folder} if is_run(folder) else {}
    for one in _folders(folder):
        if is_run(one):
            found[one.name] = one
        else:
            found |= {f"{one.name}/{run.name}": run for run in _folders(one) if is_run(run)}
    newest = sorted(found, key=lambda name: _changed(found[name]), reverse=True)
    return {name: found[name] for name in newest[:MOST_RUNS]}


def read_run(name: str, path: Path) -> RunView:
    """Run as it is shown.

    Args:
        name, path: of `run_names`.

    Raises:
        OSError: its log cannot be read.
    """
    try:
        curves = read_curves(path)
    except (UserError, ValueError, KeyError):
        curves = {}  # none yet, or a log of something else
    config = _config(path)
    training = config.get("training") if isinstance(config.get("training"), dict) else {}
    step = int(curves["loss"].steps[-1]) if "loss" in curves else None
    num_steps = training.get("num_steps")
    num_steps = num_steps if isinstance(num_steps, int) else None
    finished = is_model(path / "model") or (path / LORA).is_file() or (path / "control").is_dir()
    trains = not finished and time.time() - _changed(path) < ALIVE_SECONDS
    state = "finished" if finished else "training" if trains else "stopped"
    left = _seconds_left(curves, training, step, num_steps) if trains else None
    return RunView(name, path, curves, step, num_steps, state, left, _samples(path))


def _seconds_left(
    curves: dict[str, Curve], training: dict[str, Any], step: int | None, num_steps: int | None
) -> float | None:
    """Time that the steps left take at the speed of the last ones."""
    batch, speed = training.get("batch_size"), curves.get("examples_per_second")
    if step is None or num_steps is None or not isinstance(batch, int) or speed is None:
        return None
    if step >= num_steps:  # what is left is to write the model
        return None
    return (num_steps - step) * batch / max(float(speed.values[-5:].mean()), 1e-9)


def _samples(path: Path) -> list[Path]:
    """Sample grids of a run, at most `MOST_SAMPLES` of them."""
    folder = path / SAMPLES
    if folder.is_symlink() or not folder.is_dir():
        return []
    found = [one for one in folder.glob("*.png") if one.is_file() and not one.is_symlink()]
    return sorted(found)[-MOST_SAMPLES:]


def _config(path: Path) -> dict[str, Any]:
    """Settings of a run; empty where they cannot be read."""
    try:
        config = yaml.safe_load((path / CONFIG).read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return config if isinstance(config, dict) else {}


def _folders(path: Path) -> list[Path]:
    """Folders in a folder that can be read; none where it cannot."""
    try:
        inside = [one for one in path.iterdir() if not one.name.startswith(".")]
    except OSError:
        return []
    found = [one for one in inside if os.access(one, os.R_OK | os.X_OK) and not one.is_symlink()]
    return sorted(one for one in found if one.is_dir())


def _holds_runs(path: Path) -> bool:
    return is_run(path) or any(is_run(one) for one in _folders(path))


def _changed(path: Path) -> float:
    """Time of the last line of a run's log, else of its folder."""
    log = path / LOG
    return (log if log.is_file() else path).stat().st_mtime
