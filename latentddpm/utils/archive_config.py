"""Arguments of the network in a `.keras` archive, read without Keras.

An archive is a zip file of metadata.json, config.json and model.weights.h5. config.json names the
class of the network and holds its arguments.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from pathlib import Path
from typing import Any

from latentddpm.errors import UserError, one_line

WEIGHTS = "model.weights.h5"
MEMBERS = {"metadata.json", "config.json", WEIGHTS}
MAX_CONFIG_BYTES = 1 << 20
MAX_EXPANSION = 200
"""Largest ratio of sizes after and before decompression; only a zip bomb compresses more."""

AUTOENCODER, UNET, TEXT_ENCODER = (
    f"latentddpm>{name}" for name in ("Autoencoder", "UNet", "TextEncoder")
)
"""Names under which Keras knows the networks of a model folder."""


def read_arguments(path: str | Path, name: str) -> dict[str, Any]:
    """Arguments of the network in an archive.

    Args:
        path: of the archive.
        name: of the network's class, as Keras registers it.

    Raises:
        UserError: it is not an archive of such a network.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename: info for info in archive.infolist()}
            unknown = sorted(set(members) - MEMBERS)
            if unknown or set(members) != MEMBERS:
                odd = unknown or sorted(MEMBERS - set(members))
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
    found = None
    if isinstance(config, dict):
        found = config.get("registered_name") or config.get("class_name")
    if found != name:
        raise UserError(f"{path}: holds {str(found)[:100]!r}, expected {name!r}")
    if not isinstance(config.get("config"), dict):
        raise UserError(f"{path}: not a .keras archive: config.json lacks its arguments")
    return config["config"]
