"""The models that ship: whole, small enough, and showing what is asked for."""

from pathlib import Path

import numpy as np
import pytest
from conftest import EMOJI

from latentddpm.data.images import read_image
from latentddpm.evaluation.metrics.similarity import psnr
from latentddpm.generation.generate import DEFAULT_MODEL
from latentddpm.models.archive import load_archive
from latentddpm.models.autoencoder.autoencoder import Autoencoder
from latentddpm.pipeline.latent_diffusion import LatentDiffusion
from latentddpm.pipeline.model_folder import MANIFEST, read_model_folder
from latentddpm.utils.pixels import to_pixels

WEIGHTS = Path(__file__).resolve().parents[2] / "weights"
READY = sorted(path.parent for path in WEIGHTS.glob(f"*/{MANIFEST}"))


@pytest.fixture(scope="module")
def emoji():
    return LatentDiffusion.load(WEIGHTS / DEFAULT_MODEL)


@pytest.mark.parametrize("folder", READY, ids=lambda path: path.name)
def test_a_ready_model_is_whole_and_small(folder):
    read_model_folder(folder)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert size <= 40_000_000, f"{folder.name} has {size:,} bytes, allowed 40 MB"
    card = (folder / "README.md").read_text("utf-8")
    for word in ("licence", "Noto", "Twemoji", "Fluent", "does not work"):
        assert word in card, f"{folder.name}: its card should say {word!r}"


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


def test_both_models_mean_the_same_by_a_latent():
    """One UNet serves both; half of what emoji-128 decodes is what emoji-64 does."""
    small, large = (read_model_folder(WEIGHTS / name) for name in ("emoji-64", "emoji-128"))
    for part in ("unet", "text_encoder"):
        same = small.file(part).read_bytes() == large.file(part).read_bytes()
        assert same, f"{part}: expected one file in both folders"
    small, large = (load_archive(folder.file("vae"), Autoencoder) for folder in (small, large))
    files = sorted(EMOJI.rglob("*.png"))[::10]
    decoded = []
    for file in files:
        content = file.read_bytes()
        images = [np.float32(read_image(content, side))[None] / 127.5 - 1 for side in (64, 128)]
        latents = small.to_latents(small.encode(images[0])[0])
        other = np.asarray(large.to_latents(large.encode(images[1])[0]))
        error = np.sqrt(np.mean((np.asarray(latents) - other) ** 2))
        assert error < 0.1, f"{file.name}: latents of deviation 1 differ by {error:.3f}"
        half = to_pixels(large.decode(latents)).reshape(1, 64, 2, 64, 2, 3).mean(axis=(2, 4))
        decoded.append(psnr(np.uint8(half.round()), to_pixels(small.decode(latents)))[0])
    assert min(decoded) > 25, f"expected the same pictures, PSNR is {np.round(decoded, 1)} dB"
