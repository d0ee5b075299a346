"""Checkpoints of a training run: everything that the next step depends on.

    checkpoints/step-00001000/
      state.safetensors   weights, optimizer with its moving averages and loss scale
      run.json            command, resolved configuration, facts about the data (see `contract`)
      manifest.json       format, step, size and digest of each file, and its own; written last

A checkpoint is staged under another name, flushed to the disk and renamed when complete; older
ones go only after the new one verifies. The newest that verifies is the latest. The position in
the data is not stored: it follows from the step (see `data.random`). Nothing in it depends on
how many replicas or processes trained: any number goes on from it. With several processes one
writes and all read. Weights that were read and do not train (those under a LoRA, a text encoder
of CLIP) are left out: they are read again, and the contract holds their digest.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import keras
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from latentddpm.errors import UserError
from latentddpm.models.functional import is_frozen
from latentddpm.training.run.contract import Contract
from latentddpm.training.step.trainer import Trainer
from latentddpm.utils.files import FileEntry, atomic_folder, atomic_path, write_json

FORMAT = 3
STATE = "state.safetensors"
RUN = "run.json"
MANIFEST = "manifest.json"
FILES = (STATE, RUN)


class NotFinite(ArithmeticError):
    """Weights or optimizer state that hold NaN or infinity, which no checkpoint may."""


def save(folder: Path, trainer: Trainer, step: int, contract: Contract, keep: int = 2) -> Path:
    """Write the checkpoint of `step` below `folder`, then drop all but the newest `keep`.

    Raises:
        NotFinite: there is nothing worth keeping; what stood there stays.
        OSError: disk full, no permission, or it does not read back as written; the same.
    """
    path = folder / f"step-{step:08d}"
    state = _state(trainer)
    for name, array in state.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise NotFinite(f"{path}: not written, for {name} {array.shape} is not finite")
    for left in folder.glob(".tmp-step-*"):  # by a process that was killed while it wrote
        shutil.rmtree(left, ignore_errors=True)
    with atomic_folder(path) as staged:
        try:
            save_file(state, staged / STATE)
        except SafetensorError as error:
            raise OSError(f"{path}: {error}") from None
        with atomic_path(staged / RUN) as temporary:
            temporary.write_text(contract.dump(), "utf-8")
        files = {name: asdict(FileEntry.of(staged / name)) for name in FILES}
        manifest = {"format": FORMAT, "step": step, "files": files}
        write_json(staged / MANIFEST, {**manifest, "sha256": _own_digest(manifest)})
    problem = verify(path)
    if problem:
        raise OSError(f"{path}: does not read back as written: {problem}")
    # Only earlier ones: a damaged later one, from which a resume fell back, takes no place.
    earlier = [old for old in _checkpoints(folder) if step_of(old) < step]
    for old in earlier[keep - 1 :]:
        shutil.rmtree(old)
    return path


def present(folder: Path) -> bool:
    """Whether there is any checkpoint, whole or damaged."""
    return bool(_checkpoints(folder))


def latest(folder: Path) -> Path | None:
    """The newest checkpoint that verifies; a warning says what is wrong with newer ones.

    Raises:
        UserError: the newest is of another format.
    """
    for path in _checkpoints(folder):
        problem = verify(path)
        if not problem:
            return path
        warnings.warn(f"{path.name} is damaged ({problem}); falling back", stacklevel=2)
    return None


def drop_after(folder: Path, step: int) -> None:
    """Remove the checkpoints of later steps, which will be taken again."""
    for path in _checkpoints(folder):
        if step_of(path) > step:
            shutil.rmtree(path)


def newest_contract(folder: Path) -> tuple[int, Contract] | None:
    """Step and contract of the newest checkpoint whose contract verifies, weights unread.

    Raises:
        UserError: the newest is of another format.
    """
    for path in _checkpoints(folder):
        if not verify(path, (RUN,)):
            return step_of(path), read_contract(path)
    return None


def load_latest(folder: Path, trainer: Trainer) -> int:
    """Restore the newest checkpoint that verifies; returns its step.

    Raises:
        UserError: there is none, or it belongs to another format or a model of other shapes.
    """
    path = latest(folder)
    if path is None:
        raise UserError(f"{folder}: holds no complete checkpoint to resume from")
    return restore(path, trainer)


def restore(path: Path, trainer: Trainer) -> int:
    """Put a verified checkpoint into a trainer and its optimizer; returns its step.

    Raises:
        UserError: it belongs to a model of other shapes.
    """
    state, variables = load_file(path / STATE), _variables(trainer)
    shapes = {name: tuple(variable.shape) for name, variable in variables.items()}
    stored = {name: array.shape for name, array in state.items()}
    if shapes != stored:
        name = next(n for n in (*shapes, *stored) if shapes.get(n) != stored.get(n))
        raise UserError(
            f"{path}: {name} has shape {stored.get(name)}, this model has {shapes.get(name)}; "
            "resume with the sizes the run was started with"
        )
    for name, variable in variables.items():
        variable.assign(state[name])
    return step_of(path)


def read_contract(path: Path) -> Contract:
    """The contract in a verified checkpoint."""
    return Contract.parse((path / RUN).read_bytes())


def verify(path: Path, names: tuple[str, ...] = FILES) -> str | None:
    """What is wrong with a checkpoint, or None.

    Args:
        names: of the files to check, beside the manifest.

    Raises:
        UserError: it is whole, but of another format.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text("utf-8"))
        own = manifest.pop("sha256", None)
        form, files = manifest["format"], manifest["files"]
        # Before format 2 manifests had no digest of their own.
        if form != FORMAT and (own == _own_digest(manifest) or (form == 1 and own is None)):
            raise UserError(
                f"{path}: a checkpoint of format {form}, this version reads {FORMAT}; resume with "
                "the version of latentddpm that wrote it, or start anew"
            )
        whole = own == _own_digest(manifest) and set(files) == {*FILES}
        if not whole or manifest["step"] != step_of(path):
            return f"{MANIFEST} is not of this checkpoint"
        entries = {name: FileEntry(**files[name]) for name in names}
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST}: {error}"
    for name, entry in entries.items():
        if not (path / name).is_file():
            return f"{name} is missing"
        if difference := entry.difference(path / name):
            return f"{name}: {difference}"
    return None


def _own_digest(manifest: dict[str, Any]) -> str:
    """Of the manifest's own content: a changed one is told from one of another format."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _checkpoints(folder: Path) -> list[Path]:
    """Newest first."""
    found = (path for path in folder.glob("step-*") if re.fullmatch(r"step-\d{8,}", path.name))
    return sorted(found, key=step_of, reverse=True)


def step_of(path: Path) -> int:
    """The step of a checkpoint, which its name says."""
    return int(path.name.removeprefix("step-"))


def _variables(trainer: Trainer) -> dict[str, keras.Variable]:
    """What training changes, by names that are stable from one process to the next."""
    return {
        f"{group}/{index}": variable
        for group, variables in trainer.checkpoint_groups().items()
        for index, variable in enumerate(variables)
        if not is_frozen(variable)
    }


def _state(trainer: Trainer) -> dict[str, np.ndarray]:
    return {
        name: np.asarray(keras.ops.convert_to_numpy(variable), order="C")
        for name, variable in _variables(trainer).items()
    }
