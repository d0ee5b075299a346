"""Configuration files: settings from YAML, from `--set a.b=c`, or from a dictionary.

Nothing is guessed or ignored. The error of an unknown key names the nearest known key, that of a
wrong value names what is expected.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import pydantic
import yaml

from latentddpm.config import COMMANDS, Section
from latentddpm.errors import UserError, nearest, one_line
from latentddpm.packaged import packaged_files

Run = TypeVar("Run", bound=Section)


def load_config(
    kind: type[Run],
    path: str | Path | None = None,
    overrides: tuple[str, ...] = (),
    **given: Any,
) -> Run:
    """Load settings from a YAML file, with overrides.

    Args:
        kind: class of the settings, such as `config.DiffusionRun`.
        path: YAML file with the settings that differ from the defaults, or the name of a ready
            one such as "small-64-vae"; None for none.
        overrides: each `section.key=value`, with the value in YAML; they override the file.
        given: top-level keys, which override both; None for one that is not given.

    Returns:
        Settings of class `kind`.

    Raises:
        UserError: a missing or malformed file, an unknown key, a value of the wrong type or range.
    """
    settings: dict[str, Any] = {}
    source = "config"
    if path is not None:
        source = str(path)
        file = find_config(path)
        try:
            settings = yaml.safe_load(file.read_text("utf-8")) or {}
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: not YAML: {one_line(error)}") from None
        if not isinstance(settings, dict):
            raise UserError(f"{path}: expected sections such as `data:`, found {settings!r}")
    override_settings(settings, overrides)
    settings |= {key: str(value) for key, value in given.items() if value is not None}
    return parse_config(kind, settings, f"{source}: ")


def ready_configs() -> dict[str, Path]:
    """Configurations that ship: name → file."""
    return packaged_files("configs")


def find_config(path: str | Path) -> Path:
    """File of a configuration. A file in the working directory comes before a ready one.

    Args:
        path: of a YAML file, or the name of a configuration that ships, such as "small-64-vae".

    Raises:
        UserError: there is neither; the message has the nearest name.
    """
    path, ready = Path(path), ready_configs()
    if path.is_file():
        return path
    name = path.name.removesuffix(".yaml")
    if path.parts[:-1] in ((), ("configs",)) and name in ready:
        return ready[name]
    if path.is_dir():
        raise UserError(
            f"{path}: is a folder, expected a YAML file; latentddpm configs lists some"
        )
    hint = nearest(name, ready) or "; latentddpm configs lists the ready ones"
    raise UserError(f"{path}: no such config file{hint}")


def as_config(kind: type[Run], config: Run | dict[str, Any] | str | Path) -> Run:
    """Settings from any of the forms that a function accepts.

    Args:
        kind: class of the settings, such as `config.DiffusionRun`.
        config: settings of that class, a dictionary of those that differ from the defaults, the
            path of such a YAML file, or the name of a ready one.

    Returns:
        Settings of class `kind`.

    Raises:
        UserError: see `load_config`; or settings of another class.
    """
    if isinstance(config, kind):
        return config
    if isinstance(config, Section):
        raise UserError(f"config: {type(config).__name__}, expected {kind.__name__}")
    if isinstance(config, dict):
        return parse_config(kind, config)
    return load_config(kind, config)


def parse_config(kind: type[Run], settings: dict[str, Any], source: str = "config: ") -> Run:
    """Validate settings in nested dictionaries.

    Args:
        kind: class of the settings, such as `config.DiffusionRun`.
        settings: those that differ from the defaults.
        source: prefix of the key in error messages.

    Returns:
        Settings of class `kind`.

    Raises:
        UserError: naming the first wrong key, its value and what is expected.
    """
    try:
        return kind.model_validate(settings)
    except pydantic.ValidationError as error:
        raise UserError(f"{source}{_explain(kind, settings, error)}") from None


def dump_config(config: Section) -> str:
    """Settings as YAML, with all keys.

    Args:
        config: of any class.
    """
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def override_settings(settings: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Change settings in nested dictionaries.

    Args:
        settings: changed in place.
        overrides: each `section.key=value`, with the value in YAML.

    Returns:
        The same settings.

    Raises:
        UserError: an override that is malformed.
    """
    for override in overrides:
        _override(settings, override)
    return settings


def _override(settings: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"--set {override}: expected section.key=value")
    *sections, name = key.strip().split(".")
    for section in sections:
        settings = settings.setdefault(section, {})
        if not isinstance(settings, dict):
            raise UserError(f"--set {override}: {section} is a value, not a section")
    try:
        settings[name] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"--set {override}: {text!r} is not a YAML value") from None
    if isinstance(settings[name], str) and text.strip()[0] not in "'\"":
        # YAML 1.1 reads 1e-4 as a string, but people mean a number, and quote real strings.
        with contextlib.suppress(ValueError):
            settings[name] = float(settings[name])


def _inside(kind: Any, part: str) -> Any:
    """Class of the settings below a key; of a dictionary of sections that of each."""
    if get_origin(kind) is dict:
        return get_args(kind)[1]
    return (
        kind.model_fields[part].annotation if part in getattr(kind, "model_fields", {}) else None
    )


def _known_part(kind: Any, location: tuple[str | int, ...]) -> list[str | int]:
    """Location of an error without the names that pydantic gives to the members of a union."""
    known = []
    for part in location:
        sections = get_origin(kind) is dict or hasattr(kind, "model_fields")
        if isinstance(part, str) and not sections:
            break
        known.append(part)
        kind = _inside(kind, part) if isinstance(part, str) else None
    return known


def _known(kind: Any, location: list[str]) -> bool:
    """True where settings of a class have the key at a location."""
    for part in location:
        kind = _inside(kind, part)
        if kind is None:
            return False
    return True


def _of_another_command(kind: type[Section], settings: Any, key: str, command: str) -> str:
    """Message on a key that settings of another command have."""
    own = next(name for name, one in COMMANDS.items() if one is kind)
    try:
        COMMANDS[command].model_validate(settings)
    except pydantic.ValidationError:
        return f"{key} is a setting of {command}, not of {own}"
    return f"this is one of {command} (it has {key}); expected a configuration of {own}"


def _explain(kind: type[Section], settings: Any, error: pydantic.ValidationError) -> str:
    errors = error.errors()
    # Each member of a union reports an error: show that of the member with the deepest location.
    of_first = [one for one in errors if one["loc"][:2] == errors[0]["loc"][:2]]
    first = max(of_first, key=lambda one: len(one["loc"]))
    location = [part for part in first["loc"] if isinstance(part, str)]
    key = ".".join(map(str, _known_part(kind, first["loc"])))
    if first["type"] == "extra_forbidden":
        for command, other in COMMANDS.items():
            if kind in COMMANDS.values() and other is not kind and _known(other, location):
                return _of_another_command(kind, settings, key, command)
        section: Any = kind
        for part in location[:-1]:
            section = _inside(section, part)
        known = list(section.model_fields)
        return f"unknown key {key}{nearest(location[-1], known)}; known: {', '.join(known)}"
    return f"{key}: {first['msg'][0].lower()}{first['msg'][1:]}, got {first['input']!r}"
