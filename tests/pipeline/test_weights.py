"""The model that ships: whole, small enough, and showing what is asked for."""

from pathlib import Path

import numpy as np
import pytest

from latentddpm.generation.plan import DEFAULT_MODEL
from latentddpm.pipeline.latent_diffusion import LatentDiffusion
from latentddpm.pipeline.model_folder import MANIFEST, read_model_folder

WEIGHTS = Path(__file__).resolve().parents[2] / "weights"
READY = sorted(path.parent for path in WEIGHTS.glob(f"*/{MANIFEST}"))


@pytest.fixture(scope="module")
def emoji():
    return LatentDiffusion.load(WEIGHTS / DEFAULT_MODEL)


def test_one_model_ships_whole_and_small():
    (folder,) = READY
    assert folder.name == DEFAULT_MODEL, f"weights/ holds {folder.name}, not the default model"
    read_model_folder(folder)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert size <= 40_000_000, f"{folder.name} has {size:,} bytes, allowed 40 MB"
    card = (folder / "README.md").read_text("utf-8")
    for word in ("licence", "Noto", "Twemoji", "Fluent", "does not work"):
        assert word in card, f"{folder.name}: its card should say {word!r}"


@pytest.mark.slow
def test_the_words_reach_the_picture(emoji):
    prompts = ["red heart", "green heart", "blue heart"]
    pixels = emoji.generate(prompts, seed=[5, 5, 5]).astype(float)
    assert pixels.shape == (3, 128, 128, 3)
    colours = pixels[:, 40:88, 40:88].mean(axis=(1, 2))  # the middle, (3, RGB)
    assert np.argmax(colours[0]) == 0, f"a red heart should be red, RGB is {colours[0]}"
    assert np.argmax(colours[1]) == 1, f"a green heart should be green, RGB is {colours[1]}"
    assert np.argmax(colours[2]) == 2, f"a blue heart should be blue, RGB is {colours[2]}"
    corners = pixels[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert corners.min() > 200, f"the background should be white, corners are {corners.min()}"


@pytest.mark.slow
def test_seeds_and_styles_make_a_difference(emoji):
    plain = emoji.generate("red apple", num_images=2, seed=0).astype(float)
    styled = emoji.generate("red apple, fluent 3d style", seed=0).astype(float)
    assert np.abs(plain[0] - plain[1]).mean() > 3, "two seeds should give two pictures"
    assert np.abs(plain[0] - styled[0]).mean() > 1, "a style should change the picture"
