"""The documentation holds what it says: links lead somewhere, commands and settings exist, Python
compiles, and the README's block runs.

Pages that are made when the site is built are made here by the same functions (`docs/hooks.py`).
"""

import ast
import importlib.util
import re
from pathlib import Path

import click
import numpy as np
import pytest
import yaml
from pages import FENCE, INDENTED, INLINE, SHELLS, blocks, calls, inline, prose
from tiny import step_by_step

import latentddpm
from latentddpm.cli import main
from latentddpm.config import AutoencoderRun, DiffusionRun
from latentddpm.config.conditions import ConditionConfig
from latentddpm.config.schema import config_schema
from latentddpm.config_file import load_config

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = {
    str(path.relative_to(ROOT)): path.read_text("utf-8")
    for path in [
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
        *sorted(DOCS.rglob("*.md")),
        *sorted(ROOT.glob("weights/*/README.md")),
    ]
}
CODE = {
    str(path.relative_to(ROOT)): path.read_text("utf-8")
    for folder in ("latentddpm", "tests", "examples", "benchmarks", "configs")
    for path in sorted((ROOT / folder).rglob("*"))
    if path.suffix in (".py", ".yaml", ".sbatch") and path != Path(__file__)
}
RUNS = {"train-vae": AutoencoderRun, "train-diffusion": DiffusionRun}
OTHERS_OPTIONS = {
    *("--no-deps", "--run-slow", "--signal"),  # of pip, pytest, Slurm
    *("--judge", "--never"),  # of examples/labelled_digits.py
    *("--with_prior_preservation", "--class_prompt", "--class_data_dir"),  # of diffusers
    *("--num_class_images", "--prior_loss_weight"),
}


def load_hooks():
    spec = importlib.util.spec_from_file_location("docs_hooks", DOCS / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


hooks = load_hooks()

LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


# --- Links ---------------------------------------------------------------------------------


def github_slug(title):
    title = LINK.sub(lambda match: match[0][1 : match[0].index("]")], title).replace("`", "")
    return re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-")


def site_slug(title):
    """Of Python-Markdown's `toc`: ASCII, and no two hyphens side by side."""
    return re.sub(r"-+", "-", github_slug(title).encode("ascii", "ignore").decode()).strip("-")


def anchors(page):
    """Of a page's headings: those that a forge and the site call by the same name."""
    text = hooks.filled(PAGES[page]) if page.startswith("docs/reference/") else PAGES[page]
    titles = re.findall(r"^#{1,4} (.+)$", FENCE.sub("", text), re.MULTILINE)
    return {github_slug(title) for title in titles if github_slug(title) == site_slug(title)}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    dead = []
    for target in LINK.findall(prose(PAGES[page])):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        path = ((ROOT / page).parent / name).resolve() if name else ROOT / page
        inside = path.is_relative_to(ROOT)
        if not inside or not path.is_file():
            dead.append(f"{target}: no such file")
        elif anchor and anchor not in anchors(str(path.relative_to(ROOT))):
            dead.append(f"{target}: no heading that a forge and the site name so")
    assert not dead, f"{page}: {dead}"


def test_the_site_lists_every_page():
    class Loader(yaml.SafeLoader):
        """`mkdocs.yml` may hold tags of Python, which are of no interest here."""

    Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)
    nav = yaml.load((ROOT / "mkdocs.yml").read_text("utf-8"), Loader)["nav"]
    listed = set(flat(nav))
    there = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}
    there |= set(hooks.OUTSIDE.values())
    assert listed == there, f"mkdocs.yml and docs/ differ: {sorted(listed ^ there)}"


def flat(entry):
    """The pages of an entry of the navigation: a page, a list, or a title with either."""
    if isinstance(entry, str):
        return [entry]
    entries = entry if isinstance(entry, list) else entry.values()
    return [page for one in entries for page in flat(one)]


@pytest.mark.parametrize("page", PAGES)
def test_links_are_the_same_places_on_the_site(page):
    place = hooks.OUTSIDE.get(page) or page.removeprefix("docs/")
    if place == page:  # not a page of the site
        return
    pages = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*") if path.is_file()}
    pages |= set(hooks.OUTSIDE.values())
    for target in LINK.findall(prose(hooks.relinked(PAGES[page], page, place))):
        name = target.partition("#")[0]
        if name and ":" not in name:
            path = (DOCS / place).parent.joinpath(name).resolve().relative_to(DOCS)
            assert str(path) in pages, f"{page}: {target} leads out of the site"


# --- Names of files ------------------------------------------------------------------------

TOP = ("benchmarks", "configs", "docs", "examples", "latentddpm", "tests", "weights")
PATH = re.compile(rf"(?<![\w./-])((?:{'|'.join(TOP)})/[\w./-]*[\w/])")
NOT_HERE = {"docs/images"}


@pytest.mark.parametrize("page", PAGES)
def test_files_that_a_page_names_exist(page):
    named = {path for code in inline(PAGES[page]) for path in PATH.findall(code)}
    missing = sorted(path for path in named if not (ROOT / path).exists())
    assert not missing, f"{page} names {missing}"


