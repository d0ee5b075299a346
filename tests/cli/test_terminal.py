"""The terminal: completion by the shells, colours, commands in groups, the page of an error."""

import os
import shutil
import subprocess
import sys

import click
import pytest
from click.shell_completion import get_completion_class
from command_line import call, refused, succeeds

from latentddpm.choices import SAMPLERS
from latentddpm.cli import GROUPS, main
from latentddpm.cli.help.completion import SHELLS
from latentddpm.cli.help.pages import page_of
from latentddpm.cli.usage import wants_colour
from latentddpm.config_file import ready_configs
from latentddpm.errors import UserError
from latentddpm.packaged import PACKAGE

VARIABLE = "_LATENTDDPM_COMPLETE"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    (tmp_path / "mine.yaml").write_text("", "utf-8")
    monkeypatch.chdir(tmp_path)
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)


def completed(shell, *words, monkeypatch):
    """What a shell is answered for words of which the last is incomplete: (type, value)."""
    line = " ".join(["latentddpm", *(word for word in words if word)])
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", words[-1] if shell == "fish" else str(len(words)))
    answer = get_completion_class(shell)(main, {}, "latentddpm", VARIABLE).complete()
    if shell == "zsh":
        lines = answer.splitlines()
        return list(zip(lines[::3], lines[1::3], strict=False))
    return [tuple(line.split("\t")[0].split(",", 1)) for line in answer.splitlines()]


CASES = [
    (("",), [("plain", name) for names in GROUPS.values() for name in [n.name for n in names]]),
    (
        ("train-vae", "--config", "small"),
        [("plain", "small-64-diffusion"), ("plain", "small-64-vae"), ("file", "small")],
    ),
    (("generate", "--model", "emo"), [("plain", "emoji-128"), ("file", "emo")]),
    (("generate", "--sampler", "dpm"), [("plain", "dpmpp_2m"), ("plain", "dpmpp_2m_sde")]),
    (("generate", "--sampler", ""), [("plain", name) for name in SAMPLERS]),
    (("train-vae", "--set", "training.preci"), [("plain", "training.precision=")]),
    (("train-diffusion", "--set", "unet.ki"), [("plain", "unet.kind=")]),
    (("train-vae", "--set", "unet.ki"), []),
    (("help", "fine"), [("plain", "fine-tuning")]),
    (("configs", "vae"), [("plain", "vae-perceptual-gan"), ("file", "vae")]),
    (("unknown", "x"), []),
]  # fmt: skip


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(("words", "expected"), CASES, ids=str)
def test_completion(shell, words, expected, monkeypatch):
    found = completed(shell, *words, monkeypatch=monkeypatch)
    if shell == "zsh":  # a key gets no blank after it
        expected = [("key" if value[-1:] == "=" else kind, value) for kind, value in expected]
    assert found == expected, f"{shell} {words}: {found}, expected {expected}"


def test_values_of_settings_are_completed_however_the_shell_cuts(monkeypatch):
    whole = ("train-vae", "--set", "training.precision=b")
    cut = ("train-vae", "--set", "training.precision", "=", "b")
    for shell in ("zsh", "fish"):
        found = completed(shell, *whole, monkeypatch=monkeypatch)
        assert found == [("plain", "training.precision=bfloat16")], f"{shell}: {found}"
    found = completed("bash", *cut, monkeypatch=monkeypatch)
    assert found == [("plain", "bfloat16")], f"bash: {found}, expected what follows ="
    found = completed("bash", *cut[:-1], monkeypatch=monkeypatch)
    assert len(found) == 4, f"bash: {found}, expected all four values"


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_of_a_shell_is_one(shell, tmp_path):
    script = succeeds(call("--completion", shell)).stdout
    assert f"{VARIABLE}={shell}_complete" in script, "expected it to ask the program"
    if program := shutil.which(shell):
        (tmp_path / "script").write_text(script, "utf-8")
        subprocess.run([program, "-n", str(tmp_path / "script")], check=True)


@pytest.mark.skipif(not shutil.which("bash"), reason="there is no bash")
def test_bash_completes(tmp_path):
    """The real shell, with a program that is this package: words and files side by side."""
    program = tmp_path / "bin" / "latentddpm"
    program.parent.mkdir()
    code = "import sys; sys.argv[0] = 'latentddpm'; from latentddpm.cli import main; main()"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{code}" "$@"\n', "utf-8")
    program.chmod(0o755)
    (tmp_path / "small.yaml").write_text("", "utf-8")
    script = succeeds(call("--completion", "bash")).stdout
    ask = "COMP_WORDS=(latentddpm train-vae --config sm); COMP_CWORD=3\n"
    ask += "compopt() { :; }\n_latentddpm_completion latentddpm sm --config\n"
    ask += 'echo "${COMPREPLY[*]}"\n'
    done = subprocess.run(
        ["bash", "-c", script + ask],
        env={**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}"}
        | {"PYTHONPATH": str(PACKAGE.parent)},
        capture_output=True,
        text=True,
        check=True,
    )
    expected = [name for name in ready_configs() if name.startswith("sm")] + ["small.yaml"]
    assert done.stdout.split() == expected, f"{done.stdout} {done.stderr}, expected {expected}"


