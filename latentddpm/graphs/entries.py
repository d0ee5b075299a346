"""Entries of graphs in `pipeline.json`: written, and read again without Keras.

    "graphs": {"unet": {"file": "graphs/unet.onnx", "bytes": 81237, "sha256": "…",
                        "part": "unet", "config": "…"}, …}

A graph belongs to the arguments of its network: `config` is their digest, without those that do
not change what the network computes from its weights. A graph whose file or digest is another is
not used. It is never an error, because Keras computes the same without a graph.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from latentddpm.errors import UserError
from latentddpm.utils.files import (
    AUTOENCODER,
    DENOISERS,
    TEXT_ENCODER,
    FileEntry,
    atomic_folder,
    read_network,
)

FOLDER = "graphs"
SUFFIX = ".onnx"
VERSION = 1
"""Version of the inputs, outputs and names of weights of a graph; part of its digest."""

PARTS = {"encoder": "vae", "decoder": "vae", "unet": "unet", "text_encoder": "text_encoder"}
"""Name of each graph → part of the model whose archive has its weights."""
WITHOUT = {
    *("name", "dtype", "trainable", "dropout", "recompute", "zero_init"),
    *("scaling_factor", "shift_factor", "latent_statistics"),
}
"""Arguments of networks that are not in a graph."""


def config_digest(archive: str | Path) -> str:
    """Digest of those arguments of a network that its graphs depend on.

    Args:
        archive: `.keras` file of the network.

    Raises:
        UserError: it is not an archive of a network of a model folder.
    """
    kind, arguments = read_network(archive, AUTOENCODER, TEXT_ENCODER, *DENOISERS)
    own = {key: value for key, value in arguments.items() if key not in WITHOUT}
    return hashlib.sha256(json.dumps([VERSION, kind, own], sort_keys=True).encode()).hexdigest()


def write_graphs(
    folder: Path,
    files: Mapping[str, bytes],
    check: Callable[[str, Path], None] = lambda name, file: None,
) -> None:
    """Write graphs into a model folder, in place of those that it has.

    Its manifest is written later; until then it describes none of them, so none is used.

    Args:
        folder: of the model.
        files: name of each graph → its file, of `networks.make_graphs`.
        check: called with the name and the file of each graph; where it raises, none is written.
    """
    if files:
        with atomic_folder(folder / FOLDER) as staged:
            for name, data in files.items():
                file = staged / Path(file_of(name)).name
                file.write_bytes(data)
                check(name, file)


def file_of(name: str) -> str:
    """File of a graph, relative to the model folder.

    Args:
        name: a key of `PARTS`.
    """
    return f"{FOLDER}/{name}{SUFFIX}"


def describe_graphs(folder: Path, parts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Entries of the graphs that lie in a model folder, for its manifest.

    Args:
        folder: of the model.
        parts: of the model by name, each with its `file`.
    """
    return {
        name: {
            "file": file_of(name),
            **asdict(FileEntry.of(folder / file_of(name))),
            "part": part,
            "config": config_digest(folder / parts[part]["file"]),
        }
        for name, part in PARTS.items()
        if part in parts and (folder / file_of(name)).is_file()
    }


def find_graph(
    folder: Path, entries: Any, parts: Mapping[str, Mapping[str, Any]], name: str
) -> Path | None:
    """File of a graph; None where it is missing, damaged, or of other arguments than the archive.

    Args:
        folder: of the model.
        entries: `graphs` of its manifest.
        parts: of the model by name, each with its `file`.
        name: a key of `PARTS`.
    """
    entry = entries.get(name) if isinstance(entries, dict) else None
    part = PARTS[name]
    if not isinstance(entry, dict) or entry.get("file") != file_of(name) or part not in parts:
        return None
    file = folder / file_of(name)
    try:
        whole = FileEntry(entry.get("bytes"), entry.get("sha256")).matches(file)
        own = whole and entry.get("config") == config_digest(folder / parts[part]["file"])
    except (OSError, UserError):
        return None
    return file if own else None