@pytest.mark.parametrize("name", [name for name, text in CODE.items() if "docs/" in text])
def test_pages_that_code_names_exist(name):
    """An error message that sends a reader to a page has to name one that is there."""
    for path, anchor in re.findall(r"(?<![\w/])(docs/[\w/.-]+\.md)(?:#([\w-]+))?", CODE[name]):
        assert path in PAGES, f"{name} names {path}"
        assert not anchor or anchor in anchors(path), f"{name} names {path}#{anchor}"


def test_the_map_of_rooms_is_the_tree():
    text = PAGES["docs/index.md"].partition("## Map of rooms")[2].partition("###")[0]
    rows = re.findall(r"^\| `?([\w./ ]+?)`? \|[^|]*\|(.*)\|$", text, re.MULTILINE)
    package, rooms = ROOT / "latentddpm", set()
    for room, files in rows:
        if room in ("room", "---"):
            continue
        rooms.add(room.split("/")[0])
        folder = package if room == "top level" or room.endswith(".py") else package / room
        assert folder.is_dir(), f"docs/index.md: no room {room}"
        for file in INLINE.findall(files):
            assert (folder / file).exists(), f"docs/index.md: no {file} in {room}"
    there = {path.name for path in package.iterdir() if (path / "__init__.py").is_file()}
    assert there <= rooms, f"docs/index.md: its map lacks {sorted(there - rooms)}"


# --- Python --------------------------------------------------------------------------------


PYTHON = [(page, body) for page, text in PAGES.items() for body in blocks(text, "python", "py")]


@pytest.mark.parametrize(("page", "body"), PYTHON, ids=lambda value: str(value)[:40])
def test_python_compiles_and_its_names_exist(page, body):
    tree = ast.parse(body, page)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "latentddpm":
            for alias in node.names:
                known = has_name(node.module, alias.name)
                assert known, f"{page}: from {node.module} import {alias.name}"
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "latentddpm":
            assert has_name("latentddpm", node.attr), f"{page}: latentddpm.{node.attr}"


def has_name(module, name):
    """Whether a module of the package gives a name, without importing it."""
    if module == "latentddpm" and name in latentddpm.__all__:
        return True
    path = ROOT.joinpath(*module.split("."))
    if (path / f"{name}.py").is_file() or (path / name).is_dir():
        return True
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    if not file.is_file():
        return False
    tree = ast.parse(file.read_text("utf-8"))
    found = {name for node in tree.body for name in defined(node)}
    return name in found


def defined(node):
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.ImportFrom):
        yield from (alias.asname or alias.name for alias in node.names)
    elif isinstance(node, ast.Assign):
        yield from (target.id for target in node.targets if isinstance(target, ast.Name))
    elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        yield node.target.id


def test_the_block_of_the_readme_runs():
    marked = PAGES["README.md"].partition("<!-- python-block -->")[2]
    body = blocks(marked, "python")[0]
    assert len(body.strip().splitlines()) == 12, "the README promises twelve lines"
    names = {}
    with step_by_step():  # without a graph, of which tracing takes ten times as long
        exec(compile(body, "README.md", "exec"), names)
    drawn = np.asarray(names["drawn"])
    assert drawn.shape == (4, 8, 8, 4), f"drew {drawn.shape}, expected four latents of 8×8×4"
    assert np.isfinite(drawn).all(), "what was drawn is not finite"


# --- Command lines -------------------------------------------------------------------------


def command_lines(text):
    """Each call of `latentddpm` in the blocks and the inline code of a page, as words."""
    for body in [*blocks(text, *SHELLS), *INDENTED.findall(prose(text))]:
        yield from calls(body)
    for code in inline(text):
        yield from calls(code)
        first, _, rest = code.partition(" ")
        if first in main.commands and rest.startswith("--"):
            yield from calls(f"latentddpm {code}")


def without_brackets(word):
    """Word of a command line without the brackets of what may be left out."""
    word = word.removeprefix("[")
    return word if "[" in word else word.removesuffix("]")


LINES = [(page, words) for page, text in PAGES.items() for words in command_lines(text)]
PLACEHOLDERS = ("…", "...")


@pytest.mark.parametrize(("page", "words"), LINES, ids=str)
def test_a_command_line_parses(page, words):
    name, *arguments = words
    assert name in main.commands, f"{page}: no command {name}"
    command = main.commands[name]
    arguments = [without_brackets(word) for word in arguments]
    for stop in ("|", ">"):  # what follows is the shell's
        arguments = arguments[: arguments.index(stop)] if stop in arguments else arguments
    arguments = [word for word in arguments if word not in PLACEHOLDERS]
    valued = {n for p in command.params if not getattr(p, "is_flag", True) for n in p.opts}
    arguments += ["VALUE"] * (arguments[-1:] != [] and arguments[-1] in valued)
    try:
        options, rest, _ = command.make_parser(click.Context(command)).parse_args(arguments)
    except click.UsageError as error:
        pytest.fail(f"{page}: latentddpm {' '.join(words)}: {error.format_message()}")
    assert not rest, f"{page}: {name} takes no {rest}"
    if name in RUNS:
        load_config(RUNS[name], options.get("config"), tuple(options.get("overrides") or ()))


