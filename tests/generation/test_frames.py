"""`generate --frames`, `--animate`: what they show is the way to the very images."""

import numpy as np
import pytest
from command_line import call, refused, succeeds
from PIL import Image
from tiny import quick_model, step_by_step

from latentddpm.generation.frames import spread
from latentddpm.utils.pixels import read_metadata


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("frames") / "model"
    quick_model(text=False).save(folder)
    return folder


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"), np.int16)


def test_a_strip_and_an_animation_lead_to_the_images(model, tmp_path):
    drawn = ["generate", "--model", model, "--steps", 4, "--seed", 3, "--num-images", 2]
    with step_by_step():
        way = ["--frames", 3, "--animate", tmp_path / "way.gif"]
        succeeds(call(*drawn, *way, "--out", tmp_path / "shown"))
        succeeds(call(*drawn, "--out", tmp_path / "plain"))
    for name in ("image-3", "image-4"):
        image = pixels(tmp_path / "shown" / f"{name}.png")
        np.testing.assert_array_equal(image, pixels(tmp_path / "plain" / f"{name}.png"))
        strip = pixels(tmp_path / "shown" / f"{name}-frames.png")
        assert strip.shape == (2 * 32 + 2, 3 * 32 + 2 * 2, 3), f"a strip of {strip.shape}"
        assert np.abs(strip[-32:, -32:] - image).max() <= 1, "the last estimate is the image"
        assert (strip[:32, :32] != strip[-32:, :32]).any(), "expected x_t above the estimate"
    making = read_metadata(tmp_path / "shown" / "image-3-frames.png")
    assert making["frames"] == 3, f"{making}, expected how many levels"
    assert making["frame_timesteps"] == sorted(making["frame_timesteps"], reverse=True)
    with Image.open(tmp_path / "way.gif") as animation:
        assert animation.n_frames == 5, "expected the four steps and the images"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--frames", 1], "--frames 1: of 4 steps that are run, expected 2 to 4"),
        (["--frames", 5], "--frames 5: of 4 steps that are run, expected 2 to 4"),
        (["--animate", "way.mp4"], "--animate way.mp4: expected a file that ends in .gif"),
        (["--frames", 4, "--start-step", 1], "of 3 steps that are run, expected 2 to 3"),
    ],
)
def test_what_cannot_be_shown_is_refused(model, options, said):
    refused(call("generate", "--model", model, "--steps", 4, *options), said)


def test_steps_are_spread_from_the_first_to_the_last():
    assert spread(range(2, 10), 3) == [2, 6, 9]
    assert spread(range(3), 8) == [0, 1, 2], "no step is shown twice"
