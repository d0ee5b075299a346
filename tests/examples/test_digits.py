"""`examples/digits.py`: the course runs to its end, and writes digits to train on."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import step_by_step

from latentddpm.config import DiffusionRun
from latentddpm.config_file import load_config
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


def test_its_digits_are_what_the_configurations_train_on(example, tmp_path):
    example.write_images(tmp_path / "digits", 28)
    files = sorted((tmp_path / "digits").rglob("*.png"))
    assert len(files) == 1434, f"{len(files)} files, expected the digits that are not held back"
    with Image.open(files[0]) as image:
        assert (image.mode, image.size) == ("L", (28, 28))
        assert np.asarray(image).max() > 200, "expected bright strokes"
    config = load_config(DiffusionRun, ROOT / "configs" / "digits-unet2d.yaml")
    config, sources = dry_diffusion(config, tmp_path / "digits", "none")
    assert sources.first_stage.latent_channels(config.data) == 1, "expected gray, from the data"
