"""Conditions of a run: what its configuration and its data say that the network is told.

    conditions: {digit: {kind: class}}  ─► words of the data ─► condition, and a source of examples

A run that starts from a model keeps the words and ranges of its conditions, and may add others.
"""

from __future__ import annotations

from latentddpm.choices import CONDITIONAL
from latentddpm.conditions.base import Condition, VectorCondition
from latentddpm.conditions.conditions import Conditions
from latentddpm.conditions.kinds import KINDS
from latentddpm.config import ConditionConfig, DiffusionRun
from latentddpm.data.conditions.rows import ConditionRows, read_rows
from latentddpm.data.dataset import Dataset
from latentddpm.errors import UserError
from latentddpm.pipeline.model_folder import ModelFolder


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
    return config.model_copy(update={"conditions": found | more})


def plan_conditions(
    config: DiffusionRun, dataset: Dataset, base: ModelFolder | None
) -> list[ConditionRows]:
    """Sources of the conditions of a run, in the order of the network's inputs.

    Args:
        config: returned by `inherit_conditions`.
        dataset: of the run.
        base: model that the run starts from; None from scratch.

    Raises:
        UserError: see `data.conditions.rows.read_rows`.
    """
    known = {one.name: one for one in base.conditions} if base is not None else {}
    found = []
    for name, settings in config.conditions.items():
        null = is_dropped(config, settings) if name not in known else known[name].null
        found.append(_source(name, settings, dataset, null, known.get(name)))
    return found


def is_dropped(config: DiffusionRun, settings: ConditionConfig) -> bool:
    """True where some examples are not told a condition.

    Args:
        config: of the run.
        settings: of the condition.
    """
    return settings.dropout > 0 or config.training.condition_dropout > 0


def _source(
    name: str, settings: ConditionConfig, dataset: Dataset, null: bool, known: Condition | None
) -> ConditionRows:
    kind = KINDS[settings.kind]
    if not issubclass(kind, VectorCondition):
        raise NotImplementedError(settings.kind)
    return read_rows(name, settings, dataset.catalog, null, known)
