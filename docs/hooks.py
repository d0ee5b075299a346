"""Hooks of `mkdocs build`: pages that are made from the package, so that they cannot go stale.

    <!-- settings -->         every setting of `latentddpm.config`, on `reference/settings.md`
    <!-- configurations -->   every ready configuration, on `reference/settings.md`
    <!-- recipe -->           the rules of `train`, with their reasons, on `guides/train.md`
    <!-- commands -->         every command's help, on `reference/commands.md`
    <!-- read: TABLE -->      a table of what is read, on `reference/files.md`
    <!-- public names -->     the names of `latentddpm.__all__`, on `reference/index.md`
    <!-- modules: ROOM -->    the modules of a room, those with public names first

Pages that live elsewhere in the repository (`OUTSIDE`) become pages of the site, and links to
them are turned to where they are there. Nothing here needs mkdocs until it runs: the tests use
these functions to look for dead links.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

OUTSIDE = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "weights/emoji-128/README.md": "models/emoji-128.md",
}
"""File in the repository → page of the site."""

LINK = re.compile(r"(?<!\\)(\]\()([^)\s]+)(\))")
CODE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
MARK = re.compile(
    r"^<!-- (settings|configurations|recipe|commands|public names|modules: [\w ]+"
    r"|read: [\w ]+) -->$",
    re.MULTILINE,
)


# --- Settings ------------------------------------------------------------------------------

SIGNS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
WORDS = {int: "integer", float: "number", str: "text", bool: "true or false", type(None): "null"}


def settings_markdown() -> str:
    """Every setting, a table for each section: key, command, type, default, meaning."""
    from latentddpm.config import AutoencoderRun, DiffusionRun

    runs = {"train-vae": AutoencoderRun, "train-diffusion": DiffusionRun}
    lines = []
    for name in dict.fromkeys(name for run in runs.values() for name in run.model_fields):
        fields = {c: run.model_fields[name] for c, run in runs.items() if name in run.model_fields}
        rows: dict[tuple[str, ...], list[str]] = {}
        for command, field in fields.items():
            section, prefix = _section(field.annotation, name)
            settings = getattr(section, "model_fields", None)
            named = {name: field} if not settings else dict(_named(prefix, settings))
            for key, setting in named.items():
                rows.setdefault(_cells(key, setting), []).append(command)
        lines += [f"## {name}", "", _words([field.annotation for field in fields.values()]), ""]
        lines += ["| setting | command | type | default | meaning |", "|---|---|---|---|---|"]
        for (key, *cells), commands in rows.items():
            who = "both" if len(commands) == len(runs) else commands[0]
            lines.append(f"| {' | '.join([key, who, *cells])} |")
        lines.append("")
    return "\n".join(lines)


def configurations_markdown() -> str:
    """Every ready configuration: name, command, and the first sentence of its comment."""
    from latentddpm.config_file import ready_configs
    from latentddpm.info.configs import first_sentence, settings_by_command

    rows = [
        f"| `{name}` | {', '.join(settings_by_command(path))} | {first_sentence(path)} |"
        for name, path in ready_configs().items()
    ]
    return "\n".join(["| name | command | what it trains |", "|---|---|---|", *sorted(rows)])


def _named(prefix: str, settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Keys and settings of a section, with those of the sections in it."""
    for key, setting in settings.items():
        inner = getattr(setting.annotation, "model_fields", None)
        if inner:
            yield from _named(f"{prefix}.{key}", inner)
        else:
            yield f"{prefix}.{key}", setting


def _section(annotation: Any, name: str = "") -> tuple[Any, str]:
    """Class of a section and the key of it; of a dictionary of sections that of each, by NAME."""
    if typing.get_origin(annotation) is dict:
        return typing.get_args(annotation)[1], f"{name}.NAME"
    return annotation, name


def _words(kinds: list[type]) -> str:
    """What a section's class says, or the class that all of them come from."""
    kinds = [_section(one)[0] for one in kinds]
    kind = next(one for one in kinds[0].__mro__ if all(issubclass(k, one) for k in kinds))
    text = kind.__doc__ if hasattr(kind, "model_fields") else ""
    return " ".join((text or "").split("\n\n")[0].split())


def _cells(key: str, field: Any) -> tuple[str, ...]:
    default = field.get_default(call_default_factory=True)
    kind = _type(field.annotation, field.metadata)
    return f"`{key}`", kind, f"`{_yaml(default)}`", (field.description or "").replace("|", "\\|")


