"""A run that can be stopped at any step, and goes on as if it had not been.

check_run, agree   before anything is made: is this the run that is meant?
Saver              while it trains: write what it takes to go on, and end when told to
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path

import keras

from latentddpm import interrupt
from latentddpm.config import AutoencoderRun, DiffusionRun, load_config
from latentddpm.data.catalog import Catalog
from latentddpm.errors import UserError
from latentddpm.modelfolder import LORA
from latentddpm.notes import say
from latentddpm.training import checkpoint
from latentddpm.training.contract import COMMANDS, Contract, compare
from latentddpm.training.health import Diverged

CHECKPOINTS = "checkpoints"
CONFIG = "config.yaml"


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


def agree(
    folder: Path,
    config: AutoencoderRun | DiffusionRun,
    data: Mapping[str, int | str],
    *,
    resume: bool,
    allow_changes: bool,
    quiet: bool,
) -> Contract:
    """What the run stands for; on resuming, once it is what the run was started with.

    Before the first checkpoint that is known of the configuration alone.

    Called before anything is made for the run: what is refused has cost nothing.

    Args:
        data: facts about the data, by the names people read.
        allow_changes: say what differs instead of refusing it.

    Raises:
        UserError: settings or data differ from those in the newest checkpoint.
    """
    contract = Contract.of(config, data)
    if not resume:
        return contract
    found = checkpoint.newest_contract(folder / CHECKPOINTS)
    step, old = found or (0, _started(folder, contract))
    try:
        refused, noted = compare(old, contract, step)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from None
    if refused and not allow_changes:
        known = f"that stopped at step {step}" if step else "that was started there"
        raise UserError(
            f"{folder}: not the run {known}: {'; '.join(refused)}. Take that back, or pass "
            "--allow-changes to go on with it"
        )
    if not checkpoint.present(folder / CHECKPOINTS):
        say(f"{folder}: no checkpoint yet, starting from the beginning", quiet)
    if refused or noted:
        say(f"going on from step {step} with {'; '.join(refused + noted)}", quiet)
    return contract


def _started(folder: Path, contract: Contract) -> Contract:
    """What a run that has no checkpoint was started with: `contract`, but for its settings."""
    for kind in COMMANDS.values():
        with contextlib.suppress(UserError):
            return Contract.of(load_config(kind, folder / CONFIG), contract.data)
    return contract


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
        chief: False for the workers that leave the writing to another.
    """

    def __init__(
        self,
        folder: Path,
        model: keras.Model,
        contract: Contract,
        keep: int,
        first: int,
        chief: bool = True,
    ) -> None:
        self.folder, self.model, self.contract, self.keep = folder, model, contract, keep
        self.step, self.chief = first, chief

    def save(self, step: int) -> None:
        if not self.chief:
            self.step = step
            return
        try:
            checkpoint.save(self.folder, self.model, step, self.contract, self.keep)
        except checkpoint.NotFinite as error:
            raise Diverged(str(error)) from None
        self.step = step

    def stop_if_told(self, step: int, agreed: Callable[[bool], bool] | None) -> None:
        """Save and end, if a signal has come to this process or, with `agreed`, to another.

        Raises:
            interrupt.Stopped: it has.
        """
        signal = interrupt.pending()
        if not (agreed(signal is not None) if agreed else signal is not None):
            return
        if self.step != step:
            self.save(step)
        raise interrupt.Stopped(
            signal or interrupt.SIGNALS[-1],
            f"stopped by a signal after step {step}; {self.newest()}",
        )

    def newest(self) -> str:
        """Where to go on from, for messages."""
        if not self.step:
            return "no checkpoint was written yet"
        return f"--resume goes on from {self.folder / f'step-{self.step:08d}'}"
