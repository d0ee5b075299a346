"""Archives (`.keras`) of our networks: written whole, in full or half precision; read with care.

Half precision is a matter of storage only: Keras reads float16 arrays into the float32
variables of the model it builds. Two archives with the same digest hold the same network.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np

from latentddpm.errors import UserError, check_choice, one_line
from latentddpm.models.functional import remade
from latentddpm.models.layers import blank_weights
from latentddpm.utils.files import atomic_path
from latentddpm.utils.memory import TooManyWeights, weight_limit

STORAGE = ("float32", "float16")
WEIGHTS = "model.weights.h5"
MEMBERS = {"metadata.json", "config.json", WEIGHTS}
MAX_CONFIG_BYTES = 1 << 20
# Deflate cannot shrink weights much; an archive that grows more than this is a bomb.
MAX_EXPANSION = 200
SMALLEST_NUMBER = 2  # bytes: weights are stored in float32 or float16


def save_archive(model: keras.Model, path: str | Path, storage: str = "float32") -> None:
    """Write `model` as a `.keras` archive, atomically, weights in `storage` precision."""
    check_choice("storage", storage, STORAGE)
    if model.compiled:
        model = remade(model)  # nothing of a training setup, such as an optimizer's moments
    with atomic_path(path) as temporary:
        model.save(temporary)
        if storage == "float16":
            _halve(temporary)


def load_archive(path: str | Path, kind: type[keras.Model]) -> keras.Model:
    """Read a `.keras` archive that must hold a `kind`, in safe mode.

    Raises:
        UserError: no such file, not an archive of Keras, or of another class.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    read_config(path, kind)
    with zipfile.ZipFile(path) as archive:
        stored = archive.getinfo(WEIGHTS).file_size
    try:
        with blank_weights(), weight_limit(stored // SMALLEST_NUMBER):
            return keras.saving.load_model(path, compile=False, safe_mode=True)
    except TooManyWeights:
        raise UserError(
            f"{path}: its arguments make a network of more parameters than its {stored:,} bytes "
            "of weights can be; refused"
        ) from None
    except Exception as error:
        raise UserError(f"{path}: cannot be loaded: {one_line(error, 300)}") from error


def read_config(path: str | Path, kind: type[keras.Model]) -> dict[str, Any]:
    """The constructor arguments in an archive, without building the network.

    Raises:
        UserError: not an archive of a `kind`.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename: info for info in archive.infolist()}
            strangers = sorted(set(members) - MEMBERS)
            if strangers or set(members) != MEMBERS:
                odd = strangers or sorted(MEMBERS - set(members))
                raise UserError(f"{path}: not a .keras archive of a network ({odd[0]!r})")
            size = sum(info.file_size for info in members.values())
            if size > MAX_EXPANSION * path.stat().st_size:
                raise UserError(f"{path}: expands to {size:,} bytes; refused")
            if members["config.json"].file_size > MAX_CONFIG_BYTES:
                raise UserError(f"{path}: config.json is too large; refused")
            config = json.loads(archive.read("config.json"))
    except UserError:
        raise
    # RuntimeError: an encrypted member, an unknown compression, JSON nested without end.
    except (zipfile.BadZipFile, zlib.error, ValueError, OSError, EOFError, RuntimeError) as error:
        raise UserError(f"{path}: not a .keras archive: {one_line(error, 300)}") from None
    expected = keras.saving.get_registered_name(kind)
    found = None
    if isinstance(config, dict):
        found = config.get("registered_name") or config.get("class_name")
    if found != expected:
        raise UserError(f"{path}: holds {str(found)[:100]!r}, expected {expected!r}")
    if not isinstance(config.get("config"), dict):
        raise UserError(f"{path}: not a .keras archive: config.json lacks its arguments")
    return config["config"]


def _halve(path: Path) -> None:
    """Rewrite an archive with its float32 weights as compressed float16."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:  # one tensor in memory at a time
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
    """SHA-256 over a model's configuration and weights, in hexadecimal.

    Weights count at float16 precision, so that a model keeps its digest when it is stored in
    half precision; names of layers and the dtype policy do not count.
    """
    config = {k: v for k, v in model.get_config().items() if k not in ("name", "dtype")}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for variable in model.weights:
        digest.update(np.asarray(keras.ops.convert_to_numpy(variable), np.float16).tobytes())
    return digest.hexdigest()
