"""`examples/digits.py`: the course runs to its end, and writes digits to train on."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import step_by_step

from latentddpm.config import DiffusionRun
from latentddpm.config_file import load_config
from latentddpm.training.diffusion_networks import build_networks
from latentddpm.training.plan.settle import dry_diffusion

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("digits", ROOT / "examples" / "digits.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_every_lesson_leaves_its_picture(example, tmp_path, monkeypatch):
    monkeypatch.setattr(example, "SAMPLES", 16)
    with step_by_step():
        numbers = example.main(tmp_path, steps=1)
    pictures = sorted(path.name for path in tmp_path.glob("*.png"))
    assert len(pictures) == 4, f"{pictures}, expected one for each of the lessons 1 to 4"
    sure, labels = numbers["held-out digits"]
    assert sure > 0.9, f"the judge is sure of {sure:.0%} of real digits, expected more than 90 %"
    assert labels == 10, f"{labels} labels of real digits, expected all ten"


@pytest.fixture(scope="module")
def folder(example, tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    example.write_images(folder, 28)
    return folder


def test_its_digits_are_gray_pictures(folder):
    files = sorted(folder.rglob("*.png"))
    assert len(files) == 1434, f"{len(files)} files, expected the digits that are not held back"
    with Image.open(files[0]) as image:
        assert (image.mode, image.size) == ("L", (28, 28))
        assert np.asarray(image).max() > 200, "expected bright strokes"


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("basic", 309_057), ("unet2d", 1_707_009), ("flow", 1_707_009), ("classic", 5_211_809)],
)
def test_the_configurations_have_the_networks_of_the_lessons(folder, name, parameters):
    config = load_config(DiffusionRun, ROOT / "configs" / f"digits-{name}.yaml")
    config, sources = dry_diffusion(config, folder, "none")
    unet, text_encoder, _ = build_networks(config, sources)
    assert unet.count_params() == parameters, f"{unet.count_params():,}, expected {parameters:,}"
    assert text_encoder is None, "expected no text"
