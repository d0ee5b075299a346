"""`examples/train_in_python.py`: from a folder of images to a model that `generate` can use."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from tiny import step_by_step

import latentddpm

TESTS = Path(__file__).resolve().parents[1]
EXAMPLE = TESTS.parent / "examples" / "train_in_python.py"


@pytest.mark.slow
def test_it_leaves_a_model_that_generates(tmp_path):
    spec = importlib.util.spec_from_file_location("train_in_python", EXAMPLE)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    with step_by_step():  # the two graphs would take longer to trace than all else
        loss = example.main(str(TESTS / "assets" / "emoji"), str(tmp_path / "model"), steps=2)
    assert 0 < loss < 10, f"expected a mean squared error of unit latents, got {loss}"
    model = latentddpm.LatentDiffusion.load(tmp_path / "model")
    images = model.generate(["red apple", "cat"], seed=0, num_steps=2)
    assert images.shape == (2, example.RESOLUTION, example.RESOLUTION, 3)
    assert np.any(images[0] != images[1]), "expected two seeds and prompts to differ"
