"""Facts of a model folder that decide which settings it accepts, read without Keras.

They are in its manifest, and in the arguments of its networks, which each archive holds as JSON.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latentddpm.diffusion.schedules import schedule_from_config
from latentddpm.errors import UserError, check_type
from latentddpm.models.graph_networks import is_graph
from latentddpm.pipeline.model_folder import MANIFEST, ModelFolder, read_model_folder
from latentddpm.pipeline.settings import DEFAULTS, FIELDS, ModelFacts

MAX_CONFIG_BYTES = 1 << 20


def facts_of(folder: ModelFolder) -> ModelFacts:
    """Facts of the model in a folder, without loading its networks or importing Keras.

    Where the autoencoder's archive cannot be read, its downsample factor is None; loading the
    model names the error.

    Args:
        folder: of the model.

    Raises:
        UserError: a folder without a UNet, or a default of the wrong type in its manifest.
    """
    unet = _arguments(folder.file("unet"))
    own = 1
    if folder.first_stage != "none":
        own = _downsample_factor(_arguments(folder.file("vae")))
    total = (folder.schedule or {}).get("num_train_timesteps")
    for name, kind in FIELDS.items():
        value = folder.defaults.get(name)
        if value is not None:
            check_type(f"{folder.path / MANIFEST}: defaults: {name}", value, kind)
    return ModelFacts(
        defaults=({**DEFAULTS, **folder.defaults},),
        image_size=folder.image_size,
        has_text="text_encoder" in folder.parts,
        num_train_timesteps=total if type(total) is int else None,
        schedule=(folder.schedule or {}).get("kind", "ddpm"),
        size_multiple=own,
        downsample_factor=own,
        learned_variance=_learned_variance(unet),
        spatial_dims=(unet or {}).get("spatial_dims", 2),
        conditions=folder.conditions,
    )


# --- Autoguidance --------------------------------------------------------------------------------


def prediction_facts_of(model: Any) -> dict[str, Any]:
    """Facts that decide what a network's prediction means, by name: of which latents, told what.

    Args:
        model: a `LatentDiffusion` with a UNet; or its folder, whose networks are not loaded.
    """
    if isinstance(model, ModelFolder):
        autoencoder = model.parts.get("vae", {}).get("digest")
        schedule, has_text = (
            schedule_from_config(model.schedule or {}),
            "text_encoder" in model.parts,
        )
    else:
        autoencoder = _digest(model.networks["vae"])
        schedule, has_text = model.schedule, model.text_encoder is not None
    return {
        "autoencoder": autoencoder and autoencoder[:12],
        "channels": model.pixels.channels,
        "spatial_dims": model.pixels.spatial_dims,
        "schedule": schedule.kind,
        **schedule.get_config(),
        "has_text": has_text,
        "conditions": model.conditions.to_json(),
    }


def _digest(autoencoder: Any) -> str | None:
    """Digest of the weights of an autoencoder; None without one."""
    if autoencoder is None:
        return None
    if is_graph(autoencoder):
        archive = autoencoder.encoder.graph.archive
        return read_model_folder(archive.parent, verify=False).parts["vae"]["digest"]
    from latentddpm.models.archive import weights_digest

    return weights_digest(autoencoder)


def check_guide(own: Mapping[str, Any], others: Mapping[str, Any]) -> None:
    """Refuse a model for autoguidance that does not predict what the guided one predicts.

    Args:
        own: `prediction_facts_of` the model that is guided.
        others: those of the weaker one.

    Raises:
        UserError: naming the first that differs.
    """
    for name in dict.fromkeys([*own, *others]):
        if own.get(name) != others.get(name):
            raise UserError(
                f"autoguidance: the weaker model has {name} {others.get(name)!r:.80} and this one "
                f"{own.get(name)!r:.80}; expected one of the same latents, schedule and conditions"
            )


# --- Archives ------------------------------------------------------------------------------------


def _arguments(archive: Path) -> dict[str, Any] | None:
    """Arguments of a network, from its archive; None where they cannot be read."""
    try:
        with zipfile.ZipFile(archive) as members, members.open("config.json") as config:
            arguments = json.loads(config.read(MAX_CONFIG_BYTES))["config"]
    # RuntimeError: an encrypted member, an unknown compression, JSON nested without end.
    except (
        zipfile.BadZipFile,
        zlib.error,
        ValueError,
        LookupError,
        TypeError,
        OSError,
        EOFError,
        RuntimeError,
    ):
        return None
    return arguments if isinstance(arguments, dict) else None


def _learned_variance(arguments: dict[str, Any] | None) -> bool | None:
    return None if arguments is None else bool(arguments.get("learned_variance", False))


def _downsample_factor(arguments: dict[str, Any] | None) -> int | None:
    levels = (arguments or {}).get("channel_multipliers")
    return 2 ** (len(levels) - 1) if isinstance(levels, list) and levels else None
