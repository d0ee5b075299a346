"""Weights of a network, read and written one tensor at a time with a weight map.

There is never a second copy of all weights in memory. A network is filled variable by variable
from memory-mapped files. It is written tensor by tensor, after a header that is known beforehand.
The file is safetensors: eight bytes with the length of the header, a header in JSON with type,
shape and offsets of each tensor, then the tensors one after the other.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from tqdm import tqdm

from latentddpm.errors import UserError, check_choice
from latentddpm.interop.diffusers.weight_map import TensorMapping, to_ours, to_theirs
from latentddpm.interop.tensors import Tensors, check_dtype
from latentddpm.models.archive import STORAGE
from latentddpm.models.functional import FunctionalModel
from latentddpm.utils.files import atomic_path

ALIGNMENT = 8
MAX_NAMED = 3


def match(
    rows: Iterable[TensorMapping], tensors: Tensors, source: str
) -> list[tuple[TensorMapping, str]]:
    """Match a weight map with tensors.

    Args:
        rows: of the weight map.
        tensors: of a file.
        source: configuration that the weight map is from, for messages.

    Returns:
        Each row with its name in `tensors`.

    Raises:
        UserError: a tensor is missing, has another shape or a type that is not a float, or is not
            in the weight map.
    """
    names = set(tensors.keys())
    found = []
    for row in rows:
        key = next((key for key in (row.key, row.old_key) if key in names), None)
        if key is None:
            raise UserError(f"{tensors.name}: no tensor {row.key!r}, which {source} asks for")
        if tensors.shape(key) != row.shape:
            raise UserError(
                f"{tensors.name}: {key!r} is {tensors.shape(key)}, {source} makes it "
                f"{str(row.shape)[:80]}"
            )
        check_dtype(tensors, key)
        names.remove(key)
        found.append((row, key))
    if names:
        named = ", ".join(map(repr, sorted(names)[:MAX_NAMED]))
        raise UserError(
            f"{tensors.name}: {source} asks for no such tensor: {named}"
            + (f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else "")
        )
    return found


def fill(
    model: keras.Model,
    matched: Sequence[tuple[TensorMapping, str]],
    tensors: Tensors,
    label: str,
    quiet: bool = False,
) -> None:
    """Fill the variables of a model with tensors, as float32.

    Args:
        model: to fill.
        matched: of `match`.
        tensors: of a file.
        label: of the progress bar.
        quiet: show no progress bar.
    """
    with _bar(label, matched, quiet) as bar:
        for row, key in matched:
            array = to_ours(tensors.read(key), row.layout)
            variable(model, row.path).assign(np.ascontiguousarray(array, "float32"))
            bar.update(array.size)


def write(
    model: keras.Model,
    rows: Iterable[TensorMapping],
    path: Path,
    label: str,
    storage: str = "float32",
    quiet: bool = False,
) -> None:
    """Write the variables of a model to a safetensors file, atomically.

    Args:
        model: to write.
        rows: of its weight map.
        path: of the file.
        label: of the progress bar.
        storage: "float32", or "float16" for half the size.
        quiet: show no progress bar.

    Raises:
        UserError: another `storage`, a weight that is too large for it, or a network that
            diffusers has none like.
        OSError: the file cannot be written.
    """
    dtype = np.dtype(check_choice("storage", storage, STORAGE))
    rows = list(rows)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for row in rows:
        start, end = end, end + int(np.prod(row.shape)) * dtype.itemsize
        header[row.key] = {
            "dtype": {"float32": "F32", "float16": "F16"}[storage],
            "shape": list(row.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    with (
        atomic_path(path) as temporary,
        open(temporary, "wb") as file,
        _bar(label, [(row, row.key) for row in rows], quiet) as bar,
    ):
        file.write(struct.pack("<Q", len(text)) + text)
        for row in rows:
            array = keras.ops.convert_to_numpy(variable(model, row.path))
            stored = np.ascontiguousarray(to_theirs(_stored(array, dtype, row.path), row.layout))
            if stored.shape != row.shape:
                raise UserError(
                    f"{row.path}: has the shape {stored.shape}, and diffusers' {row.key} "
                    f"{row.shape}: it has no network with these settings"
                )
            file.write(stored.data)
            bar.update(array.size)


def variable(model: keras.Model, path: str) -> keras.Variable:
    """Variable, or layer, of a `model` at a `path` of a weight map."""
    found: Any = model
    for name in path.split("/"):
        if isinstance(found, FunctionalModel):
            found = found.get_layer(name)
        else:
            found = getattr(found, name)
    return found


def _stored(array: np.ndarray, dtype: np.dtype, path: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        stored = array.astype(dtype)
    if not np.array_equal(np.isfinite(stored), np.isfinite(array)):
        largest = np.abs(array[np.isfinite(array)]).max()
        raise UserError(f"{path}: {largest:.4g} is too large for {dtype}; store it in float32")
    return stored


def _bar(label: str, matched: Sequence[tuple[TensorMapping, str]], quiet: bool) -> tqdm:
    total = sum(int(np.prod(row.shape)) for row, _ in matched)
    return tqdm(total=total, desc=label, unit="parameter", unit_scale=True, disable=quiet, delay=1)