def test_there_are_command_lines_to_parse():
    assert len(LINES) > 80, f"found {len(LINES)}: are they still recognised?"
    assert {words[0] for _, words in LINES} == set(main.commands), "a command is shown nowhere"


@pytest.mark.parametrize("page", PAGES)
def test_options_in_the_text_exist(page):
    known = {name for one in main.commands.values() for p in one.params for name in p.opts}
    known |= {name for p in main.params for name in p.opts} | {"--help", *OTHERS_OPTIONS}
    named = {option for code in inline(PAGES[page]) for option in re.findall(r"^--[\w-]+", code)}
    assert named <= known, f"{page}: no command has {sorted(named - known)}"


# --- Settings ------------------------------------------------------------------------------


def setting_names(section, prefix=""):
    """Keys of a section, and True for those of sections."""
    for name, field in section.model_fields.items():
        inner = hasattr(field.annotation, "model_fields")
        yield f"{prefix}{name}", inner
        if inner:
            yield from setting_names(field.annotation, f"{prefix}{name}.")


def is_setting(name):
    """True for the key of a setting, also of a named condition, or of one part of `train`."""
    for part in ("vae.", "diffusion."):
        name = name.removeprefix(part)
    first, *rest = name.split(".")
    if first == "conditions" and len(rest) == 2:
        return rest[1] in ConditionConfig.model_fields
    return name in SETTINGS


NAMES = {name: inner for run in RUNS.values() for name, inner in setting_names(run)}
SETTINGS = set(NAMES)
SUFFIXES = ("py", "png", "onnx", "safetensors")  # `unet.py` is a file
SECTIONS = {name.split(".")[0] for name in SETTINGS}


@pytest.mark.parametrize("page", PAGES)
def test_settings_in_the_text_exist(page):
    pattern = rf"^((?:{'|'.join(SECTIONS)})(?:\.[a-z_]+)+)(?=$|[:= ])"
    named = {name for code in inline(PAGES[page]) for name in re.findall(pattern, code)}
    named = {name for name in named if name.split(".")[1] not in SUFFIXES}
    named |= set(re.findall(r"--set (\w+(?:\.\w+)+)=", PAGES[page]))
    unknown = [name for name in sorted(named) if not is_setting(name)]
    assert not unknown, f"{page}: no setting {unknown}"


def test_every_setting_and_command_is_on_its_page():
    page = hooks.filled(PAGES["docs/reference/settings.md"])
    leaves = [name for name, inner in NAMES.items() if "." in name and not inner]
    missing = [name for name in leaves if f"| `{name}` |" not in page]
    assert not missing, f"reference/settings.md lacks {missing}"
    page = hooks.filled(PAGES["docs/reference/commands.md"])
    missing = [name for name in main.commands if f"## {name}\n" not in page]
    assert not missing, f"reference/commands.md lacks {missing}"


def settings_of_the_schema(command):
    """Every setting of a command's schema, as its page calls it, with its entry."""
    schema = config_schema(command)
    sections = schema["$defs"]

    def inside(prefix, reference):
        for name, setting in sections[reference.rpartition("/")[2]]["properties"].items():
            if "$ref" in setting:
                yield from inside(f"{prefix}.{name}", setting["$ref"])
            else:
                yield f"{prefix}.{name}", setting

    root = sections[schema["$ref"].rpartition("/")[2]]
    for section, entry in root["properties"].items():
        several = entry.get("additionalProperties")
        inner = (several or entry).get("$ref")
        if inner is None:
            yield section, entry
            continue
        prefix = f"{section}.NAME" if several else section
        yield from inside(prefix, inner)


def limits_of(entry):
    """Limits of a setting's values, as the page writes them."""
    signs = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}
    inside = [*entry.get("anyOf", []), *filter(None, [entry.get("items")])]
    own = {f"{sign} {entry[key]:g}" for key, sign in signs.items() if key in entry}
    return own.union(*map(limits_of, inside))


@pytest.mark.parametrize("command", RUNS)
def test_the_page_of_settings_has_help_range_and_default_of_each(command):
    page = hooks.filled(PAGES["docs/reference/settings.md"]).splitlines()
    for name, entry in settings_of_the_schema(command):
        rows = [row for row in page if row.startswith(f"| `{name}` |")]
        wanted = [entry["description"].replace("|", "\\|"), *limits_of(entry)]
        if entry["default"] not in (None, "", []):
            wanted.append(hooks._yaml(entry["default"]))
        there = any(all(one in row for one in wanted) for row in rows)
        assert there, f"{name}: expected a row with {wanted}, found {rows}"


def test_every_room_has_a_reference():
    package = ROOT / "latentddpm"
    filled = "\n".join(
        hooks.filled(text) for page, text in PAGES.items() if page.startswith("docs/reference/")
    )
    for path in sorted(package.rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if name in ("latentddpm", "latentddpm.__main__") or not path.read_text("utf-8").strip():
            continue
        assert f"::: {name}\n" in filled, f"no page of docs/reference has {name}"
