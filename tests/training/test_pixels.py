"""The pixel format of a run: found in the data, said, and refused where something is lost."""

import json

import numpy as np
import pytest
from command_line import call
from PIL import Image
from tiny import quick_model, step_by_step, tiny_autoencoder

from latentddpm.errors import UserError
from latentddpm.evaluation.autoencoder import evaluate_autoencoder
from latentddpm.evaluation.images import spread_images
from latentddpm.pipeline.latent_diffusion import LatentDiffusion
from latentddpm.pipeline.model_folder import read_model_folder
from latentddpm.training.autoencoder import train_planned
from latentddpm.training.plan.plan import plan_diffusion, plan_vae
from latentddpm.training.run.contract import Contract
from latentddpm.utils.images.pixel_format import PixelFormat

SIDE = 16
DATA = {"resolution": SIDE, "validation_fraction": 0.4}
TINY = {
    "autoencoder": {
        **{"channels": 4, "channel_multipliers": [1], "num_res_blocks": 1, "norm_groups": 2}
    },
    "training": {"num_steps": 2, "batch_size": 2, "precision": "float32"},
}


def folder(place, *images):
    """A folder of images: arrays of floats as .npy, whole numbers as PNG."""
    place.mkdir()
    for number, image in enumerate(images):
        image = np.asarray(image)
        if image.dtype.kind == "f" or image.shape[2:] not in ((), (3,), (4,)):
            np.save(place / f"{number}.npy", image)
        else:
            Image.fromarray(image).save(place / f"{number}.png")
    return place


def noise(*shape, top=255, dtype=np.uint8, count=4):
    draw = np.random.default_rng(0)
    return [(draw.random((SIDE, SIDE, *shape)) * top).astype(dtype) for _ in range(count)]


def plan(tmp_path, data, **settings):
    config = {**TINY, "data": {**DATA, **settings}}
    return plan_vae(config, data, tmp_path / "run", quiet=True)


GRAY, RGB, RGBA = noise(), noise(3), noise(4)
DEEP = noise(top=65535, dtype=np.uint16)
NUMBERS = noise(top=3000, dtype=np.float32)
FIVE = noise(5, top=1, dtype=np.float32)


@pytest.mark.parametrize(
    ("images", "settings", "expected", "said"),
    [
        (GRAY, {}, PixelFormat(1), ["gray, 8 bits"]),
        (RGB, {}, PixelFormat(), []),
        (GRAY + RGB, {}, PixelFormat(), []),
        (RGBA, {}, PixelFormat(), []),
        (RGBA, {"channels": 4}, PixelFormat(4), ["RGBA, 8 bits"]),
        (DEEP, {}, PixelFormat(1, 16), ["gray, 16 bits"]),
        (
            GRAY + DEEP,
            {},
            PixelFormat(1),
            ["gray, 8 bits", "4 images of 16 bits are reduced to 8"],
        ),
        (FIVE, {}, PixelFormat(5, "float"), ["5 channels, floating point"]),
        (GRAY, {"channels": 3}, PixelFormat(), ["all images are gray, repeated in RGB"]),
        (RGB, {"channels": 1}, PixelFormat(1), ["gray, 8 bits", "colour is lost: 4 of 4 images"]),
        (
            GRAY,
            {"bit_depth": 16},
            PixelFormat(1, 16),
            ["gray, 16 bits", "gain nothing by 16 bits"],
        ),
        (
            NUMBERS,
            {"window": [0, 1500.0]},
            PixelFormat(1, "float", (0, 1500)),
            ["gray, floating point, 0 … 1500", "clips 5"],
        ),
        (NUMBERS, {"window": [-9, 3000]}, PixelFormat(1, "float", (-9, 3000)), ["gray, floating"]),
    ],
    ids=[
        *("gray", "rgb", "both", "transparent", "rgba", "16 bits", "8 and 16 bits", "five"),
        *("gray as rgb", "rgb as gray", "8 as 16 bits", "clipped", "window"),
    ],
)
def test_the_format_is_that_of_the_data_and_its_losses_are_said(
    tmp_path, images, settings, expected, said
):
    made = plan(tmp_path, folder(tmp_path / "data", *images), **settings)
    assert PixelFormat.of(made.run.config.data) == expected
    assert made.dataset.image(0, 8).shape == (8, 8, expected.channels)
    lines = [line for line in made.notes if line.startswith("pixels")]
    assert len(lines) == len(said), lines
    for line, words in zip(lines, said, strict=True):
        assert words in line


