"""Rules that no single function can keep: flow of imports, where TensorFlow may be
used, nothing that runs code from files, and a light `import latentddpm`.

A new room gets its place in `FLOW`, behind everything that it imports.
"""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import latentddpm

PACKAGE = Path(latentddpm.__file__).parent

# The rooms (folders of the package) in the order of imports: a module imports from its own room
# and from those before it. Rooms side by side (|) do not import each other.
FLOW = """
errors | choices | packaged → config → config_file → utils → hub → conditions → distribution
→ clip → diffusion | models → graphs → engines → data → pipeline → export | interop → generation
→ evaluation → training → model_card → recipe → info | serve → cli → __main__
"""
RANKS = {
    room: rank
    for rank, rooms in enumerate(FLOW.replace("\n", " ").split("→"))
    for room in rooms.replace("|", " ").split()
}

MOST_LOOSE, MOST_IN_A_FOLDER = 8, 12

# `tensorflow` is for input pipelines, training and export; networks and maths use keras.ops.
TENSORFLOW = (
    *("distribution.precision", "distribution.replicas", "distribution.strategy"),
    *("models.inference", "engines.traced"),
    *(
        "data.random",
        "data.buckets",
        "data.batches",
        "data.dataset",
        "data.examples",
        "data.pack",
        "data.shares",
    ),
    *("data.latents.cache", "data.sources.storage", "data.sources.packed.records"),
    *("training", "export.endpoints", "export.saved_model", "export.onnx", "export.litert"),
)

# Packages that hand out names lazily: their imports run on demand.
LAZY = ("",)

# Statements about the code itself, which no input can make false: each by its own words.
INVARIANTS = {"models.denoisers.unet": ["not skips"]}

FORBIDDEN_MODULES = ("pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal")
FORBIDDEN_CALLS = ("eval", "exec")


def module_name(path):
    """The dotted name below `latentddpm`; "" for the package itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text("utf-8"), str(path)) for name, path in MODULES.items()}


def imported(name, tree):
    """Every absolute dotted name that a module imports, with its line, functions included.

    `from a.b import c` gives "a.b.c" when that is a module of the package, else "a.b".
    """
    package = MODULES[name].name == "__init__.py"
    base = ["latentddpm", *filter(None, name.split("."))]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:
                up = base[: len(base) - node.level + package]
                source = ".".join([*up, *filter(None, [source])])
            for alias in node.names:
                full = f"{source}.{alias.name}"
                inner = full.removeprefix("latentddpm.")
                yield full if full != inner and inner in MODULES else source, node.lineno


def room_of(name):
    """The room of a module: the first part of its name, if that is in the flow, else None."""
    room = name.split(".")[0]
    return room if room in RANKS else None


def trespass(name, target):
    """Whether `target` lies behind `name` in the flow, or beside it."""
    here, there = room_of(name), room_of(target)
    return here != there and RANKS[there] >= RANKS[here]


def own_imports(name):
    """The modules of the package that one module imports, as names below `latentddpm`."""
    for target, line in imported(name, TREES[name]):
        if target == "latentddpm" or target.startswith("latentddpm."):
            yield target.removeprefix("latentddpm").lstrip("."), line


# --- The flow ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in MODULES if name not in LAZY])
def test_a_module_imports_only_from_earlier_rooms(name):
    assert room_of(name), f"{name} has no place in FLOW; put it behind all that it imports"
    wrong = [
        f"line {line}: {target or 'latentddpm'}"
        for target, line in own_imports(name)
        # The bare package holds `__version__`: anyone may ask for that.
        if target and (room_of(target) is None or trespass(name, target))
    ]
    assert not wrong, f"{name} imports from a later room: {wrong}; expected earlier ones only"


def test_the_flow_lists_the_rooms_there_are():
    rooms = {room_of(name) for name in MODULES if name not in LAZY}
    assert RANKS.keys() == rooms, f"FLOW and the tree differ: {RANKS.keys() ^ rooms}"


def test_folders_are_small_enough_to_read():
    folders = {}
    for path in MODULES.values():
        if path.name not in ("__init__.py", "__main__.py"):
            folders.setdefault(path.parent, []).append(path.stem)
    loose = folders.pop(PACKAGE)
    assert len(loose) <= MOST_LOOSE, f"loose at the top: {loose}, expected {MOST_LOOSE} at most"
    for folder, names in folders.items():
        assert len(names) <= MOST_IN_A_FOLDER, f"{folder.name} has {len(names)} modules: {names}"


def test_imports_go_in_no_circle():
    """Inside a room as well, where FLOW does not look."""
    graph = {name: {t for t, _ in own_imports(name) if t} - {name} for name in MODULES}
    graph = {name: targets for name, targets in graph.items() if name not in LAZY}
    while graph:
        free = [name for name, targets in graph.items() if not targets & graph.keys()]
        assert free, f"these modules import each other in a circle: {sorted(graph)}"
        graph = {name: targets for name, targets in graph.items() if name not in free}


@pytest.mark.parametrize(
    ("name", "target", "expected"),
    [
        ("models.layers", "training.run.loop", True),
        ("models.denoisers.unet", "diffusion.schedule", True),
        ("diffusion.samplers", "models.denoisers.unet", True),
        ("clip.tokenizer", "diffusion.samplers", True),
        ("data.examples", "models.autoencoder", False),
        ("data.images", "data.examples", False),
        ("export.export", "pipeline.settings", False),
        ("pipeline.settings", "export.export", True),
    ],
)
def test_the_rule_can_fail(name, target, expected):
    assert trespass(name, target) is expected, f"{name} importing {target}: expected {expected}"


# --- TensorFlow, pickles, asserts, lambdas -------------------------------------------------


@pytest.mark.parametrize("name", MODULES)
def test_tensorflow_stays_in_data_training_and_export(name):
    if any(name == place or name.startswith(f"{place}.") for place in TENSORFLOW):
        return
    lines = [line for target, line in imported(name, TREES[name]) if is_tensorflow(target)]
    assert not lines, f"{name} imports tensorflow at line {lines}; expected only in {TENSORFLOW}"


def is_tensorflow(target):
    return target.split(".")[0] in ("tensorflow", "tensorflow_text", "tensorflow_addons")


@pytest.mark.parametrize("name", MODULES)
def test_nothing_runs_code_from_files(name):
    wrong = [
        f"line {line}: import {target}"
        for target, line in imported(name, TREES[name])
        if target.split(".")[0] in FORBIDDEN_MODULES
    ]
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Attribute) and node.attr == "Lambda":
            wrong.append(f"line {node.lineno}: a Lambda layer")
        if isinstance(node, ast.Name) and node.id in ("Lambda", *FORBIDDEN_CALLS):
            wrong.append(f"line {node.lineno}: {node.id}")
        if isinstance(node, ast.Call):
            wrong += unsafe_arguments(node)
    assert not wrong, f"{name}: {wrong}; expected no pickle, no Lambda, no eval"


def unsafe_arguments(call):
    """Arguments of a call that switch a loader's protection off."""
    unsafe = {"safe_mode": False, "allow_pickle": True}
    for keyword in call.keywords:
        value = getattr(keyword.value, "value", None)
        if keyword.arg in unsafe and value is unsafe[keyword.arg]:
            yield f"line {call.lineno}: {keyword.arg}={value}"


