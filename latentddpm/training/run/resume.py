"""Resuming: a run can be stopped at any step, and goes on as if it had not been.

check_run, check_resume   before anything is made: is this the run that is meant?
Saver                     while it trains: writes checkpoints, and ends when told to
Best                      keeps the checkpoint that validated best beside them
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from latentddpm.config import TrainingConfig
from latentddpm.config_file import load_config
from latentddpm.data.catalog.catalog import Catalog
from latentddpm.errors import UserError
from latentddpm.pipeline.model_folder import LORA
from latentddpm.training.run import checkpoint
from latentddpm.training.run.contract import COMMANDS, Contract, compare
from latentddpm.training.run.health import Diverged
from latentddpm.training.run.run import BEST, CHECKPOINTS, CONFIG, Run
from latentddpm.training.step.trainer import Trainer
from latentddpm.utils import signals

HIGHER_IS_BETTER = ("psnr", "ssim")


def check_run(folder: Path, resume: bool) -> None:
    """Refuse a run folder that is taken or, with `resume`, finished without a checkpoint.

    One that is empty, or was left before the first checkpoint, is neither: a script that always
    passes `--resume` starts there.

    Raises:
        UserError: the folder holds a run and `resume` was not asked; or nothing to go on from.
    """
    held = checkpoint.present(folder / CHECKPOINTS)
    if held and not resume:
        raise UserError(f"{folder}: already holds a run; pass --resume, or another --out")
    if resume and not held and any((folder / name).exists() for name in ("model", LORA)):
        raise UserError(f"{folder}: finished, with no checkpoint to resume; take another --out")


def check_resume(run: Run, facts: Mapping[str, int | str]) -> Contract:
    """The contract of a run; on resuming, once it is that of the run which was started.

    Before the first checkpoint that is known of the configuration alone. Called before anything
    is made for the run: what is refused has cost nothing.

    Args:
        facts: about the data, by the names people read; see `data_facts`.

    Raises:
        UserError: settings or data differ from those in the newest checkpoint, and changes are
            not allowed.
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


def _started(folder: Path, contract: Contract) -> Contract:
    """What a run that has no checkpoint was started with: `contract`, but for its settings."""
    for kind in COMMANDS.values():
        with contextlib.suppress(UserError):
            return Contract.of(load_config(kind, folder / CONFIG), contract.data)
    return contract


def check_best(training: TrainingConfig, held_back: int) -> None:
    """Refuse to finish with the best checkpoint where there can be none.

    Raises:
        UserError: nothing is measured, or nothing to measure it on.
    """
    if training.keep_best and training.best_metric == "none":
        raise UserError("training.keep_best: needs a training.best_metric that says what is best")
    if training.keep_best and not held_back:
        raise UserError(
            "training.keep_best: no image is held back to validate on; raise "
            "data.validation_fraction"
        )


def data_facts(catalog: Catalog, **more: str) -> dict[str, int | str]:
    """What `Contract.data` says of a catalog's images, and `more` digests."""
    return {
        "images": len(catalog),
        "contents of images": catalog.digest,
        "names of images": catalog.name_digest,
        **more,
    }


class Saver:
    """Writes a run's checkpoints, and ends the run when it was told to.

    Args:
        first: step of the checkpoint that training goes on from, 0 for none.
        folder, keep: where checkpoints go and how many stay, if not as the run has it.
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

        Raises:
            Diverged: it holds numbers that are not finite.
            OSError: see `checkpoint.save`.
        """
        if self.run.is_chief:
            try:
                checkpoint.save(self.folder, self.trainer, step, self.contract, self.keep)
            except checkpoint.NotFinite as error:
                raise Diverged(str(error)) from None
        self.step = step

    def stop_if_told(self, step: int, agreed: Callable[[bool], bool] | None) -> None:
        """Save and end, if a signal has come to this process or, with `agreed`, to another.

        Raises:
            signals.Stopped: it has.
        """
        signal = signals.pending(agreed)
        if signal is None:
            return
        if self.step != step:
            self.save(step)
        raise signals.Stopped(signal, f"stopped by a signal after step {step}; {self.newest()}")

    def newest(self) -> str:
        """Where to go on from, for messages."""
        if not self.step:
            return "no checkpoint was written yet"
        return f"--resume goes on from {self.folder / f'step-{self.step:08d}'}"


class Best:
    """Keeps the checkpoint that validated best, in `best/` beside the newest ones.

    What it has to beat is in the log, so that a run that was stopped goes on with it.

    Args:
        saver: of the run.
        metric: "loss" or another one of validation.
        first: step that training goes on from; the steps after it are taken again.
        history: the lines of the run's log up to there.
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
        self.offer(first, known.get(first, {}))  # it may have ended between the two

    def offer(self, step: int, values: Mapping[str, float]) -> None:
        """Keep the state of `step`, that gave these `values`, unless an earlier one was as good.

        Raises:
            Diverged, OSError: see `Saver.save`.
        """
        cost = self._cost(values)
        if cost < self.cost:
            self.saver.save(step)
            self.cost = cost

    def _cost(self, values: Mapping[str, float]) -> float:
        """What is to be low, as exact as in the log; infinite where nothing was measured."""
        value = float(f"{values.get(self.key, math.nan):.6g}")
        if not math.isfinite(value):
            return math.inf
        return -value if self.higher else value
