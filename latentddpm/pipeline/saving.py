"""Saving of a model: a folder of archives with graphs and a manifest, whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import latentddpm
from latentddpm.choices import HALF
from latentddpm.errors import UserError
from latentddpm.graphs.entries import write_graphs
from latentddpm.graphs.networks import make_graphs
from latentddpm.models.archive import save_archive, weights_digest
from latentddpm.models.autoencoder.pixel_space import PixelSpace
from latentddpm.models.graph_networks import is_graph
from latentddpm.pipeline.model_folder import (
    FILES,
    MANIFEST,
    TOKENIZER,
    ModelFolder,
    describe_part,
    read_model_folder,
    write_manifest,
)
from latentddpm.utils.files import atomic_folder


def save_model(model: Any, folder: Path, storage: str = "float32") -> ModelFolder:
    """Write the folder of a model; see `LatentDiffusion.save`.

    Args:
        model: a `LatentDiffusion`.
        folder: to write.
        storage: "float32" or "float16".

    Raises:
        UserError: see `LatentDiffusion.save`.
    """
    if is_graph(model.unet):
        raise UserError("save: needs the model of LatentDiffusion.load(…, engine='keras')")
    if model.embeddings:
        raise UserError(
            f"save: {model.embeddings[0]['word']} came from {model.embeddings[0]['file']}; "
            "save the model as it is loaded, and keep that file beside it"
        )
    if model.precision in HALF:
        raise UserError(
            f"save: the weights are rounded to {model.precision}; needs the model of "
            "LatentDiffusion.load(…, precision='float32')"
        )
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MANIFEST).is_file():
        raise UserError(f"{folder}: holds other files and no {MANIFEST}; name a new folder")
    parts, of_pixels = model.networks, isinstance(model.autoencoder, PixelSpace)
    beside = {} if of_pixels else {"vae_digest": weights_digest(model.autoencoder)}
    with atomic_folder(folder) as staged:
        entries = {}
        for name, part in parts.items():
            if part is None:
                continue
            file = staged / FILES[name]
            save_archive(part, file, storage)
            extra = beside if name == "unet" else {}
            entries[name] = describe_part(file, weights_digest(part), **extra)
        write_graphs(staged, make_graphs(parts))
        if model.tokenizer is not None:
            model.tokenizer.save(staged / TOKENIZER)
        card = folder / "README.md"
        if card.is_file():
            (staged / card.name).write_bytes(card.read_bytes())
        write_manifest(
            staged,
            entries,
            model.schedule.get_config() if model.schedule else None,
            model.image_size,
            model.defaults if model.unet is not None else {},
            latentddpm.__version__,
            model.pixels,
            "none" if of_pixels else "autoencoder",
            model.conditions.to_json(),
        )
    return read_model_folder(folder)
