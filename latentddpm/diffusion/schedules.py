"""Schedules by name: the kinds of forward process, and how a configuration names one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from latentddpm.choices import SCHEDULES
from latentddpm.diffusion.flow import FlowSchedule
from latentddpm.diffusion.schedule import NoiseSchedule
from latentddpm.errors import check_choice

CLASSES: dict[str, type[NoiseSchedule] | type[FlowSchedule]] = {
    "ddpm": NoiseSchedule,
    "flow": FlowSchedule,
}
"""Class of each kind of schedule."""


def schedule_from_config(config: Mapping[str, Any]) -> NoiseSchedule | FlowSchedule:
    """Schedule of a configuration, as of `get_config`, or as in a manifest.

    Args:
        config: arguments of the schedule, and its `kind`, "ddpm" where there is none.

    Returns:
        The schedule.

    Raises:
        UserError: an unknown kind or key, or a value that the schedule refuses.

    Example:
        >>> from latentddpm.diffusion.schedules import schedule_from_config
        >>> schedule_from_config({"kind": "flow", "shift": 3.0}).shift
        3.0
    """
    kind = check_choice("schedule kind", config.get("kind", "ddpm"), SCHEDULES)
    return CLASSES[kind].from_config(config)
