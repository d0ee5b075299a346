"""`evaluate --denoise`: errors against the closed form, and what does not change them."""

import json

import keras
import numpy as np
import pytest
from click.testing import CliRunner
from conftest import EMOJI
from metric_sets import image_set
from PIL import Image
from tiny import few_emoji, quick_model, step_by_step

from latentddpm import FlowSchedule, LatentDiffusion, NoiseSchedule
from latentddpm.cli import main
from latentddpm.config import DataConfig
from latentddpm.evaluation.autoencoder import evaluate_autoencoder
from latentddpm.evaluation.denoiser import denoising
from latentddpm.evaluation.denoiser.denoising import evaluate_denoising, noise_levels
from latentddpm.models.autoencoder.pixel_space import PixelSpace
from latentddpm.utils.images.pixel_format import PixelFormat
from latentddpm.utils.pixels import read_metadata

STD = 0.2
SIZE = (16, 16)


class ExactNetwork(keras.Model):
    """The best network for x0 ~ N(0, STD²), at the levels of any schedule."""

    def __init__(self, schedule):
        super().__init__()
        self.schedule = schedule

    def call(self, inputs):
        x, timesteps = (np.asarray(inputs[name]) for name in ("noisy_latents", "timesteps"))
        one, zero = np.ones_like(x), np.zeros_like(x)
        signal = self.schedule.add_noise(one, zero, timesteps)
        noise_rate = self.schedule.add_noise(zero, one, timesteps)
        x0 = signal * STD**2 / (signal**2 * STD**2 + noise_rate**2) * x
        return self.schedule.target(x0, (x - signal * x0) / noise_rate, timesteps)


@pytest.fixture(scope="module")
def gaussian(tmp_path_factory):
    """Floating-point images of one channel, of independent Gaussian numbers."""
    folder = tmp_path_factory.mktemp("gaussian")
    for number in range(8):
        draws = np.random.default_rng((9, number)).standard_normal((64, 64, 1), "float32")
        np.save(folder / f"{number}.npy", 0.5 + STD / 2 * draws)  # [0, 1] stands for [-1, 1]
    images = image_set(folder, folder.parent / "catalog", (64, 64))
    images.dataset.pixels = PixelFormat(1, "float")
    return images


@pytest.mark.parametrize(
    "schedule",
    [NoiseSchedule("linear", 1e-4, 0.02), FlowSchedule()],
    ids=["epsilon", "flow"],
)
def test_the_best_network_errs_by_the_posterior(schedule, gaussian, tmp_path):
    model = LatentDiffusion(PixelSpace(1), ExactNetwork(schedule), schedule)
    model.pixels = gaussian.pixels
    with step_by_step():
        report = evaluate_denoising(model, gaussian, out=tmp_path, quiet=True)
    levels = report.values["levels"]
    assert len(levels) == 8
    for level in levels:
        signal, noise = level["signal_rate"], level["noise_rate"]
        expected = np.sqrt(STD**2 * noise**2 / (signal**2 * STD**2 + noise**2)) * 127.5
        assert level["rmse"] == pytest.approx(expected, rel=0.015), level
        assert level["psnr"] == pytest.approx(20 * np.log10(255 / expected), abs=0.15), level
        assert "rmse_latents" not in level, "the latents are the pixels"
    assert report.values["clean"] is None, "there is no autoencoder whose error it would be"
    assert "RMSE (latents)" not in report.text
    picture = np.asarray(Image.open(tmp_path / "denoise.png"))
    assert picture.shape[1] == 9 * 66 - 2, "expected a column for the image and for each level"
    assert len(np.unique(picture[-64:, :64])) == 1, "no second image below the clean one"


def test_levels_are_the_middles_of_equal_parts():
    assert noise_levels(NoiseSchedule(num_train_timesteps=16)).tolist() == [*range(1, 16, 2)]
    few = NoiseSchedule("linear", 0.01, 0.5, 3)
    assert noise_levels(few).tolist() == [0, 1, 2], "each timestep once"
    assert noise_levels(FlowSchedule(8, shift=3.0)).tolist() == [k + 0.5 for k in range(8)]


@pytest.fixture(scope="module")
def catalog(tmp_path_factory):
    return tmp_path_factory.mktemp("catalog")


def emoji(catalog, *rows, templates=()):
    images = image_set(EMOJI, catalog, SIZE, data=DataConfig(caption_templates=list(templates)))
    images.rows = np.array(rows)
    return images


@pytest.fixture(scope="module")
def model():
    """A model of latents and words, with a schedule of two timesteps."""
    model = quick_model()
    model.schedule = NoiseSchedule("linear", 0.3, 0.6, 2)
    model.image_size = SIZE
    return model


@pytest.fixture(scope="module")
def report(model, catalog):
    with step_by_step():
        return evaluate_denoising(model, emoji(catalog, 0, 39), quiet=True)


def errors(report, name):
    return [level[name] for level in report.values["levels"]]


@step_by_step()
def test_an_image_draws_the_same_beside_any_others(model, catalog, report, monkeypatch):
    monkeypatch.setattr(denoising, "BATCH", 1)
    again = evaluate_denoising(model, emoji(catalog, 39, 0), quiet=True)
    for name in ("rmse", "psnr", "rmse_latents"):
        assert errors(again, name) == pytest.approx(errors(report, name), rel=1e-3), name


@step_by_step()
def test_captions_and_seeds_count(model, catalog, report):
    told = errors(report, "rmse_latents")
    images = emoji(catalog, 0, 39, templates=["a rocket"])
    other = evaluate_denoising(model, images, quiet=True)
    assert other.values["caption_templates"] == ["a rocket"]
    assert errors(other, "rmse_latents") != pytest.approx(told, rel=1e-4), "the caption counts"
    other = evaluate_denoising(model, emoji(catalog, 0, 39), seed=1, quiet=True)
    assert errors(other, "rmse_latents") != pytest.approx(told, rel=1e-4), "the noise counts"


@step_by_step()
def test_the_floor_is_the_error_of_the_autoencoder(model, catalog, report):
    found = evaluate_autoencoder(model.autoencoder, emoji(catalog, 0, 39), quiet=True).values
    expected = {name: found[name]["mean"] for name in ("rmse", "psnr")}
    assert report.values["clean"] == pytest.approx({**expected, "rmse_latents": 0.0}, rel=1e-4)


@step_by_step()
def test_the_command_leaves_numbers_and_a_picture(model, tmp_path):
    """Of validation images, with their captions, where nothing else is said."""
    few_emoji(tmp_path / "data", 12)
    model.save(tmp_path / "model")
    out = tmp_path / "out"
    given = ("--model", tmp_path / "model", "--data", tmp_path / "data", "--out", out, "--quiet")
    fraction = ("--validation-fraction", "0.4")
    done = CliRunner().invoke(main, ["evaluate", "--denoise", *map(str, given), *fraction])
    assert done.exit_code == 0, done.stderr
    results = json.loads((out / "evaluation.json").read_text("utf-8"))
    values = results["denoise"]
    assert results["split"] == "validation"
    assert (values["images"], values["without_caption"]) == (results["images"], 0)
    rows = [line.split()[0] for line in done.stdout.split("timestep")[1].splitlines()[1:4]]
    assert rows == ["clean", "0", "1"], done.stdout
    picture = np.asarray(Image.open(out / "denoise.png"))
    assert picture.shape[1] == 3 * (4 * SIZE[1] + 2) - 2, "small images are enlarged"
    assert read_metadata(out / "denoise.png")["shown"] == values["shown"]
    assert len(values["shown"]) == min(8, results["images"])