def _yaml(value: Any) -> str:
    """A default as a configuration file has it."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, list):
        return f"[{', '.join(map(_yaml, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value) or '""'


def _type(annotation: Any, metadata: Any = ()) -> str:
    """A type with its range, in words."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _type(arguments[0], [*metadata, *arguments[1:]])
    if origin is typing.Literal:
        return ", ".join(f"`{one}`" for one in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type(one, () if one is type(None) else metadata) for one in arguments)
    # A constraint stands alone, or in the `metadata` of a `Field`.
    rules = [rule for one in metadata for rule in getattr(one, "metadata", None) or [one]]
    limits = {key: getattr(rule, key) for rule in rules for key in SIGNS if hasattr(rule, key)}
    if origin is list:
        return f"list of: {_type(arguments[0])}"
    return " ".join([WORDS[annotation], *(f"{SIGNS[k]} {v:g}" for k, v in limits.items())])


# --- Commands ------------------------------------------------------------------------------


def commands_markdown() -> str:
    """Each command with its `--help`."""
    import click

    from latentddpm.cli import main

    def help_of(command: click.Command, name: str, parent: Any = None) -> str:
        settings = {"help_option_names": ["-h", "--help"], "max_content_width": 88}
        context = click.Context(
            command, info_name=name, parent=parent, terminal_width=88, **settings
        )
        return f"```text\n{command.get_help(context).rstrip()}\n```\n"

    parent = click.Context(main, info_name="latentddpm")
    parts = [help_of(main, "latentddpm")]
    for name in main.list_commands(parent):
        parts += [f"## {name}\n", help_of(main.commands[name], name, parent)]
    return "\n".join(parts)


def recipe_markdown() -> str:
    """Rules of `train`: what each decides, how, and its reason or measurement."""
    from latentddpm.recipe.table import RULES

    rows = ("decides", "rule", "reason or measurement"), ("---",) * 3, *RULES
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


# --- What is read --------------------------------------------------------------------------


def read_markdown(table: str) -> str:
    """Table of what is read, named or refused, from the lists that the code itself decides by."""
    from latentddpm.data import findings
    from latentddpm.data.sources import kinds
    from latentddpm.interop import lora_file, tensors
    from latentddpm.pipeline import recognise, weight_files

    takers = {weight_files.READ: "`convert --from`", weight_files.LORA: "`--lora`, `merge`"}
    rows: dict[str, Iterable[tuple[str, ...]]] = {
        "pictures": _grouped(kinds.PICTURES_READ, ("format", "suffix")),
        "arrays": _grouped(kinds.ARRAYS_READ, ("format", "suffix")),
        "other pictures": _grouped(kinds.PICTURES_NAMED, ("what to do", "suffix")),
        "other captions": _grouped(kinds.CAPTIONS_NAMED, ("what to do", "suffix")),
        "other tables": _grouped(kinds.TABLES_NAMED, ("what to do", "suffix")),
        "archives": _grouped(kinds.ARCHIVES_NAMED, ("what to do", "suffix")),
        "columns": [
            ("what", "columns, in any case; the first that a row has"),
            ("caption", _code(kinds.CAPTION_COLUMNS)),
            ("name of the image", _code(kinds.NAME_COLUMNS)),
            ("no caption", _code(kinds.NO_TEXT)),
        ],
        "findings": [
            ("finding", "severity", "what training does"),
            *((what, severity, does) for severity, what, does in findings.KINDS.values()),
        ],
        "layouts": [
            ("safetensors file", "taken by", "else"),
            *dict.fromkeys(
                (one.what, takers.get(one.command, "–"), "" if one.command else one.advice)
                for one in weight_files.LAYOUTS
            ),
        ],
        "contents": [
            ("a file that begins as", "what to do"),
            *((what, advice) for _, what, advice in weight_files.CONTENTS),
        ],
        "suffixes": _grouped(
            {suffix: ": ".join(rest) for suffix, rest in recognise.SUFFIXES.items()},
            ("what it is, and what takes it", "suffix"),
        ),
        "folders": [
            ("folder of diffusers", "class in its JSON"),
            ("pipeline", _code(recognise.PIPELINES)),
            ("one network", _code(recognise.NETWORKS)),
        ],
        "numbers": [
            ("weights, or why they are refused", "types of numbers"),
            ("of networks", _code(tensors.FLOATS)),
            ("α of a LoRA", _code(tensors.NUMBERS)),
            *_grouped(weight_files.NOT_READ, ("", ""))[1:],
        ],
        "lora": [
            ("LoRA", ""),
            *((f"names of {style}", "read") for style in lora_file.STYLES),
            *dict.fromkeys((what, "refused") for what in lora_file.STRANGERS.values()),
        ],
    }
    head, *body = rows[table]
    lines = [head, ("---",) * len(head), *body]
    return "\n".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in lines
    )


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|").replace("{suffix}", " with its suffix")


