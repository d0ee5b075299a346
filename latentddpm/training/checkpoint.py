"""Checkpoints of a training run: everything that the next step depends on.

A checkpoint is a folder `checkpoints/step-00001000/` with `state.safetensors` (weights,
optimizer, moving averages) and, written last, `manifest.json` with the size and digest of
each file. It is staged under another name and renamed when complete; older ones go only
after the new one verifies. The position in the data is not stored: it follows from the step
(see `data.draws`).
"""

from __future__ import annotations

import json
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import keras
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from latentddpm.errors import UserError
from latentddpm.files import atomic_folder, file_digest, write_json

STATE = "state.safetensors"
MANIFEST = "manifest.json"


def save(folder: Path, model: keras.Model, step: int, keep: int = 2) -> Path:
    """Write the checkpoint of `step` below `folder`, then drop all but the newest `keep`."""
    path = folder / f"step-{step:08d}"
    with atomic_folder(path) as staged:
        try:
            save_file(_state(model), staged / STATE)
        except SafetensorError as error:
            raise OSError(f"{path}: {error}") from None
        files = {STATE: _entry(staged / STATE)}
        write_json(staged / MANIFEST, {"format": 1, "step": step, "files": files})
    problem = verify(path)
    if problem:
        raise OSError(f"{path}: does not read back as written: {problem}")
    # Only earlier ones: a damaged later one, from which a resume fell back, takes no place.
    earlier = [old for old in _checkpoints(folder) if _step(old) < step]
    for old in earlier[keep - 1 :]:
        shutil.rmtree(old)
    return path


def load_latest(folder: Path, model: keras.Model) -> int:
    """Restore the newest checkpoint that verifies; returns its step.

    Raises:
        UserError: there is none, or it belongs to a model of other shapes.
    """
    for path in _checkpoints(folder):
        problem = verify(path)
        if problem:
            warnings.warn(f"{path.name} is damaged ({problem}); falling back", stacklevel=2)
            continue
        _restore(model, load_file(path / STATE), path)
        return _step(path)
    raise UserError(f"{folder}: holds no complete checkpoint to resume from")


def verify(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        manifest = json.loads((path / MANIFEST).read_text("utf-8"))
        files = manifest["files"]
        if (manifest["format"], manifest["step"], set(files)) != (1, _step(path), {STATE}):
            return f"{MANIFEST} is not of this checkpoint"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{MANIFEST}: {error}"
    for name, entry in files.items():
        if not (path / name).is_file():
            return f"{name} is missing"
        if _entry(path / name) != entry:
            return f"{name} does not match its digest"
    return None


def _entry(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": file_digest(path)}


def _checkpoints(folder: Path) -> list[Path]:
    """Newest first."""
    found = (path for path in folder.glob("step-*") if re.fullmatch(r"step-\d{8,}", path.name))
    return sorted(found, key=_step, reverse=True)


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _variables(model: keras.Model) -> dict[str, keras.Variable]:
    """Every variable by a name that is stable from one process to the next."""
    groups = {"model": model.variables, "optimizer": model.optimizer.variables}
    return {
        f"{group}/{index}": variable
        for group, variables in groups.items()
        for index, variable in enumerate(variables)
    }


def _state(model: keras.Model) -> dict[str, np.ndarray]:
    return {
        name: np.asarray(keras.ops.convert_to_numpy(variable), order="C")
        for name, variable in _variables(model).items()
    }


def _restore(model: keras.Model, state: dict[str, np.ndarray], path: Path) -> None:
    variables = _variables(model)
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