def test_an_unknown_shell_is_refused():
    refused(call("--completion", "tcsh"), "--completion", "'tcsh'", "'bash'")


# --- Colours -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"NO_COLOR": "1"}, False),
        ({"NO_COLOR": ""}, None),
        ({"TERM": "dumb"}, False),
        ({"FORCE_COLOR": "1"}, True),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False),
    ],
)
def test_the_environment_decides_on_colours(environment, expected):
    found = wants_colour(environment)
    assert found is expected, f"{environment}: {found}, expected {expected}"


def test_an_error_is_coloured_where_it_is_wanted(monkeypatch):
    plain = call("info", "nothing").stderr
    assert "\x1b" not in plain, f"expected no colours in a pipe: {plain!r}"
    monkeypatch.setenv("FORCE_COLOR", "1")
    coloured = call("info", "nothing").stderr
    assert "\x1b[31m" in coloured, f"expected red: {coloured!r}"
    assert click.unstyle(coloured) == plain, "expected the same words"


# --- Groups and pages ----------------------------------------------------------------------


def test_help_lists_every_command_in_its_group():
    text = succeeds(call("--help")).stdout
    listed = [name for names in GROUPS.values() for name in [one.name for one in names]]
    assert sorted(listed) == sorted(main.commands), "expected every command in one group"
    for title, commands in GROUPS.items():
        block = text.partition(f"\n{title}:\n")[2].partition("\n\n")[0]
        words = [line.split()[0] for line in block.splitlines()]
        expected = [one.name for one in commands]
        assert words == expected, f"{title}: {words}, expected {expected}"
        cut = [line for line in block.splitlines() if line.endswith("...")]
        assert not cut, f"expected sentences that fit a terminal of 80 columns: {cut}"


def error_of(function, *arguments):
    with pytest.raises(UserError) as caught:
        function(*arguments)
    return caught.value


def test_the_page_is_that_of_the_room_else_of_the_command():
    from latentddpm.config_file import find_config
    from latentddpm.data.sources.open import open_source
    from latentddpm.distribution.processes import parse_strategy

    for function, argument, page in (
        (find_config, "nothing", "configurations"),
        (open_source, "nothing", "data"),
        (parse_strategy, "mirrored:0", "distributed"),
    ):
        found = page_of(error_of(function, argument), "generate")
        assert found == page, f"{function.__name__}: {found}, expected {page}"
    assert page_of(UserError("from nowhere"), "generate") == "generate", "expected the command's"
    assert page_of(UserError("from nowhere"), "unknown") == "", "expected no page"


def test_an_error_ends_with_its_page():
    done = call("train-vae", "--data", "photos", "--config", "zzz", "--out", "run")
    refused(done, "; see latentddpm help configurations")
    assert done.stderr.endswith("help configurations\n"), f"expected it last: {done.stderr}"
    refused(call("generate", "--model", "zzz", "--prompt", "x"), "; see latentddpm help generate")


# --- info ----------------------------------------------------------------------------------


def test_info_without_a_path_describes_the_machine():
    text = succeeds(call("info")).stdout
    for word in ("latentddpm ", "python ", "tensorflow ", "onnxruntime ", "processor ", "memory "):
        assert word in text, f"expected {word!r} in {text}"
    refused(call("info", "--plot", "x.png"), "--plot", "runs")


def test_the_extras_are_those_of_the_project(monkeypatch):
    from packaging.requirements import Requirement

    from latentddpm.info import machine

    needed, extras = machine.requirements()
    assert {"keras", "tensorflow", "click"} <= {one.name for one in needed}, "expected the core"
    assert extras.keys() == {*machine.EXTRAS, *machine.DEVELOPERS}, "expected a use for each extra"
    absent = Requirement("latentddpm-not-there>=1")
    assert machine.missing(absent, {}) == [absent.name], "expected it to be missing"
    old = Requirement("click<1")
    assert "found" in machine.missing(old, {})[0], "expected the version to be too new"
    assert machine.missing(Requirement("click>=8"), {}) == [], "expected it to be there"
    nested = Requirement("latentddpm[plot]")
    found = machine.missing(nested, {"plot": [absent]})
    assert found == [absent.name], f"expected what the other extra lacks, got {found}"