@pytest.mark.parametrize("name", MODULES)
def test_no_assert_in_the_package(name):
    """Wrong input raises an error that says so; `python -O` drops an assert."""
    known = INVARIANTS.get(name, [])
    asserts = [node for node in ast.walk(TREES[name]) if isinstance(node, ast.Assert)]
    lines = [node.lineno for node in asserts if ast.unparse(node.test) not in known]
    assert not lines, f"{name} asserts at lines {lines}; expected an exception with a message"


# --- import latentddpm ---------------------------------------------------------------------


def python(code, cwd):
    """Run code in a fresh interpreter that finds this package; its standard output."""
    path = os.pathsep.join(filter(None, [str(PACKAGE.parent), os.environ.get("PYTHONPATH")]))
    answer = subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, f"expected this to run: {code}\n{answer.stderr}"
    return answer.stdout.strip()


def test_importing_the_package_is_light(tmp_path):
    code = "import sys, latentddpm; latentddpm.__version__; dir(latentddpm); print(*sys.modules)"
    loaded = {name.split(".")[0] for name in python(code, tmp_path).split()}
    heavy = loaded & {"tensorflow", "keras", "keras_hub", "torch", "numpy", "PIL", "pydantic"}
    assert not heavy, f"import latentddpm imports {sorted(heavy)}; expected the standard library"


def test_the_tokenizer_needs_no_tensorflow(tmp_path):
    code = "import sys, latentddpm; latentddpm.CLIPTokenizer(); print(*sys.modules)"
    loaded = {name.split(".")[0] for name in python(code, tmp_path).split()}
    heavy = loaded & {"tensorflow", "keras"}
    assert not heavy, f"the tokenizer imports {sorted(heavy)}; expected NumPy only"


def present(name):
    home = latentddpm._HOMES[name].removeprefix("latentddpm.")
    return home in MODULES


@pytest.mark.parametrize("name", sorted(latentddpm._HOMES))
def test_every_public_name_is_there(name):
    assert present(name), f"{latentddpm._HOMES[name]}, the home of {name}, does not exist"
    value = getattr(latentddpm, name)
    assert getattr(latentddpm, name) is value, f"{name} is another object the second time"
    own = getattr(value, "__module__", None) or value.__name__
    assert own == latentddpm._HOMES[name], f"{name} is from {own}"


def test_all_and_dir_name_what_there_is():
    expected = {*latentddpm._HOMES, "__version__"}
    assert set(latentddpm.__all__) == expected, f"__all__ should hold {sorted(expected)}"
    missing = expected - set(dir(latentddpm))
    assert not missing, f"dir(latentddpm) lacks {sorted(missing)}"


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"'latentddpm' has no attribute 'Latent'"):
        latentddpm.Latent  # noqa: B018


def test_the_version_is_a_release_number():
    parts = latentddpm.__version__.split(".")
    assert len(parts) == 3, f"version {latentddpm.__version__} is not MAJOR.MINOR.PATCH"
    assert all(part.isdigit() for part in parts[:2]), f"odd version {latentddpm.__version__}"
