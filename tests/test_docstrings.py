"""Docstrings: what public names owe their readers, and how every docstring begins.

A public class or function names its arguments, what it returns and, where it can refuse, what it
raises; a public class has an example, which runs here.
"""

import ast
import doctest
import inspect
import re
from pathlib import Path

import keras
import numpy as np
import pytest
from tiny import step_by_step

import latentddpm
from latentddpm import export, interop, samplers

PACKAGE = Path(latentddpm.__file__).parent
MODULES = ("export", "interop", "samplers", "__version__")
PUBLIC = {
    **{name: getattr(latentddpm, name) for name in latentddpm.__all__ if name not in MODULES},
    **{f"samplers.{name}": getattr(samplers, name) for name in samplers.__all__},
    **{f"interop.{name}": getattr(interop, name) for name in interop.__all__},
    **{f"export.{name}": getattr(export, name) for name in export.__all__},
}
CLASSES = sorted(name for name, value in PUBLIC.items() if inspect.isclass(value))
FUNCTIONS = sorted(name for name, value in PUBLIC.items() if inspect.isfunction(value))
# How a sentence begins that does not name the thing.
QUESTIONS = re.compile(r"(What|Which|Who|Whose|How|Where|Whether|When|Why)\b")


def parameters(value):
    """Names of what a class or function is given."""
    found = inspect.signature(value).parameters.values()
    return [p.name for p in found if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]


def described(text):
    """Names that a docstring describes, alone or several in a row: `height, width: pixels`."""
    names = set()
    for line in text.splitlines():
        if match := re.match(r"\s+((?:\w+, )*\w+):(\s|$)", line):
            names.update(match[1].split(", "))
    return names


def docstrings():
    """Every docstring of the package: where it stands, and its text."""
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, kinds) and (text := ast.get_docstring(node)):
                name = getattr(node, "name", "module")
                yield f"{path.relative_to(PACKAGE)}: {name}", text


@pytest.mark.parametrize("name", CLASSES + FUNCTIONS)
def test_every_argument_is_described(name):
    value = PUBLIC[name]
    text = inspect.getdoc(value) or ""
    plain = inspect.isclass(value) and issubclass(value, Exception)
    missing = [] if plain else [one for one in parameters(value) if one not in described(text)]
    assert text, f"{name} has no docstring"
    assert not missing, f"{name} does not describe {missing}"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_says_what_it_returns(name):
    returned = inspect.signature(PUBLIC[name]).return_annotation
    if returned not in (None, "None"):
        assert "Returns:" in inspect.getdoc(PUBLIC[name]), f"{name} does not say what it returns"


@pytest.mark.parametrize("name", CLASSES)
def test_the_example_of_a_class_runs(name, tmp_path, monkeypatch):
    value = PUBLIC[name]
    monkeypatch.chdir(tmp_path)
    keras.utils.set_random_seed(0)
    names = {"latentddpm": latentddpm, "keras": keras, "np": np}
    (test,) = doctest.DocTestFinder(recurse=False).find(value, name, globs=names)
    assert test.examples, f"{name} has no example (lines that begin with >>>)"
    said = []
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    with step_by_step():  # they train a step or two
        doctest.DocTestRunner(optionflags=flags).run(test, out=said.append)
    assert not said, f"the example of {name}:\n{''.join(said)}"


def test_docstrings_begin_with_the_name_of_the_thing():
    wrong = [f"{where}: {text[:60]}" for where, text in docstrings() if QUESTIONS.match(text)]
    assert not wrong, "docstrings that begin with a question word:\n" + "\n".join(wrong)
