"""Kinds of conditions: the name of each in a configuration and in a model folder, and its class.

A new kind is a module in this room, a line here, and one in `choices.CONDITIONS` with the settings
it takes.
"""

from __future__ import annotations

from latentddpm.conditions.base import Condition
from latentddpm.conditions.classes import ClassCondition
from latentddpm.conditions.labels import LabelsCondition
from latentddpm.conditions.number import NumberCondition

KINDS: dict[str, type[Condition]] = {
    one.kind: one for one in (ClassCondition, LabelsCondition, NumberCondition)
}
"""Kind of each condition → its class."""
