"""The schema for editors says what the commands say, judged by an independent validator."""

from pathlib import Path

import jsonschema
import pytest
import yaml

from latentddpm.choices import CONDITIONS, DENOISERS
from latentddpm.config import COMMANDS
from latentddpm.config.schema import config_schema
from latentddpm.config_file import parse_config, ready_configs
from latentddpm.errors import UserError
from latentddpm.info.configs import settings_by_command

COMMAND_OF = {name: list(settings_by_command(path)) for name, path in ready_configs().items()}


@pytest.fixture(scope="module")
def validators():
    """A validator for each command, and one for either."""
    schemas = {command: config_schema(command) for command in COMMANDS}
    schemas["either"] = config_schema(*COMMANDS)
    for schema in schemas.values():
        jsonschema.Draft202012Validator.check_schema(schema)
    return {name: jsonschema.Draft202012Validator(one) for name, one in schemas.items()}


def settings():
    """Every setting of the schema: its section and name, with its entry."""
    schema = config_schema(*COMMANDS)
    for section, entry in schema["$defs"].items():
        for name, setting in entry["properties"].items():
            yield f"{section}.{name}", setting


@pytest.mark.parametrize("name", COMMAND_OF)
def test_what_ships_is_valid_for_one_command_only(name, validators):
    config = yaml.safe_load(Path(ready_configs()[name]).read_text("utf-8"))
    assert len(COMMAND_OF[name]) == 1, f"{name} is of {COMMAND_OF[name]}, expected one command"
    for command in (*COMMANDS, "either"):
        errors = [error.message for error in validators[command].iter_errors(config)]
        expected = command == "either" or command in COMMAND_OF[name]
        assert (not errors) is expected, f"{name} for {command}: {errors}"


def test_every_setting_has_a_help_text_and_a_default():
    for name, setting in settings():
        if "$ref" in setting or "additionalProperties" in setting:
            continue  # a section: its own settings have them
        assert setting.get("description"), f"{name} has no help text"
        assert "default" in setting, f"{name} has no default"


def test_every_section_says_what_it_is():
    sections = config_schema(*COMMANDS)["$defs"]
    silent = [name for name, entry in sections.items() if not entry.get("description")]
    assert not silent, f"sections without a description: {silent}"


def test_every_number_has_a_range_or_needs_none():
    """A number without limits is one that may be anything."""
    free = {"DiffusionTraining.logit_mean", "DistillConfig.guidance_scale", "DataConfig.window"}
    limits = {"minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum", "enum"}

    def unlimited(entry):
        number = entry.get("type") in ("integer", "number") and not limits & entry.keys()
        inside = [*entry.get("anyOf", []), *filter(None, [entry.get("items")])]
        return number or any(map(unlimited, inside))

    found = {name for name, setting in settings() if unlimited(setting)}
    found -= {"DiffusionData.window", "UNetConfig.attention_levels"}  # levels: checked by sizes
    assert found == free, f"numbers without a range: {sorted(found ^ free)}"


# Settings, and whether a command takes them; the schema has to say the same.
CASES = [
    ("train-vae", {"data": {"resolution": 0}}),
    ("train-vae", {"data": {"resolution": None}}),
    ("train-vae", {"data": {"resolutoin": 64}}),
    ("train-vae", {"data": {"bit_depth": 12}}),
    ("train-vae", {"data": {"window": [0]}}),
    ("train-vae", {"data": {"validation_fraction": 1}}),
    ("train-vae", {"unet": {}}),
    ("train-vae", {"training": {"betas": [0.5, 1]}}),
    ("train-vae", {"training": {"num_steps": True}}),
    ("train-vae", {"training": {"num_steps": 1e5}}),
    ("train-vae", {"autoencoder": {"channel_multipliers": []}}),
    ("train-diffusion", {"unet": {"num_heads": [1, 2]}}),
    ("train-diffusion", {"unet": {"num_heads": 0}}),
    ("train-diffusion", {"unet": {"kind": "transformer"}}),
    ("train-diffusion", {"lora": {"targets": ["query", "nothing"]}}),
    ("train-diffusion", {"conditions": {"digit": {"kind": "number", "column": ["a", "b"]}}}),
    ("train-diffusion", {"conditions": {"digit": {"kind": "unknown"}}}),
    ("train-diffusion", {"conditions": {"digit": {"words": ["a"]}}}),
    ("train-diffusion", {"conditions": {"digit": {"factor": 4}}}),
    ("train-diffusion", {"conditions": [1]}),
    ("train-diffusion", {"control": {"suffix": "noslash"}}),
    *(
        ("train-diffusion", {"conditions": {"one": {"kind": kind, key: value}}})
        for kind in CONDITIONS
        for key, value in {"words": ["a"], "sigma": 2.0, "masks": 2, "factor": 4}.items()
    ),
    *(
        ("train-diffusion", {"unet": {"kind": kind, key: value}})
        for kind in DENOISERS
        for key, value in {"channels": 16, "num_heads": 2, "recompute": True}.items()
    ),
]


@pytest.mark.parametrize(("command", "config"), CASES, ids=str)
def test_schema_and_command_agree(command, config, validators):
    try:
        parse_config(COMMANDS[command], config)
    except UserError:
        taken = False
    else:
        taken = True
    valid = validators[command].is_valid(config)
    assert valid is taken, f"{config}: the schema says {valid}, {command} says {taken}"