@pytest.mark.parametrize(
    ("images", "settings", "message"),
    [
        (FIVE + noise(2, count=1), {}, r"4.npy: 2 channels, but .*0.npy has 5; expected the same"),
        (FIVE, {"channels": 3}, r"0.npy: 5 channels, expected 3 .* or set data.channels=5"),
        (NUMBERS, {}, r"numbers from .* expected 0 … 1; .*data.window=\[0\.\d+, 29\d\d"),
        (NUMBERS, {"window": [5000, 6000]}, r"data.window: \[5000, 6000\], but all values are in"),
        (GRAY, {"window": [0, 300]}, r"data.window: .*whole numbers in 0 … 255"),
        (DEEP, {"background": "random"}, "random colours lie behind RGB of 8 bits"),
    ],
    ids=["mixed", "five as rgb", "no window", "elsewhere", "300 of 255", "random"],
)
def test_what_does_not_fit_is_refused(tmp_path, images, settings, message):
    with pytest.raises(UserError, match=message):
        plan(tmp_path, folder(tmp_path / "data", *images), **settings)


def test_colour_under_a_gray_model_has_to_be_asked_for(tmp_path):
    gray = tiny_autoencoder(channel_multipliers=(1, 1), num_res_blocks=0, image_channels=1)
    LatentDiffusion(gray, None, None, image_size=(16, 16)).save(tmp_path / "gray")
    assert read_model_folder(tmp_path / "gray").pixels == PixelFormat(1)
    data = folder(tmp_path / "data", *RGB)
    common = {"text": {"source": "none"}}
    with pytest.raises(UserError, match="RGB, but the model is gray: its colour would be lost"):
        plan_diffusion(common, data, tmp_path / "gray", tmp_path / "run", quiet=True)
    asked = {**common, "data": {"channels": 1}}
    made = plan_diffusion(asked, data, tmp_path / "gray", tmp_path / "run", quiet=True)
    assert any("colour is lost" in line for line in made.notes)
    wrong = {**common, "data": {"channels": 3}}
    with pytest.raises(UserError, match=r"data.channels: 3, but .*gray, which .* has 1"):
        plan_diffusion(wrong, data, tmp_path / "gray", tmp_path / "run", quiet=True)


def test_runs_of_before_these_settings_go_on_as_8_bit_rgb(tmp_path):
    data = folder(tmp_path / "data", *GRAY)
    run = plan(tmp_path, data).run
    config = Contract.of(run.config, {}).config
    before = {
        key: value
        for key, value in config["data"].items()
        if key not in ("channels", "bit_depth", "window")
    }
    (tmp_path / "run").mkdir(exist_ok=True)
    old = {**config, "data": before}
    (tmp_path / "run" / "config.yaml").write_text(json.dumps(old), "utf-8")
    given = {**TINY, "data": DATA}
    again = plan_vae(given, data, tmp_path / "run", resume=True, quiet=True)
    assert PixelFormat.of(again.run.config.data).is_default


@pytest.mark.parametrize(
    ("images", "channels", "suffix"),
    [
        pytest.param(FIVE, None, ".npy", id="five"),
        pytest.param(RGBA, 4, ".png", id="rgba", marks=pytest.mark.slow),
    ],
)
def test_an_autoencoder_of_other_channels_trains_and_reconstructs(
    tmp_path, images, channels, suffix
):
    data = folder(tmp_path / "data", *images)
    made = plan(
        tmp_path, data, channels=channels, validation_fraction=0 if channels is None else 0.4
    )
    with step_by_step():
        autoencoder = train_planned(made)
        report = evaluate_autoencoder(
            autoencoder, spread_images(made.dataset, made.dataset.split("all"), (SIDE, SIDE))
        )
    saved = read_model_folder(tmp_path / "run")
    assert autoencoder.image_channels == saved.pixels.channels == images[0].shape[2]
    assert saved.pixels.suffix == suffix
    assert 0 < report.values["psnr"]["mean"] < 60
    own = made.dataset.image(0, SIDE)
    np.testing.assert_allclose(saved.pixels.from_images(own), images[0], atol=1e-6)


def test_generation_writes_the_format_and_makes_it_again(tmp_path):
    model = quick_model(text=False, image_channels=2)
    model.pixels = PixelFormat(2, "float", (-5, 5))
    model.save(tmp_path / "model")
    out = tmp_path / "out"
    with step_by_step():
        images = model.generate(num_images=1, seed=3, num_steps=1)
        call("generate", "--model", tmp_path / "model", "--seed", 3, "--steps", 1, "--out", out)
        again = call("generate", "--from", out / "image-3.npy", "--out", tmp_path / "again.npy")
    assert images.dtype == np.float32
    np.testing.assert_allclose(np.load(out / "image-3.npy"), images[0], atol=1e-4)
    assert "every pixel as in" in again.stderr
    refused = call("generate", "--model", tmp_path / "model", "--out", tmp_path / "a.png")
    assert refused.code == 2
    assert "images are written as .npy" in refused.stderr
