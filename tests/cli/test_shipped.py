"""`configs` and `help`: what ships with the package, from any folder and without Keras."""

import json
import os
import subprocess
import sys

import jsonschema
import pytest
import yaml
from command_line import call, refused, succeeds

from latentddpm.cli import main
from latentddpm.cli.help.pages import OF_COMMAND, OF_ROOM
from latentddpm.config import COMMANDS
from latentddpm.config_file import ready_configs
from latentddpm.packaged import PACKAGE, packaged_files


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_configs_lists_each_below_its_command():
    blocks = succeeds(call("configs")).stdout.split("\n\n")
    assert len(blocks) == len(COMMANDS), "expected a block for each command"
    for name in ready_configs():
        (block,) = [one for one in blocks if f"\n  {name} " in one]
        command = "train-vae" if "vae" in name else "train-diffusion"
        assert command in block.splitlines()[0], f"{name} stands below another command"


def test_configs_prints_a_file_as_it_is():
    text = succeeds(call("configs", "small-64-vae")).stdout
    expected = ready_configs()["small-64-vae"].read_text("utf-8")
    assert text == expected, "expected the file with its comments"


@pytest.mark.parametrize("command", [*COMMANDS, None])
def test_configs_prints_a_schema_that_takes_what_ships(command):
    schema = json.loads(succeeds(call("configs", "--schema", *filter(None, [command]))).stdout)
    name = "small-64-diffusion" if command == "train-diffusion" else "small-64-vae"
    config = yaml.safe_load(ready_configs()[name].read_text("utf-8"))
    jsonschema.Draft202012Validator(schema).validate(config)
    assert schema["$schema"].startswith("https://json-schema.org/"), "expected its dialect"


def test_unknown_names_are_refused_with_the_nearest():
    refused(call("configs", "smal-64-vae"), "did you mean 'small-64-vae'?")
    refused(call("configs", "--schema", "train-va"), "did you mean 'train-vae'?")
    refused(call("configs", "small-64-vae", "--schema"), "--schema", "no NAME")
    refused(call("help", "checkpoint"), "did you mean 'checkpoints'?")


def test_a_training_takes_a_ready_configuration_by_name():
    """It is refused for its data: the configuration was found before."""
    wrong = call("train-vae", "--data", "nothing", "--config", "small-64-vae", "--out", "run")
    refused(wrong, "nothing")
    wrong = call("train-vae", "--data", "x", "--config", "small-64-diffusion", "--out", "run")
    refused(wrong, "small-64-diffusion: this is one of train-diffusion")


def test_help_lists_and_prints_the_pages():
    text = succeeds(call("help")).stdout
    missing = [name for name in packaged_files("docs") if f"  {name} " not in text]
    assert not missing, f"help does not list {missing}"
    page = packaged_files("docs")["data"].read_text("utf-8")
    assert succeeds(call("help", "data")).stdout.strip() == page.strip(), "expected the page"
    by_command = succeeds(call("help", "train-vae")).stdout
    assert by_command.startswith("# The autoencoder"), "expected the page of the command"


def test_every_command_and_room_that_has_a_page_exists():
    pages = packaged_files("docs")
    for table in (OF_COMMAND, OF_ROOM):
        missing = {name: page for name, page in table.items() if page not in pages}
        assert not missing, f"pages that are not there: {missing}"
    without = set(main.commands) - OF_COMMAND.keys() - {"help"}
    assert not without, f"commands without a page: {sorted(without)}"
    for room in OF_ROOM:
        place = PACKAGE.joinpath(*room.split("."))
        assert place.is_dir() or place.with_suffix(".py").is_file(), f"no module {room}"


LINES = [["configs"], ["configs", "--schema"], ["help", "data"], ["info"]]
ANSWERS = """
import json, sys
from latentddpm.cli import main
for line in json.loads(sys.argv[1]):
    try: main(line)
    except SystemExit as end: print("code", end.code)
print("modules", *sys.modules)
"""


def test_they_answer_without_keras():
    done = subprocess.run(
        [sys.executable, "-c", ANSWERS, json.dumps(LINES)],
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)},
        capture_output=True,
        text=True,
        check=True,
    )
    *_, modules = done.stdout.splitlines()
    codes = [line for line in done.stdout.splitlines() if line.startswith("code ")]
    assert codes == ["code 0"] * len(LINES), f"expected all to succeed: {codes} {done.stderr}"
    heavy = {name.split(".")[0] for name in modules.split()} & {"keras", "tensorflow"}
    assert not heavy, f"{LINES} import {sorted(heavy)}; expected neither"
