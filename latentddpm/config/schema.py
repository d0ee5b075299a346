"""JSON schema of the configurations, for editors: every setting with help, type, range, default.

Made from the same classes that read a configuration, so it lists what this version takes. What
only some kinds take (`conditions.NAME.kind`, `unet.kind`) is refused with the others. Rules
between sections, and between a configuration and its data, are those of the commands.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, models_json_schema

from latentddpm.choices import CONDITIONS, DENOISERS
from latentddpm.config import COMMANDS
from latentddpm.config.conditions import ALL, ConditionConfig
from latentddpm.config.denoiser import UNetConfig

DIALECT = GenerateJsonSchema.schema_dialect
KINDS: dict[str, tuple[Mapping[str, Sequence[str]], Sequence[str]]] = {
    ConditionConfig.__name__: (CONDITIONS, ALL),
    UNetConfig.__name__: (DENOISERS, ("kind",)),
}
"""Section → the settings that each of its kinds takes, and those that all take."""


class Generator(GenerateJsonSchema):
    """Generator of schemas without titles, which would repeat the names of the settings."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def config_schema(*commands: str) -> dict[str, Any]:
    """JSON schema of the configurations of some commands.

    Args:
        commands: "train-vae", "train-diffusion"; a configuration has to be of one of them.

    Returns:
        The schema; its sections are below `$defs`.
    """
    models = {command: COMMANDS[command] for command in commands}
    references, schema = models_json_schema(
        [(model, "validation") for model in models.values()], schema_generator=Generator
    )
    for name, section in schema["$defs"].items():
        section.pop("title", None)
        for setting in section["properties"].values():
            if _is_section(setting):
                setting.pop("default", None)  # each of its settings has its own
        if name in KINDS:
            section["allOf"] = list(_kinds(section, *KINDS[name]))
    roots = [references[model, "validation"] for model in models.values()]
    return {"$schema": DIALECT, **(roots[0] if len(roots) == 1 else {"anyOf": roots}), **schema}


def _is_section(setting: Mapping[str, Any]) -> bool:
    """True for a section, or a dictionary of sections."""
    return "$ref" in setting or "$ref" in (setting.get("additionalProperties") or {})


def _kinds(
    section: Mapping[str, Any], kinds: Mapping[str, Sequence[str]], common: Sequence[str]
) -> Any:
    """Rules of a section: for each kind, the settings that it does not take."""
    default = section["properties"]["kind"]["default"]
    for kind, taken in kinds.items():
        foreign = [key for key in section["properties"] if key not in (*common, *taken)]
        if not foreign:
            continue
        of_kind: dict[str, Any] = {"properties": {"kind": {"const": kind}}}
        if kind != default:
            of_kind["required"] = ["kind"]
        yield {"if": of_kind, "then": {"properties": dict.fromkeys(foreign, False)}}
