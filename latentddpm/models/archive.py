"""Archives (`.keras`) of networks: written in full or half precision, read with safety checks.

Half precision concerns only the stored weights: Keras reads float16 arrays into the float32
variables of the model it builds. Archives with the same digest contain the same network.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import shutil
import tempfile
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np

from latentddpm.choices import HALF, PRECISIONS, STORAGE
from latentddpm.errors import UserError, check_choice, one_line
from latentddpm.models.functional import rebuild
from latentddpm.utils.files import WEIGHTS, atomic_path, open_archive, read_arguments
from latentddpm.utils.machine.memory import TooManyWeights, blank_weights, weight_limit
from latentddpm.utils.stored_weights import StoredWeights, check_finite, open_weights


def save_archive(model: keras.Model, path: str | Path, storage: str = "float32") -> None:
    """Write a network as a `.keras` archive, atomically, without its optimizer.

    Args:
        model: the network.
        path: of the archive.
        storage: precision of the stored weights, "float32" or "float16".

    Raises:
        UserError: another `storage`.
        OSError: the archive cannot be written.
    """
    check_choice("storage", storage, STORAGE)
    if model.compiled:
        model = rebuild(model)  # without what `compile` added, such as the optimizer's moments
    with atomic_path(path) as temporary:
        model.save(temporary)
        if storage == "float16":
            _halve(temporary)


def load_archive(
    path: str | Path, *kinds: type[keras.Model], precision: str = "float32"
) -> keras.Model:
    """Network in a `.keras` archive, loaded in safe mode.

    Args:
        path: of the archive.
        kinds: class of the network, or the classes that it may have.
        precision: to compute and to hold the weights in, one of `choices.PRECISIONS`; each is
            rounded as it is read.

    Raises:
        UserError: no such file, not an archive of Keras, one of another class, with weights that
            are not finite or too large for the precision; or an unknown precision.
    """
    check_choice("precision", precision, PRECISIONS)
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    read_config(path, *kinds)
    with open_weights(path) as stored:
        model = _build(path, stored, precision)
        for variable, name in zip(model.weights, weight_paths(model), strict=True):
            values = stored[name]
            if values.shape != tuple(variable.shape):
                raise UserError(
                    f"{path}: cannot be loaded: {variable.path} has the shape {values.shape}; its "
                    f"arguments make {tuple(variable.shape)}"
                )
            check_finite(values, path, variable.path)
            with np.errstate(over="ignore"):
                variable.assign(values)
            if variable.dtype == "float16":
                _check_held(variable, path)
    return model


def _check_held(variable: keras.Variable, path: Path) -> None:
    """Refuse a weight that was finite in its file and is too large for float16."""
    if not np.isfinite(keras.ops.convert_to_numpy(variable)).all():
        raise UserError(
            f"{path}: {variable.path!r} holds numbers beyond 65,504, too large for float16; "
            "expected bfloat16 or float32"
        )


def _build(path: Path, stored: StoredWeights, precision: str) -> keras.Model:
    """Network of the arguments in an archive, as `keras.saving.load_model` makes it, blank."""
    with open_archive(path) as archive:
        config = json.loads(archive.read("config.json"))
    if precision in HALF:
        config["config"]["dtype"] = precision
    try:
        with blank_weights(), weight_limit(stored.size):
            config["compile_config"] = None
            return keras.saving.deserialize_keras_object(config, safe_mode=True)
    except TooManyWeights:
        raise UserError(
            f"{path}: its arguments make a network of more parameters than its "
            f"{stored.size:,} weights; refused"
        ) from None
    except Exception as error:
        raise UserError(f"{path}: cannot be loaded: {one_line(error, 300)}") from error


def check_weights(model: keras.Model, path: str | Path) -> None:
    """Check that all weights of a network are finite.

    Args:
        model: the network.
        path: of the file that its weights are from.

    Raises:
        UserError: a weight is NaN or infinite; the message names its variable.
    """
    for variable in model.weights:
        check_finite(keras.ops.convert_to_numpy(variable), path, variable.path)


def read_config(path: str | Path, *kinds: type[keras.Model]) -> dict[str, Any]:
    """Arguments of the network in an archive, read without building it.

    Args:
        path: of the archive.
        kinds: class of the network, or the classes that it may have.

    Raises:
        UserError: it is not an archive of one of them.
    """
    return read_arguments(path, *map(keras.saving.get_registered_name, kinds))


def _halve(path: Path) -> None:
    """Convert the float32 weights of an archive to float16, and compress it."""
    # In files, so that one tensor at a time is in memory.
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        whole, half = Path(folder, "whole.h5"), Path(folder, "half.h5")
        with zipfile.ZipFile(path) as archive:
            others = {name: archive.read(name) for name in archive.namelist() if name != WEIGHTS}
            with archive.open(WEIGHTS) as member, open(whole, "wb") as file:
                shutil.copyfileobj(member, file)
        with h5py.File(whole) as source, h5py.File(half, "w") as target:

            def copy(name: str, item: h5py.Group | h5py.Dataset) -> None:
                if isinstance(item, h5py.Dataset):
                    values = item[...]
                    if values.dtype == np.float32:
                        values = values.astype(np.float16)
                    made = target.create_dataset(name, data=values)
                else:
                    made = target.require_group(name)
                made.attrs.update(item.attrs)

            target.attrs.update(source.attrs)
            source.visititems(copy)
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in others.items():
                archive.writestr(name, data)
            archive.write(half, WEIGHTS)


def weights_digest(model: keras.Model) -> str:
    """SHA-256 of the configuration and the weights of `model`, in hexadecimal.

    Weights are rounded to float16, so that storing a model in half precision does not change its
    digest. Names of layers and the dtype policy do not change it either.
    """
    config = {k: v for k, v in model.get_config().items() if k not in ("name", "dtype")}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for variable in model.weights:
        digest.update(np.ascontiguousarray(keras.ops.convert_to_numpy(variable), np.float16))
    return digest.hexdigest()


# --- Names of weights in archives ---------------------------------------------------------------


def weight_paths(model: keras.Model) -> list[str]:
    """Names under which archives store the weights of a network, in the order of `model.weights`.

    A name is the path of the weight's dataset in `model.weights.h5`, such as
    `layers/resnet_block/conv1/conv/vars/0`. Keras goes from attribute to attribute, in
    alphabetical order, and names a layer by the first way to it; in a functional model its list of
    layers comes first. Layers in a list are named after their classes and counted. This does the
    same, but looks only at attributes that can hold layers.

    Args:
        model: the network.

    Raises:
        ValueError: no public attribute leads to a weight.
    """
    names: dict[int, str] = {}
    seen: set[int] = set()

    def visit(item: Any, path: str) -> None:
        if not isinstance(item, keras.Layer | list | tuple | dict) or id(item) in seen:
            return
        seen.add(id(item))
        if isinstance(item, keras.Layer):
            own: dict[str, Any] = {}
            item.save_own_variables(own)
            names.update((id(one), f"{path}vars/{place}") for place, one in own.items())
            for name in _attributes(item):
                visit(getattr(item, name, None), f"{path}{name}/")
            return
        counts: Counter[str] = Counter()
        for one in item.values() if isinstance(item, dict) else item:
            kind = _snake_case(type(one).__name__) if isinstance(one, keras.Layer) else "container"
            visit(one, f"{path}{kind}_{counts[kind]}/" if counts[kind] else f"{path}{kind}/")
            counts[kind] += isinstance(one, keras.Layer | list | tuple | dict)

    visit(model, "")
    lost = [variable.path for variable in model.weights if id(variable) not in names]
    if lost:
        raise ValueError(f"{model.name}: no public attribute leads to {lost[0]!r}")
    return [names[id(variable)] for variable in model.weights]


def _attributes(layer: keras.Layer) -> list[str]:
    """Public attributes of a layer beyond those of every layer, in Keras's order."""
    names = {name for name in vars(layer) if not name.startswith("_")} | _properties(type(layer))
    first = ["layers"] if isinstance(layer, keras.Model) and hasattr(layer, "inputs") else []
    return first + sorted(names - _of_every_layer())


@functools.cache
def _properties(kind: type[keras.Layer]) -> frozenset[str]:
    return frozenset(
        name
        for parent in kind.__mro__
        for name, value in vars(parent).items()
        if isinstance(value, property) and not name.startswith("_")
    )


@functools.cache
def _of_every_layer() -> frozenset[str]:
    return frozenset(dir(keras.Layer()))


def _snake_case(name: str) -> str:
    """`GroupNormalization` as `group_normalization`, as Keras does it."""
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()
