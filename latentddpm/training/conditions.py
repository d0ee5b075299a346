"""Conditions of a run: what its configuration and its data say that the network is told.

    conditions: {digit: {kind: class}}  ─► words of the data ─► condition, and a source of examples

A run that starts from a model keeps the words and ranges of its conditions, and may add others.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from latentddpm.choices import CONDITIONAL
from latentddpm.conditions.base import VectorCondition
from latentddpm.conditions.conditions import Conditions
from latentddpm.conditions.control import ControlCondition
from latentddpm.conditions.kinds import KINDS
from latentddpm.conditions.picture import Stage
from latentddpm.config import AutoencoderRun, ConditionConfig, DataConfig, DiffusionRun
from latentddpm.data.conditions.augmented import (
    AugmentedCatalog,
    ChangesTold,
    augmented_images,
    changes_condition,
)
from latentddpm.data.conditions.pictures import Frame, Maps, PlannedMaps, check_maps, plan_maps
from latentddpm.data.conditions.rows import ConditionRows, read_rows
from latentddpm.data.dataset import Dataset
from latentddpm.data.sources.metadata import FOLDER
from latentddpm.data.sources.walk import Second
from latentddpm.errors import UserError
from latentddpm.pipeline.model_folder import ModelFolder
from latentddpm.utils.images.pixel_format import PixelFormat

if TYPE_CHECKING:
    from latentddpm.training.plan.first_stage import FirstStage
    from latentddpm.training.run.run import Run


def inherit_conditions(config: DiffusionRun, base: ModelFolder | None) -> DiffusionRun:
    """Configuration of a run, with the kinds of its model's conditions.

    Args:
        config: as given.
        base: model that the run starts from; None from scratch.

    Raises:
        UserError: a condition of another kind than the model's, one that the run does not find in
            its data, or one that this run cannot add.
    """
    kind = config.unet.kind
    if config.conditions and kind not in CONDITIONAL:
        raise UserError(
            f"conditions: unet.kind={kind} takes none; expected {' or '.join(CONDITIONAL)}"
        )
    known = base.conditions if base is not None else Conditions()
    found = {}
    for one in known:
        settings = config.conditions.get(one.name)
        if settings is None:
            raise UserError(
                f"conditions.{one.name}: {base.path}, which the run starts from, is told it "
                f"({one.kind}, {one.describe()}); say where the data has it, such as --set "
                f"conditions.{one.name}.column=folder"
            )
        if "kind" in settings.model_fields_set and settings.kind != one.kind:
            raise UserError(
                f"conditions.{one.name}.kind: {settings.kind!r}, but that of {base.path}, which "
                f"the run starts from, is {one.kind!r}"
            )
        found[one.name] = settings.model_copy(update={"kind": one.kind})
    more = {name: one for name, one in config.conditions.items() if name not in found}
    if more and config.lora.rank:
        raise UserError(
            f"conditions.{min(more)}: a LoRA changes what is there, and {base.path} is not told "
            "this; leave it or lora.rank out"
        )
    if more and config.control.trained:
        raise UserError(
            f"conditions.{min(more)}: a ControlNet is of the model as it is, and {base.path} is "
            "not told this; leave it or control out"
        )
    return config.model_copy(update={"conditions": found | more})


def plan_conditions(
    config: DiffusionRun,
    dataset: Dataset,
    base: ModelFolder | None,
    first_stage: FirstStage,
    folder: Path,
) -> list[ConditionRows | PlannedMaps | ChangesTold]:
    """Sources of the conditions of a run, in the order of the network's inputs.

    Args:
        config: returned by `inherit_conditions`, with all settings of the data.
        dataset: of the run.
        base: model that the run starts from; None from scratch.
        first_stage: of the run.
        folder: see `pictures_folder`.

    Raises:
        UserError: see `data.conditions.rows.read_rows` and `data.conditions.pictures.plan_maps`.
    """
    known = {one.name: one for one in base.conditions} if base is not None else {}
    stage = _stage(first_stage, config.data)
    found = []
    for name, settings in config.conditions.items():
        null = is_dropped(config, settings) if name not in known else known[name].null
        kind = KINDS[settings.kind]
        if issubclass(kind, VectorCondition):
            found.append(read_rows(name, settings, dataset.catalog, null, known.get(name)))
            continue
        condition = known.get(name) or kind.of_stage(name, settings, stage, null)
        check_maps(condition, config.data)
        found.append(plan_maps(condition, settings, dataset.catalog, folder / name))
    if isinstance(variants := augmented_images(dataset.catalog, config), AugmentedCatalog):
        found.append(ChangesTold(changes_condition(config), variants))
    return found


def open_conditions(
    planned: Sequence[ConditionRows | PlannedMaps], run: Run, first_stage: FirstStage, folder: Path
) -> list[ConditionRows | Maps]:
    """Sources of conditions, ready to be read; pictures are encoded here.

    Args:
        planned: returned by `plan_conditions`.
        run: with its settings and processes.
        first_stage: of the run.
        folder: see `pictures_folder`.
    """
    data = run.config.data
    frame = Frame(
        (data.resolution,) * 2,
        PixelFormat.of(data),
        _stage(first_stage, data),
        data.flip,
        first_stage.latent_space(),
        first_stage.encoded and partial(first_stage.encoded, run),
    )
    return [
        one.open(frame, folder / one.condition.name) if isinstance(one, PlannedMaps) else one
        for one in planned
    ]


def pictures_folder(out: Path, latents: Path | None) -> Path:
    """Folder of what a run keeps of pictures, with a folder for each condition.

    Args:
        out: run folder.
        latents: folder of its latents cache; None where it has none.
    """
    return latents or out / "conditions"


def second_of(config: AutoencoderRun | DiffusionRun) -> Second:
    """Second pictures, which are no images of the data themselves.

    Args:
        config: of a run.
    """
    pairs = [one for one in getattr(config, "conditions", {}).values() if one.kind == "picture"]
    control = isinstance(config, DiffusionRun) and ControlCondition.of(config.control)
    pairs += [control.pair] if control and control.pair else []
    columns = tuple(one.column for one in pairs if one.column != FOLDER)
    return Second(tuple(one.suffix for one in pairs if one.column == FOLDER), columns)


def second_pictures(planned: Sequence[ConditionRows | PlannedMaps]) -> dict[str, str]:
    """Digests of the second pictures of a run, as facts that a resumed run has to agree with.

    Args:
        planned: returned by `plan_conditions`.
    """
    maps = (one for one in planned if isinstance(one, PlannedMaps) and one.digest)
    return {f"pictures of {one.condition.name}": one.digest for one in maps}


def is_dropped(config: DiffusionRun, settings: ConditionConfig) -> bool:
    """True where some examples are not told a condition.

    Args:
        config: of the run.
        settings: of the condition.
    """
    return settings.dropout > 0 or config.training.condition_dropout > 0


def _stage(first_stage: FirstStage, data: DataConfig) -> Stage:
    """Sizes of a first stage."""
    return Stage(
        first_stage.downsample_factor,
        PixelFormat.of(data).channels,
        first_stage.latent_channels(data),
        first_stage.folder is not None,
    )
