"""Weaker model of autoguidance as `--autoguidance` names it: `MODEL`, or `MODEL:SCALE`.

MODEL is a model folder, a finished run, or the name of a model that ships. The metadata of a PNG
holds its name and digest, and the scale. `--from` looks for it under that name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentddpm.choices import AUTO
from latentddpm.diffusion.options import check_guidance_scale
from latentddpm.engines.networks import choose_engine
from latentddpm.errors import UserError
from latentddpm.generation.loras import split_scale
from latentddpm.generation.provenance import model_name, remembered_place
from latentddpm.pipeline.model_facts import check_guide, prediction_facts_of
from latentddpm.pipeline.model_folder import ModelFolder, read_model_folder
from latentddpm.pipeline.told.guided import AUTOGUIDANCE_SCALE


@dataclass(frozen=True)
class WeakerModel:
    """Weaker model that exists and predicts what the guided one does, and the scale.

    Attributes:
        folder: of the weaker model.
        scale: w, at least 0; 1 is no guidance.
    """

    folder: ModelFolder
    scale: float

    def to_json(self) -> dict[str, Any]:
        """Entry in the metadata of a PNG."""
        name, digest = model_name(self.folder), self.folder.digest
        return {"model": name, "digest": digest, "scale": self.scale}


def read_weaker(
    option: str | None, source: Path | None, remembered: Mapping[str, Any], folder: ModelFolder
) -> WeakerModel | None:
    """Weaker model of the option `--autoguidance`, else the one that a PNG was made with.

    Args:
        option: `MODEL` or `MODEL:SCALE`; None if not given. Without a scale it is that of the
            PNG, else 2.
        source: the PNG; None for none.
        remembered: its metadata, of which `autoguidance` is used.
        folder: of the model that is guided.

    Returns:
        None without autoguidance.

    Raises:
        UserError: no such model, one that predicts something else, or another one than that of
            the PNG; or a scale that is none.
    """
    trace = _checked(source, remembered.get("autoguidance"))
    if option is not None:
        default = trace["scale"] if trace else AUTOGUIDANCE_SCALE
        path, scale = split_scale("--autoguidance", option, "MODEL", default)
        weaker = read_model_folder(path, verify=False)
    elif trace:
        weaker, scale = _remembered(source, trace), trace["scale"]
    else:
        return None
    check_guidance_scale(scale, f"--autoguidance {option or source}")
    weaker.file("unet")
    check_guide(prediction_facts_of(folder), prediction_facts_of(weaker))
    return WeakerModel(weaker, scale)


def engine_of_both(
    engine: str, given: str | None, weaker: WeakerModel, precision: str = AUTO
) -> str:
    """Engine that computes the networks of both models.

    Args:
        engine: of the model that is guided.
        given: on the command line; None for none.
        weaker: the other model.
        precision: see `devices.precision_of`.

    Raises:
        UserError: it was given, and cannot compute the weaker model.
    """
    if engine == "keras":
        return engine
    try:
        return choose_engine(engine, weaker.folder, precision)
    except UserError:
        if given == engine:
            raise
        return "keras"


def _checked(source: Path | None, trace: Any) -> dict[str, Any] | None:
    """Entry of a PNG with the types that it needs: anyone can write a PNG."""
    if not trace:
        return None
    try:
        name, digest, scale = str(trace["model"]), str(trace["digest"]), float(trace["scale"])
    except (TypeError, KeyError, ValueError):
        raise UserError(f"{source}: its metadata has autoguidance: {trace!r:.100}") from None
    return {"model": name, "digest": digest, "scale": scale}


def _remembered(source: Path | None, trace: Mapping[str, Any]) -> ModelFolder:
    """Folder of the weaker model that a PNG names."""
    name, digest = trace["model"], trace["digest"]
    place = remembered_place(source, name, "--autoguidance")
    found = None
    try:
        found = read_model_folder(place, verify=False)
    except UserError as error:
        there = f"cannot be read ({error})"
    else:
        there = f"is {found.digest}"
    if found is None or found.digest != digest:
        raise UserError(
            f"{source}: was guided by the model {digest}, and {name} {there}; give its own with "
            f"--autoguidance MODEL:{trace['scale']:g}"
        )
    return found
