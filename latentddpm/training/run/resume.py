"""Resuming: a run can be stopped at any step, and goes on as if it had not been stopped.

    check_run, check_resume   before training: refuse another run than the one in the folder
    Saver                     during training: write checkpoints, stop after a signal
    Best                      keep the best checkpoint by a metric of validation

`checkpoint` reads and writes the files.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentddpm.config import COMMANDS, TrainingConfig
from latentddpm.config_file import load_config
from latentddpm.data.catalog.catalog import Catalog
from latentddpm.errors import UserError
from latentddpm.evaluation.metrics.similarity import HIGHER_IS_BETTER
from latentddpm.pipeline.control.folder import FOLDER as CONTROL
from latentddpm.pipeline.model_folder import EMBEDDING, LORA
from latentddpm.training.run import checkpoint
from latentddpm.training.run.contract import Contract, compare, in_todays_words
from latentddpm.training.run.run import BEST, CHECKPOINTS, CONFIG, Run, TimeUp
from latentddpm.utils import signals

if TYPE_CHECKING:
    from latentddpm.training.step.trainer import Trainer


def check_run(folder: Path, resume: bool) -> None:
    """Refuse a run folder that holds a run or, with `resume`, a finished one without checkpoints.

    A folder without a checkpoint and without a finished model passes in both cases. So a script
    may always pass `--resume`.

    Args:
        folder: of the run.
        resume: go on from the newest checkpoint.

    Raises:
        UserError: the folder holds a run and `resume` is False; or `resume` is True and the run
            is finished, with no checkpoint to go on from.
    """
    held = checkpoint.present(folder / CHECKPOINTS)
    if held and not resume:
        raise UserError(f"{folder}: already holds a run; pass --resume, or another --out")
    made = ("model", LORA, CONTROL, EMBEDDING)
    if resume and not held and any((folder / name).exists() for name in made):
        raise UserError(f"{folder}: finished, with no checkpoint to resume; take another --out")


def check_resume(run: Run, facts: Mapping[str, int | str]) -> Contract:
    """Contract of a run; a run that resumes has to match the contract of its newest checkpoint.

    Before the first checkpoint only the configuration is compared. This is called before latents
    are computed or networks trained, so a refusal costs no time.

    Args:
        run: to start or to resume.
        facts: about the data; see `data_facts`.

    Raises:
        UserError: with `run.resume`, settings or data differ from those of the newest checkpoint,
            and `run.allow_changes` is False.
    """
    contract = Contract.of(run.config, facts)
    if not run.resume:
        return contract
    folder = run.folder
    found = checkpoint.newest_contract(folder / CHECKPOINTS)
    step, old = found or (0, _started(folder, contract))
    try:
        refused, noted = compare(old, contract, step)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from None
    if refused and not run.allow_changes:
        known = f"that stopped at step {step}" if step else "that was started there"
        raise UserError(
            f"{folder}: not the run {known}: {'; '.join(refused)}. Take that back, or pass "
            "--allow-changes to go on with it"
        )
    if not checkpoint.present(folder / CHECKPOINTS):
        run.say(f"{folder}: no checkpoint yet, starting from the beginning")
    if refused or noted:
        run.say(f"going on from step {step} with {'; '.join(refused + noted)}")
    return contract


def earlier_settings(folder: Path) -> dict[str, Any]:
    """Settings of the run in a folder: of its newest checkpoint, else of its `config.yaml`.

    Args:
        folder: of the run.

    Returns:
        Sections with their settings; empty where there is no run.

    Raises:
        UserError: the newest checkpoint has another format.
    """
    found = checkpoint.newest_contract(folder / CHECKPOINTS)
    if found is not None:
        return in_todays_words(found[1].config)
    for kind in COMMANDS.values():
        with contextlib.suppress(UserError):
            return in_todays_words(load_config(kind, folder / CONFIG).model_dump(mode="json"))
    return {}


def _started(folder: Path, contract: Contract) -> Contract:
    """Contract of a run without a checkpoint: `contract` with the settings in the folder."""
    for kind in COMMANDS.values():
        with contextlib.suppress(UserError):
            return Contract.of(load_config(kind, folder / CONFIG), contract.data)
    return contract


def check_best(training: TrainingConfig, validation_images: int) -> None:
    """Refuse `keep_best` where no checkpoint can be the best one.

    Args:
        training: the section `training:` of a configuration.
        validation_images: how many there are.

    Raises:
        UserError: `keep_best` without a metric, or without a validation image.
    """
    if training.keep_best and training.best_metric == "none":
        raise UserError("training.keep_best: needs a training.best_metric that says what is best")
    if training.keep_best and not validation_images:
        raise UserError(
            "training.keep_best: there are no validation images; raise data.validation_fraction"
        )


def data_facts(catalog: Catalog, **more: str) -> dict[str, int | str]:
    """Facts about a catalog's images, under names for messages, for `Contract.data`.

    Args:
        catalog: of the images.
        more: further facts, added as they are.
    """
    return {
        "images": len(catalog),
        "contents of images": catalog.digest,
        "names of images": catalog.name_digest,
        **more,
    }


class Saver:
    """Saver of a run's checkpoints, which also stops the run after a signal.

    Args:
        run: folder, settings and processes.
        trainer: to save.
        contract: of the run.
        first: step of the checkpoint that training goes on from, 0 for none.
        folder: for the checkpoints; None for `checkpoints` in the run folder.
        keep: how many checkpoints stay; None for `training.keep_checkpoints`.

    Attributes:
        step: of the newest checkpoint, 0 for none.
    """

    def __init__(
        self,
        run: Run,
        trainer: Trainer,
        contract: Contract,
        first: int,
        folder: Path | None = None,
        keep: int | None = None,
    ) -> None:
        self.run, self.trainer, self.contract, self.step = run, trainer, contract, first
        self.folder = folder or run.folder / CHECKPOINTS
        self.keep = keep or run.training.keep_checkpoints

    def save(self, step: int) -> None:
        """Write the checkpoint of a step, in the chief process.

        Args:
            step: optimizer steps so far.

        Raises:
            Diverged: weights or optimizer state are not finite.
            OSError: see `checkpoint.save`.
        """
        from latentddpm.training.run.health import Diverged

        if self.run.is_chief:
            try:
                checkpoint.save(self.folder, self.trainer, step, self.contract, self.keep)
            except checkpoint.NotFinite as error:
                raise Diverged(str(error)) from None
        self.step = step

    def stop_if_told(self, step: int, agreed: Callable[[bool], bool] | None) -> None:
        """Save and stop the run, if a signal has come or it ends early.

        Args:
            step: optimizer steps so far.
            agreed: returned by `distribution.strategy.any_process`, so that a signal to any
                process stops all; None for one process.

        Raises:
            signals.Stopped: a signal has come.
            TimeUp: the run ends early.
        """
        signal = signals.pending(agreed)
        if signal is None:
            ends_early, total = self.run.ends_early, self.run.training.num_steps
            if ends_early is not None and step < total and ends_early(step):
                if self.step != step:
                    self.save(step)
                raise TimeUp(step)
            return
        if self.step != step:
            self.save(step)
        raise signals.Stopped(signal, f"stopped by a signal after step {step}; {self.newest()}")

    def newest(self) -> str:
        """Message that names the newest checkpoint."""
        if not self.step:
            return "no checkpoint was written yet"
        return f"--resume goes on from {self.folder / f'step-{self.step:08d}'}"


class Best:
    """Best checkpoint by a metric of validation, kept in `best/` beside the newest ones.

    The metric of the best checkpoint so far is read from the log, so a resumed run goes on.

    Args:
        saver: of the run.
        metric: "loss" or another metric of validation.
        first: step that training goes on from; later checkpoints are deleted.
        history: lines of the run's log up to that step.
    """

    def __init__(
        self, saver: Saver, metric: str, first: int, history: Iterable[Mapping[str, Any]]
    ) -> None:
        folder = saver.folder / BEST
        self.saver = Saver(saver.run, saver.trainer, saver.contract, 0, folder, keep=1)
        self.key, self.higher = f"validation_{metric}", metric in HIGHER_IS_BETTER
        checkpoint.drop_after(folder, first)
        kept = checkpoint.latest(folder)
        known = {line["step"]: line for line in history if line.get(self.key) is not None}
        self.cost = self._cost(known.get(checkpoint.step_of(kept), {}) if kept else {})
        # The run may have been stopped after a validation and before its checkpoint.
        self.offer(first, known.get(first, {}))

    def offer(self, step: int, values: Mapping[str, float]) -> None:
        """Save the current state if it is better than every earlier one.

        Args:
            step: optimizer steps so far.
            values: numbers of its validation, by their names in the log.

        Raises:
            Diverged, OSError: see `Saver.save`.
        """
        cost = self._cost(values)
        if cost < self.cost:
            self.saver.save(step)
            self.cost = cost

    def _cost(self, values: Mapping[str, float]) -> float:
        """Value to minimize, with the digits of the log; infinite where nothing was measured."""
        value = float(f"{values.get(self.key, math.nan):.6g}")
        if not math.isfinite(value):
            return math.inf
        return -value if self.higher else value
