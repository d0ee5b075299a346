"""Checkpoints of a training run: everything that the next step depends on.

    checkpoints/step-00001000/
      state.safetensors   weights, optimizer state with the EMA and the loss scale
      run.json            command, resolved configuration, facts about the data (see `contract`)
      manifest.json       format, step, size and digest of each file, and its own digest

A checkpoint is written under a temporary name, the manifest last, flushed to the disk, and then
renamed. Older ones are deleted only after the new one verifies. A run resumes from the newest that
verifies. The position in the data is not stored: it follows from the step (see `data.random`).
Nothing in a checkpoint depends on the number of replicas or processes, so a run may go on with
another number. With several processes one writes and all read. Frozen weights that come from
files (under a LoRA, or of a CLIP text encoder) are left out: they are read from those files
again, and the contract holds their digest.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from latentddpm.errors import UserError
from latentddpm.training.run.contract import Contract
from latentddpm.utils.files import FileEntry, atomic_folder, atomic_path, write_json
from latentddpm.utils.stored_weights import check_finite

if TYPE_CHECKING:
    import keras

    from latentddpm.training.step.trainer import Trainer

FORMAT = 3
STATE = "state.safetensors"
RUN = "run.json"
MANIFEST = "manifest.json"
FILES = (STATE, RUN)


class NotFinite(ArithmeticError):
    """Error: weights or optimizer state hold NaN or infinity, which no checkpoint may."""


def save(folder: Path, trainer: Trainer, step: int, contract: Contract, keep: int = 2) -> Path:
    """Write a checkpoint, then delete older ones.

    Args:
        folder: of all checkpoints.
        trainer: compiled, with a built optimizer.
        step: optimizer steps so far.
        contract: of the run.
        keep: how many checkpoints stay, the new one included.

    Returns:
        The new checkpoint, `folder/step-XXXXXXXX`.

    Raises:
        NotFinite: a number is not finite; nothing is written or deleted.
        OSError: the disk is full, there is no permission, or the checkpoint does not read back as
            written; older ones stay.
    """
    path = folder / f"step-{step:08d}"
    state = _state(trainer)
    for name, array in state.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise NotFinite(f"{path}: not written, for {name} {array.shape} is not finite")
    for left in folder.glob(".tmp-step-*"):  # left by a process that was killed while writing
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
    # Later ones, damaged, from which a resume fell back, do not count.
    earlier = [old for old in _checkpoints(folder) if step_of(old) < step]
    for old in earlier[keep - 1 :]:
        shutil.rmtree(old)
    return path


def present(folder: Path) -> bool:
    """True where a folder holds any checkpoint, intact or damaged.

    Args:
        folder: of all checkpoints.
    """
    return bool(_checkpoints(folder))


def latest(folder: Path) -> Path | None:
    """Newest checkpoint that verifies; a warning names each damaged one that is newer.

    Args:
        folder: of all checkpoints.

    Returns:
        Its folder, or None where there is none.

    Raises:
        UserError: the newest has another format.
    """
    for path in _checkpoints(folder):
        problem = verify(path)
        if not problem:
            return path
        warnings.warn(f"{path.name} is damaged ({problem}); falling back", stacklevel=2)
    return None


def drop_after(folder: Path, step: int) -> None:
    """Delete the checkpoints of later steps, which training will write again.

    Args:
        folder: of all checkpoints.
        step: the last one whose checkpoint stays.
    """
    for path in _checkpoints(folder):
        if step_of(path) > step:
            shutil.rmtree(path)


def newest_contract(folder: Path) -> tuple[int, Contract] | None:
    """Step and contract of the newest checkpoint whose contract verifies; no weights are read.

    Args:
        folder: of all checkpoints.

    Returns:
        (step, contract), or None where there is none.

    Raises:
        UserError: the newest has another format.
    """
    for path in _checkpoints(folder):
        if not verify(path, (RUN,)):
            return step_of(path), read_contract(path)
    return None


def load_latest(folder: Path, trainer: Trainer) -> int:
    """Restore the newest checkpoint that verifies.

    Args:
        folder: of all checkpoints.
        trainer: compiled, with a built optimizer; it is changed.

    Returns:
        The checkpoint's step.

    Raises:
        UserError: there is none, or it has another format, or weights of other shapes.
    """
    path = latest(folder)
    if path is None:
        raise UserError(f"{folder}: holds no complete checkpoint to resume from")
    return restore(path, trainer)


def restore(path: Path, trainer: Trainer) -> int:
    """Restore one checkpoint into a trainer and its optimizer.

    Args:
        path: of a checkpoint that verifies.
        trainer: compiled, with a built optimizer; it is changed.

    Returns:
        The checkpoint's step.

    Raises:
        UserError: it has weights of other shapes, or numbers that are not finite.
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
    for name, array in state.items():  # all of them, before the first variable is changed
        check_finite(array, path / STATE, name)
    for name, variable in variables.items():
        variable.assign(state[name])
    return step_of(path)


def read_contract(path: Path) -> Contract:
    """Contract of a checkpoint.

    Args:
        path: of a checkpoint that verifies.
    """
    return Contract.parse((path / RUN).read_bytes())


def verify(path: Path, names: tuple[str, ...] = FILES) -> str | None:
    """Damage of a checkpoint, found by the sizes and digests of its files.

    Args:
        path: of the checkpoint.
        names: of the files to check, beside the manifest.

    Returns:
        A description of the damage, or None where there is none.

    Raises:
        UserError: it is intact, but has another format.
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
    """Digest of the manifest itself, to tell a damaged manifest from one of another format."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _checkpoints(folder: Path) -> list[Path]:
    """Checkpoints in a folder, the newest first."""
    found = (path for path in folder.glob("step-*") if re.fullmatch(r"step-\d{8,}", path.name))
    return sorted(found, key=step_of, reverse=True)


def step_of(path: Path) -> int:
    """Step of a checkpoint.

    Args:
        path: of the checkpoint, whose name holds the step.
    """
    return int(path.name.removeprefix("step-"))


def _variables(trainer: Trainer) -> dict[str, keras.Variable]:
    """Variables that training changes, by names that are the same in every process."""
    from latentddpm.models.functional import is_frozen

    return {
        f"{group}/{index}": variable
        for group, variables in trainer.checkpoint_groups().items()
        for index, variable in enumerate(variables)
        if not is_frozen(variable)
    }


def _state(trainer: Trainer) -> dict[str, np.ndarray]:
    import keras

    return {
        name: np.asarray(keras.ops.convert_to_numpy(variable), order="C")
        for name, variable in _variables(trainer).items()
    }
