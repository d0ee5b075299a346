"""Kinds of conditions: the name of each in a configuration and in a model folder, and its class.

A new kind is a module in this room, a line here, and one in `choices.CONDITIONS` with the settings
it takes.
"""

from __future__ import annotations

from latentddpm.conditions.base import Condition
from latentddpm.conditions.classes import ClassCondition
from latentddpm.conditions.edges import EdgesCondition
from latentddpm.conditions.inpainting import InpaintingCondition
from latentddpm.conditions.labels import LabelsCondition
from latentddpm.conditions.low_resolution import LowResolutionCondition
from latentddpm.conditions.number import NumberCondition
from latentddpm.conditions.picture import PairCondition

KINDS: dict[str, type[Condition]] = {
    one.kind: one
    for one in (
        *(ClassCondition, LabelsCondition, NumberCondition),
        *(PairCondition, EdgesCondition, LowResolutionCondition, InpaintingCondition),
    )
}
"""Kind of each condition → its class."""
