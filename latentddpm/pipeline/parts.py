"""Parts of a model, read from a folder that may lack some.

`LatentDiffusion.load` is for models that generate. Conversion and export also take the folder of
an autoencoder alone (a `train-vae` run), or of a UNet alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from latentddpm.models.archive import load_archive
from latentddpm.models.autoencoder.autoencoder import Autoencoder
from latentddpm.models.denoisers.kinds import KINDS
from latentddpm.pipeline.latent_diffusion import LatentDiffusion
from latentddpm.pipeline.model_folder import read_model_folder


def load_parts(folder: str | Path) -> LatentDiffusion:
    """Model of a folder, which may hold a single network; the others are None.

    Args:
        folder: a model folder, a finished run, or the name of a model that ships.

    Raises:
        UserError: see `model_folder.read_model_folder`.
    """
    found = read_model_folder(folder)
    if "unet" in found.parts and ("vae" in found.parts or found.first_stage == "none"):
        return LatentDiffusion.load(folder)
    parts: dict[str, Any] = {
        name: load_archive(found.file(name), *kinds) if name in found.parts else None
        for name, kinds in (("vae", (Autoencoder,)), ("unet", KINDS.values()))
    }
    return LatentDiffusion(
        parts["vae"],
        parts["unet"],
        None,
        image_size=found.image_size,
        digest=found.digest,
        pixels=found.pixels,
        conditions=found.conditions,
    )
