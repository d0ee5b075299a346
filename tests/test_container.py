"""The image and the files that use it name what exists: sources, commands, options, user."""

import re
import shlex
from pathlib import Path

import click
import pytest
import yaml

from latentddpm.cli import main

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text("utf-8"))
KUBERNETES = {
    path.name: list(yaml.safe_load_all(path.read_text("utf-8")))
    for path in sorted((ROOT / "examples").glob("kubernetes*.yaml"))
}


def instructions(name, stage=None):
    """Arguments of all instructions of a kind, in a stage or in all, lines put together."""
    now = None
    for line in DOCKERFILE.replace("\\\n", " ").splitlines():
        word, _, rest = line.strip().partition(" ")
        if word == "FROM":
            now = rest.split()[-1]
        if word == name and stage in (None, now):
            yield rest.strip()


def pods():
    """Every pod that an example starts, with the file it is in."""
    for name, documents in KUBERNETES.items():
        for one in documents:
            if one["kind"] in ("Job", "Deployment"):
                yield name, one["spec"]["template"]["spec"]


def parses(words):
    """The command line exists, options and all."""
    name, *arguments = words
    command = main.commands[name]
    _, rest, _ = command.make_parser(click.Context(command)).parse_args(list(map(str, arguments)))
    takes = [one for one in command.params if isinstance(one, click.Argument)]
    assert len(rest) <= len(takes), f"{name} takes no {rest}"


def test_what_is_copied_exists_and_is_not_ignored():
    kept = [
        line[1:].partition("/")[0]
        for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines()
        if line.startswith("!")
    ]
    for arguments in instructions("COPY"):
        *sources, _ = shlex.split(arguments)
        for source in sources:
            assert (ROOT / source).exists(), f"the Dockerfile copies {source}, which is not there"
            assert source in kept, f".dockerignore keeps {source} from the Dockerfile"


def test_the_build_has_all_that_the_wheel_is_made_of():
    copied = {one for line in instructions("COPY") for one in shlex.split(line)[:-1]}
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    hook = (ROOT / "hatch_build.py").read_text("utf-8")
    shipped = set(re.findall(r'^    "(\w+)": \(', hook, re.MULTILINE))
    needed = {"pyproject.toml", "latentddpm", "LICENSE", "hatch_build.py", *shipped}
    needed |= set(re.findall(r'^readme = "([\w.]+)"', project, re.MULTILINE))
    assert shipped, "expected hatch_build.py to name what ships"
    assert needed <= copied, f"the Dockerfile does not copy {sorted(needed - copied)}"


@pytest.mark.parametrize("stage", ["cpu", "gpu"])
def test_nobody_is_root(stage):
    *_, user = instructions("USER", stage)
    assert user.split(":")[0] not in ("root", "0"), f"{stage} runs as {user}"


def test_the_extras_of_the_image_exist():
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    extras = re.findall(r"\.whl\)\[([\w,-]+)\]", DOCKERFILE)
    assert len(extras) == 2, f"expected the extras of two images, got {extras}"
    for extra in {one for group in extras for one in group.split(",")}:
        assert re.search(rf"^{extra} = \[", project, re.M), f"pyproject.toml has no extra {extra}"


def test_the_image_runs_a_command_that_exists():
    (entry,) = instructions("ENTRYPOINT")
    (command,) = instructions("CMD", "base")
    assert yaml.safe_load(entry) == ["latentddpm"], "expected the program as entry point"
    parses(yaml.safe_load(command))


def test_no_token_is_written_down_or_on_a_command_line():
    for name in ("Dockerfile", "compose.yaml", *(f"examples/{one}" for one in KUBERNETES)):
        text = (ROOT / name).read_text("utf-8")
        assert "--token" not in text, f"{name} shows the token on a command line"
    for name, service in COMPOSE["services"].items():
        given = service["environment"]["LATENTDDPM_TOKEN"]
        assert given.startswith("${LATENTDDPM_TOKEN:?"), (
            f"{name}: {given}, expected none by default"
        )


def test_compose_builds_the_images_that_exist_and_opens_one_port():
    for name, service in COMPOSE["services"].items():
        target = service["build"]["target"]
        assert service["image"] == f"latentddpm:{target}", (
            f"{name} is another image than its target"
        )
        assert re.search(rf"^FROM \S+ AS {target}$", DOCKERFILE, re.M), f"no stage {target}"
        (port,) = service["ports"]
        assert port.startswith("127.0.0.1:"), f"{name} answers other machines: {port}"
        (exposed,) = instructions("EXPOSE")
        assert port.endswith(f":{exposed}"), f"{name} publishes {port}, the image has {exposed}"


def test_pods_run_commands_of_the_image_as_no_root():
    found = list(pods())
    assert len(found) == 2, f"expected a training and a page, got {len(found)}"
    for name, pod in found:
        assert pod["securityContext"]["runAsNonRoot"], f"{name} may run as root"
        (container,) = pod["containers"]
        assert container["image"] == "latentddpm:gpu", f"{name}: {container['image']}"
        words = container["args"]
        if container.get("command"):  # a shell's script
            line = words[0].replace("\\\n", " ").strip().splitlines()[-1]
            words = shlex.split(line.partition("latentddpm ")[2])
        parses(words)
        limits = container["resources"]["limits"]
        assert limits, f"{name} asks for no device"


def test_the_slurm_example_runs_a_command_of_the_image():
    text = (ROOT / "examples/slurm.sbatch").read_text("utf-8").replace("\\\n", " ")
    (line,) = re.findall(r"\.sif\s+latentddpm (.*)'$", text, re.M)
    parses(shlex.split(line))