def _code(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _grouped(table: Mapping[str, str], head: tuple[str, str]) -> list[tuple[str, str]]:
    """Rows of a table name → text: each text once, with all of its names."""
    groups: dict[str, list[str]] = {}
    for name, text in table.items():
        groups.setdefault(text, []).append(name)
    return [head, *((text, _code(names)) for text, names in groups.items())]


# --- Modules -------------------------------------------------------------------------------


def homes() -> dict[str, str]:
    """Public name → the module it lives in."""
    import latentddpm

    return {name: latentddpm._HOMES[name] for name in sorted(latentddpm._HOMES, key=str.lower)}


def public_names_markdown() -> str:
    """A line for each public name, linked to its place."""
    lines = ["| name | from |", "|---|---|"]
    for name, home in homes().items():
        lines.append(f"| [`latentddpm.{name}`][{_path(name, home)}] | `{home}` |")
    return "\n".join(lines)


def _path(name: str, home: str) -> str:
    """Where a public name is: a name of a module, or the module itself."""
    return home if home.endswith(f".{name}") else f"{home}.{name}"


def modules_markdown(rooms: str) -> str:
    """The modules of rooms (folders, or modules of the top), as mkdocstrings asks for them."""
    public = homes()
    found = [name for room in rooms.split() for name in _modules(room)]
    first = [name for name in found if name in public.values()]
    names = [f"[`{name}`][{_path(name, home)}]" for name, home in public.items() if home in first]
    lines = [f"Public names: {', '.join(names)}.\n"] if names else []
    for name in [*first, *(name for name in found if name not in first)]:
        lines.append(f"::: {name}\n    options:\n      heading_level: 2")
        if (ROOT / name.replace(".", "/")).is_dir():
            lines.append("      members: false")  # they are those of its modules
        lines.append("")
    return "\n".join(lines)


def _modules(room: str) -> Iterator[str]:
    """Dotted names of the modules of a room that say anything, packages before their modules."""
    place = ROOT / "latentddpm" / room
    if not place.is_dir():
        yield f"latentddpm.{room}"
        return
    for path in sorted(place.rglob("*.py"), key=lambda p: (p.parent, p.stem != "__init__", p)):
        if path.name == "__init__.py" and not path.read_text("utf-8").strip():
            continue
        yield ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


# --- Pages ---------------------------------------------------------------------------------


def filled(markdown: str) -> str:
    """A page with its marks replaced by what they stand for."""

    def replace(match: re.Match[str]) -> str:
        mark, _, argument = match[1].partition(": ")
        if argument:
            return {"modules": modules_markdown, "read": read_markdown}[mark](argument)
        makers = {
            "settings": settings_markdown,
            "configurations": configurations_markdown,
            "commands": commands_markdown,
            "recipe": recipe_markdown,
            "public names": public_names_markdown,
        }
        return makers[mark]()

    return MARK.sub(replace, markdown)


def relinked(markdown: str, source: str, page: str) -> str:
    """Links of a file of the repository as they are between pages of the site.

    Args:
        source: where the file lies in the repository, such as "docs/index.md".
        page: where its page lies in the site, such as "index.md".
    """

    def replace(match: re.Match[str]) -> str:
        target, hash_sign, anchor = match[2].partition("#")
        if not target or ":" in target:
            return match[0]
        path = os.path.normpath(os.path.join(os.path.dirname(source), target))
        place = OUTSIDE.get(path)
        if place is None and path.startswith("docs/"):
            place = path.removeprefix("docs/")
        if place is None:
            return match[0]  # left for `--strict` to complain of
        turned = os.path.relpath(place, os.path.dirname(page) or ".")
        return f"{match[1]}{turned}{hash_sign}{anchor}{match[3]}"

    parts, end = [], 0
    for block in CODE.finditer(markdown):
        parts += [LINK.sub(replace, markdown[end : block.start()]), block[0]]
        end = block.end()
    return "".join([*parts, LINK.sub(replace, markdown[end:])])


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that live outside of `docs/`."""
    file_type = importlib.import_module("mkdocs.structure.files").File
    for source, page in OUTSIDE.items():
        files.append(file_type.generated(config, page, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Turn links, fill in what is made from the package."""
    places = {page: source for source, page in OUTSIDE.items()}
    uri = page.file.src_uri
    return filled(relinked(markdown, places.get(uri, f"docs/{uri}"), uri))
