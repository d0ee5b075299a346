"""Control folder: a trained ControlNet with its manifest, checked before it is loaded.

    control.json     format version, the model it was trained for, what its pictures are, and the
                     file of the network with its size and digests
    control.keras    the network, `models.denoisers.control.ControlNet`

A run that trains a ControlNet writes it as `RUN/control`. Reading it needs no Keras.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentddpm.errors import UserError
from latentddpm.pipeline.recognise import CONTROL_MANIFEST, is_control, recognise
from latentddpm.utils.files import FileEntry, atomic_folder, read_arguments, write_json

if TYPE_CHECKING:
    from latentddpm.models.denoisers.control import ControlNet

FORMAT = 1
FOLDER = "control"
"""Name of the folder in a run."""
ARCHIVE = "control.keras"
NETWORK = "latentddpm>ControlNet"
"""Class of the network, as Keras registers it."""
ENTRY = {"file": str, "bytes": int, "sha256": str, "digest": str}


@dataclass(frozen=True)
class ControlFolder:
    """Control folder whose manifest was read and whose file exists.

    Attributes:
        path: of the folder.
        entry: of the network: its `file`, its size in `bytes`, the `sha256` of the file and the
            `digest` of the weights.
        base_model: name of the model that it was trained for; "" where it is not known.
        base_digest: digest of that model; "" where it is not known.
        condition: what its pictures are, as `conditions.control.ControlCondition` has it; empty
            where it is not known.
    """

    path: Path
    entry: Mapping[str, Any]
    base_model: str = ""
    base_digest: str = ""
    condition: Mapping[str, Any] | None = None

    @property
    def file(self) -> Path:
        """Archive of the network."""
        return self.path / self.entry["file"]

    def arguments(self) -> dict[str, Any]:
        """Arguments of the network.

        Raises:
            UserError: its file is no archive of a ControlNet.
        """
        return read_arguments(self.file, NETWORK)


def control_folder(path: str | Path) -> Path | None:
    """Folder of a ControlNet, or None where there is none.

    Args:
        path: of the folder, or of the run that trained it.
    """
    return next((one for one in (Path(path) / FOLDER, Path(path)) if is_control(one)), None)


def read_control_folder(path: str | Path, verify: bool = True) -> ControlFolder:
    """Read and check a control folder.

    Args:
        path: of the folder, or of the run that trained it.
        verify: compare the digest of its file too, not only the size.

    Raises:
        UserError: there is none; a malformed manifest; a missing or changed file.
    """
    path = Path(path)
    found = control_folder(path)
    if found is None:
        if not path.exists():
            raise UserError(f"{path}: no such folder of a ControlNet")
        thing = recognise(path)
        what = f"is {thing.what}, no ControlNet; {thing.advice}" if thing else "is no ControlNet"
        raise UserError(f"{path}: {what}")
    place = found / CONTROL_MANIFEST
    try:
        manifest = json.loads(place.read_text("utf-8"))
        if manifest["format"] != FORMAT:
            raise UserError(f"{place}: format {manifest['format']}, this version reads {FORMAT}")
        entry = dict(manifest["network"])
        for key, kind in ENTRY.items():
            if not isinstance(entry[key], kind):
                raise TypeError(f"network.{key}: {entry[key]!r:.80}")
        if Path(entry["file"]).name != entry["file"]:
            raise ValueError(f"network.file: {entry['file']!r:.80}")
        base = dict(manifest.get("base") or {})
        condition = manifest.get("condition")
        folder = ControlFolder(
            found,
            entry,
            str(base.get("model", "")),
            str(base.get("digest", "")),
            dict(condition) if condition else None,
        )
    except (ValueError, KeyError, TypeError) as error:
        reason = f"lacks {error}" if isinstance(error, KeyError) else error
        raise UserError(f"{place}: malformed ({reason})") from None
    whole = FileEntry(entry["bytes"], entry["sha256"])
    if not folder.file.is_file():
        raise UserError(f"{folder.file}: missing, but named in {CONTROL_MANIFEST}")
    if not whole.matches(folder.file, digest_limit=float("inf") if verify else 0):
        raise UserError(
            f"{folder.file}: is not the file {CONTROL_MANIFEST} describes (size or digest differs)"
        )
    return folder


def save_control(
    control: ControlNet,
    path: str | Path,
    version: str,
    *,
    storage: str = "float32",
    base: Mapping[str, str] | None = None,
    condition: Mapping[str, Any] | None = None,
) -> ControlFolder:
    """Write a control folder, whole or not at all.

    Args:
        control: the network.
        path: of the folder; one that is there is replaced.
        version: of latentddpm.
        storage: precision of the weights, "float32" or "float16".
        base: `model` and `digest` of the model that it was trained for; None if not known.
        condition: what its pictures are, see `ControlFolder`; None if not known.

    Returns:
        The folder, as it is read back.
    """
    from latentddpm.models.archive import save_archive, weights_digest

    path = Path(path)
    with atomic_folder(path) as staged:
        file = staged / ARCHIVE
        save_archive(control, file, storage)
        entry = FileEntry.of(file)
        network = {"file": file.name, "bytes": entry.bytes, "sha256": entry.sha256}
        manifest = {
            "format": FORMAT,
            "latentddpm": version,
            "network": {**network, "digest": weights_digest(control)},
            "base": dict(base) if base else None,
            "condition": dict(condition) if condition else None,
        }
        write_json(staged / CONTROL_MANIFEST, manifest)
    return read_control_folder(path)


def load_control(path: str | Path, precision: str = "float32") -> ControlNet:
    """ControlNet of a folder.

    Args:
        path: of the folder, or of the run that trained it.
        precision: see `models.archive.load_archive`.

    Raises:
        UserError: see `read_control_folder` and `models.archive.load_archive`.
    """
    from latentddpm.models.archive import load_archive
    from latentddpm.models.denoisers.control import ControlNet

    return load_archive(read_control_folder(path).file, ControlNet, precision=precision)
