"""Folder of a whole run: its plan, its settings, its state, and the runs of both trainings.

RUN/  plan.yaml  vae.yaml  diffusion.yaml     the plan, and the settings that repeat it
      state.json                              time spent, trainings that were shortened
      catalog/  vae/  diffusion/              of both trainings; vae only where one is trained
      model/                                  the finished model
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from latentddpm import __version__
from latentddpm.data.places.places import Data, as_places
from latentddpm.errors import UserError, one_line
from latentddpm.pipeline.recognise import PLAN
from latentddpm.recipe.budget import Speed, Times
from latentddpm.recipe.goal import Goal
from latentddpm.recipe.rules import OWN
from latentddpm.training.run.curves import LOG
from latentddpm.training.run.run import CHECKPOINTS, CONFIG
from latentddpm.utils.files import atomic_path, read_json, write_json

if TYPE_CHECKING:
    from latentddpm.recipe.plan import Plan

STATE, CATALOG = "state.json", "catalog"
VAE, DIFFUSION = "vae", "diffusion"


@dataclass(frozen=True)
class WrittenPlan:
    """Plan as it is kept in the folder, so that a run goes on without measuring again.

    Attributes:
        data: places of the images, with their weights.
        goal: what was asked for.
        first_stage: "none", "own" or a model.
        times: measured.
        overrides: of `--set`.
        precision: of `--precision`; None for none.
    """

    data: list[str]
    goal: Goal
    first_stage: str
    times: Times
    overrides: list[str] = field(default_factory=list)
    precision: str | None = None

    def vae(self, out: Path) -> str | None:
        """First stage as `train-diffusion --vae` takes it.

        Args:
            out: folder of the whole run.
        """
        if self.first_stage == OWN:
            return str(out / VAE)
        own = self.goal.named_init is not None and self.goal.vae is None
        return None if own else self.first_stage

    def commands(self, out: Path) -> list[str]:
        """Command lines that repeat the run without this plan.

        Args:
            out: folder of the whole run.
        """
        data, vae = " --data ".join(map(shlex.quote, self.data)), self.vae(out)
        lines = []
        if self.first_stage == OWN:
            lines.append(f"latentddpm train-vae --data {data} {_places(out / VAE)}")
        named = f" --vae {shlex.quote(vae)}" if vae else ""
        lines.append(f"latentddpm train-diffusion --data {data}{named} {_places(out / DIFFUSION)}")
        return lines


def _places(run: Path) -> str:
    """Options with the settings and the folder of a training."""
    return f"--config {shlex.quote(f'{run}.yaml')} --out {shlex.quote(str(run))}"


def settings_file(out: Path, part: str) -> Path:
    """File with the settings of a training.

    Args:
        out: folder of the whole run.
        part: "vae" or "diffusion".
    """
    return out / f"{part}.yaml"


def write_settings(out: Path, part: str, settings: Mapping[str, Any]) -> None:
    """Write the settings of a training.

    Args:
        out: folder of the whole run.
        part: "vae" or "diffusion".
        settings: those that differ from the defaults.
    """
    _write_yaml(settings_file(out, part), settings)


def read_settings(out: Path, part: str) -> dict[str, Any]:
    """Settings of a training.

    Args:
        out: folder of the whole run.
        part: "vae" or "diffusion".

    Raises:
        UserError: the file is missing or damaged.
    """
    return _read_yaml(settings_file(out, part))


def resolved(data: Data) -> list[str]:
    """Places of the images, whole, as another working directory finds them.

    Args:
        data: see `data.places.places.as_places`.
    """
    whole = [
        one._replace(path=str(Path(one.path).resolve())) if Path(one.path).exists() else one
        for one in as_places(data)
    ]
    return list(map(str, whole))


def write_plan(
    out: Path, data: Data, plan: Plan, overrides: list[str], precision: str | None
) -> WrittenPlan:
    """Write a plan: settings first, `plan.yaml` last.

    Args:
        out: folder of the whole run.
        data: places of the images.
        plan: to write.
        overrides: of `--set`.
        precision: of `--precision`; None for none.

    Raises:
        OSError: the folder cannot be written.
    """
    written = WrittenPlan(
        resolved(data),
        *(plan.task.goal, plan.stage.name, plan.times, list(overrides), precision),
    )
    if plan.autoencoder is not None:
        write_settings(out, VAE, plan.autoencoder)
    else:
        settings_file(out, VAE).unlink(missing_ok=True)
    write_settings(out, DIFFUSION, plan.diffusion)
    settings = {
        "latentddpm": __version__,
        **asdict(written),
        "reasons": dict(plan.recipe.reasons),
        "commands": written.commands(out),
    }
    _write_yaml(out / PLAN, settings)
    return written


def read_plan(out: Path) -> WrittenPlan:
    """Plan of a folder.

    Args:
        out: folder of the whole run.

    Raises:
        UserError: there is none, or it is damaged.
    """
    kept = _read_yaml(out / PLAN)
    try:
        times = dict(kept["times"])
        for name in ("unet", "autoencoder"):
            times[name] = Speed(**times[name]) if times[name] else None
        return WrittenPlan(
            *(kept["data"], Goal(**kept["goal"]), kept["first_stage"], Times(**times)),
            *(kept["overrides"], kept["precision"]),
        )
    except (KeyError, TypeError) as error:
        raise UserError(f"{out / PLAN}: damaged ({one_line(error)}); take another --out") from None


def read_state(out: Path) -> dict[str, Any]:
    """State of a whole run.

    `spent` are its seconds, but for those of the process that began at the time `since`; `settled`
    is true once the UNet's steps follow from the autoencoder's time; `corrected` has the number of
    steps of each training whose first steps corrected it; `ended` has the last step of each that
    ended early.

    Args:
        out: folder of the whole run.
    """
    first = {"spent": 0.0, "since": None, "settled": False, "corrected": {}, "ended": {}}
    return {**first, **read_json(out / STATE, optional=True)}


def unfinished_seconds(out: Path, state: Mapping[str, Any]) -> float:
    """Seconds of a process that was killed, up to the last line of its log.

    Args:
        out: folder of the whole run.
        state: as of `read_state`.
    """
    if state["since"] is None:
        return 0.0
    logs = [path.stat().st_mtime for path in out.glob(f"*/{LOG}")]
    return max(max(logs, default=0.0) - state["since"], 0.0)


def write_state(out: Path, state: Mapping[str, Any]) -> None:
    """Write the state of a whole run.

    Args:
        out: folder of the whole run.
        state: as of `read_state`.
    """
    write_json(out / STATE, state)


def check_folder(out: Path, resume: bool, plan_only: bool = False) -> bool:
    """True where a folder holds a plan to follow.

    Args:
        out: folder of the whole run.
        resume: go on.
        plan_only: only a plan is made.

    Raises:
        UserError: it holds a run, and `resume` is False; or another kind of run.
    """
    begun = any((out / part).is_dir() for part in (VAE, DIFFUSION))
    if not (out / PLAN).is_file():
        for name in (CONFIG, CHECKPOINTS):
            if (out / name).exists():
                raise UserError(
                    f"{out}: holds a run of another command ({name}); take another --out"
                )
        return False
    if begun and plan_only:
        raise UserError(f"{out}: already holds a run; --plan wants another --out")
    if begun and not resume:
        raise UserError(f"{out}: already holds a run; pass --resume, or another --out")
    return resume


def _write_yaml(path: Path, value: Mapping[str, Any]) -> None:
    with atomic_path(path) as temporary:
        text = yaml.safe_dump(dict(value), sort_keys=False, allow_unicode=True)
        temporary.write_text(text, "utf-8")


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        value = yaml.safe_load(path.read_text("utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; --out names the folder of a whole run") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not YAML: {one_line(error)}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: damaged, expected settings")
    return value
