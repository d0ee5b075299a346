"""Signals that are drawn: WAV or .npy with metadata and a plot, made again, or refused."""

import json
import re

import numpy as np
import pytest
from command_line import call
from PIL import Image
from tiny import signal_model, step_by_step

from latentddpm.data.pictures.wav import read_wav
from latentddpm.errors import UserError
from latentddpm.pipeline.latent_diffusion import LatentDiffusion
from latentddpm.pipeline.model_facts import facts_of
from latentddpm.pipeline.model_folder import read_model_folder
from latentddpm.utils.images.pixel_format import PixelFormat
from latentddpm.utils.images.plots import plot


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("signals")
    signal_model().save(folder / "wav")
    signal_model(1, PixelFormat(1, "float", (-3, 3), spatial_dims=1)).save(folder / "npy")
    return folder


def size_of(path):
    with Image.open(path) as picture:
        return picture.size


@step_by_step()
def test_a_wav_file_with_metadata_and_a_plot_and_the_same_again(saved, tmp_path):
    out = tmp_path / "out"
    run = ("generate", "--strategy", "one", "--quiet")
    done = call(
        *run, "--model", saved / "wav", "--seed", 5, "--length", 11, "--out", out / "a.wav"
    )
    assert done.code == 0, done.stderr
    values, rate = read_wav((out / "a.wav").read_bytes())
    assert (values.shape, rate) == ((11, 2), 8000)
    model = LatentDiffusion.load(saved / "wav")
    expected = model.generate(seed=5, length=11)[0]
    np.testing.assert_allclose(values, np.clip(expected, -1, 1 - 2**-15), atol=2**-16 + 1e-7)
    assert size_of(out / "a.png") == (600, 200), "expected the plot beside it"
    metadata = json.loads((out / "a.json").read_text("utf-8"))
    assert metadata["length"] == 11
    assert not {"height", "width"} & metadata.keys(), "a signal has neither"

    again = call("generate", "--from", out / "a.wav", "--out", out / "a_2.wav")
    assert again.code == 0, again.stderr
    assert f"every pixel as in {out / 'a.wav'}" in again.stderr
    assert (out / "a_2.wav").read_bytes() == (out / "a.wav").read_bytes()
    info = call("info", out / "a.wav")
    assert '"length": 11' in info.stdout


@step_by_step()
def test_an_array_where_there_is_no_rate_or_a_range_that_wav_lacks(saved, tmp_path):
    done = call("generate", "--model", saved / "npy", "--quiet", "--seed", 1, "--out", tmp_path)
    assert done.code == 0, done.stderr
    assert np.load(tmp_path / "image-1.npy").shape == (12, 1)
    assert (tmp_path / "image-1.png").is_file()
    values = np.zeros((2, 12, 1), np.float32)
    assert read_model_folder(saved / "npy").pixels.to_rgb(values).shape == (2, 80, 160, 3)
    wide = PixelFormat(1, "float", (-3, 3), spatial_dims=1, rate=8000)
    assert wide.suffix == ".npy", "a WAV file holds [-1, 1]"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["generate", "--height", 12], "--height: 12, but this model draws signals; expected len"),
        (["generate", "--init-image", "a.png"], "--init-image: this model draws signals"),
        (["generate", "--length", 1 << 27], "length 134217728: .* samples, at most"),
        (["generate", "--out", "a.png"], "a.png: .* written as .wav"),
        (["evaluate", "--data", "."], "a model of signals; what is measured here"),
        (["export", "--format", "saved-model", "--out", "x"], "has 1 spatial dim.*--format keras"),
        (["convert", "--to", "diffusers", "--out", "y"], "no network like a UNet of 1 dim"),
    ],
    ids=["height", "picture", "long", "png", "evaluate", "export", "convert"],
)
def test_what_a_model_of_signals_cannot_is_refused(saved, tmp_path, monkeypatch, command, message):
    monkeypatch.chdir(tmp_path)
    done = call(*command, "--model", saved / "wav")
    assert done.code == 2, done.stderr
    line = done.stderr.strip().splitlines()[-1]
    assert re.search(message, line), line
    assert not list(tmp_path.iterdir()), "expected nothing to be written"


@step_by_step()
def test_facts_settings_and_summary_of_a_model_of_signals(saved):
    model = LatentDiffusion.load(saved / "wav")
    assert facts_of(read_model_folder(saved / "wav")) == model.facts
    settings = model.settings()
    assert (settings.size, settings.length, settings.height) == ((12,), 12, None)
    with pytest.raises(UserError, match="width: 8, but this model draws signals; expected length"):
        model.settings(width=8)
    assert "12 samples" in repr(model)
    assert model.generate(seed=0, output="latents").shape == (1, 12, 2)
    plain = LatentDiffusion(model.autoencoder, model.unet, model.schedule)
    assert plain.generate(seed=0, length=9, num_steps=1).shape == (1, 9, 2)
    with pytest.raises(UserError, match="length: this model names no size of its own; give it"):
        plain.settings()


def test_a_plot_shows_each_channel_at_its_level():
    levels = np.array([0.5, -0.5])
    picture = plot(np.tile(levels, (30, 1)), 40, 60)
    assert picture.shape == (40, 60, 3)
    dark = (picture.astype(int).sum(axis=-1) < 600)[:, 30]
    rows = np.flatnonzero(dark)
    np.testing.assert_allclose([rows.min(), rows.max()], (1 - levels) / 2 * 39, atol=2)
