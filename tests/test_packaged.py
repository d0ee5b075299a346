"""What ships with the package is found in a wheel and in the repository; the wheel has it all."""

import ast
from pathlib import Path

import pytest

from latentddpm import packaged
from latentddpm.config import AutoencoderRun
from latentddpm.config_file import as_config, find_config, load_config, ready_configs
from latentddpm.errors import UserError
from latentddpm.packaged import PATTERNS, packaged_files, packaged_folders

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A package in `site-packages`, beside a folder `docs` of another package."""
    package = tmp_path / "site-packages" / "latentddpm"
    (package / "configs").mkdir(parents=True)
    (package / "configs" / "one.yaml").write_text("data:\n  resolution: 32\n", "utf-8")
    (package.parent / "docs").mkdir()
    (package.parent / "docs" / "strange.md").write_text("# Of another package\n", "utf-8")
    monkeypatch.setattr(packaged, "PACKAGE", package)
    return package


def test_a_wheel_has_its_own_folders_and_takes_no_neighbour_s(installed):
    assert packaged_folders("configs") == [installed / "configs"], "expected those in the package"
    assert packaged_folders("docs") == [], "expected nothing of another package's docs/"
    assert list(ready_configs()) == ["one"], "expected the configuration in the package"


def test_the_repository_has_them_beside_the_package(installed):
    (installed.parent / packaged.REPOSITORY).write_text("", "utf-8")
    expected = [installed.parent / "docs"]
    assert packaged_folders("docs") == expected, "expected docs/ beside pyproject.toml"


def test_the_wheel_holds_all_that_is_looked_for():
    """`hatch_build.py` is read, not imported: it needs the build's own packages."""
    tree = ast.parse((ROOT / "hatch_build.py").read_text("utf-8"))
    (shipped,) = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and node.targets[0].id == "SHIPPED"
    ]
    for kind, patterns in PATTERNS.items():
        assert shipped[kind] == patterns, f"{kind}: the wheel has {shipped[kind]}"
        assert packaged_files(kind), f"no {kind} found in the repository"
    assert shipped["weights"] == ("**/*",), "expected all of weights/ in the wheel"


@pytest.mark.parametrize(
    "name", ["small-64-vae", "small-64-vae.yaml", "configs/small-64-vae.yaml"]
)
def test_a_ready_configuration_is_found_anywhere(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected = ROOT / "configs" / "small-64-vae.yaml"
    assert find_config(name) == expected, f"expected {name} to be the one that ships"
    config = as_config(AutoencoderRun, name)
    assert config.autoencoder.channels == 32, "expected the settings of the file"


def test_a_file_of_the_user_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("small-64-vae").write_text("data:\n  resolution: 16\n", "utf-8")
    assert load_config(AutoencoderRun, "small-64-vae").data.resolution == 16, "expected the file"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("smal-64-vae", "did you mean 'small-64-vae'?"),
        ("configs/smal-64-vae.yaml", "did you mean 'small-64-vae'?"),
        ("zzz", "latentddpm configs lists"),
        ("runs/small-64-vae", "no such config file"),
        ("folder", "is a folder"),
    ],
)
def test_a_configuration_that_is_not_there_is_refused(name, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    with pytest.raises(UserError, match=r"\S") as error:
        find_config(name)
    assert words in str(error.value), f"expected {words!r} in {error.value}"
