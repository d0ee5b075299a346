"""Runs on signals: settled from WAV files and arrays, examples of every rank, refused by name."""

import json
import re

import numpy as np
import pytest
import tensorflow as tf
from command_line import call
from tiny import few_signals, signal_model

from latentddpm.config import DiffusionRun
from latentddpm.data.catalog.scan import open_catalog
from latentddpm.data.catalog.split import Selection
from latentddpm.data.examples import diffusion_examples, noisy_examples
from latentddpm.data.latents.pixels import PixelLatents
from latentddpm.data.pictures.wav import save_wav
from latentddpm.data.random import RandomStream
from latentddpm.diffusion import NoiseSchedule
from latentddpm.models.autoencoder.latent_space import LatentSpace
from latentddpm.training.plan.cost import cost_of
from latentddpm.training.plan.plan import plan_diffusion
from latentddpm.utils.images.pixel_format import PixelFormat

WAVES = PixelFormat(2, "float", (-1, 1), spatial_dims=1, rate=8000)
QUICK = {
    "unet": {"channels": 8, "channel_multipliers": [1, 2], "norm_groups": 4, "num_heads": 2},
    "training": {"num_steps": 2, "batch_size": 2, "precision": "float32"},
}


def plan(tmp_path, data, **settings):
    config = {**QUICK, "data": {"spatial_dims": 1, "validation_fraction": 0, **settings}}
    return plan_diffusion(config, data, "none", tmp_path / "run", quiet=True)


def test_format_length_and_rate_are_those_of_the_data(tmp_path):
    made = plan(tmp_path, few_signals(tmp_path / "data", 70, 64, 99))
    config = made.run.config
    assert PixelFormat.of(config.data) == WAVES
    assert config.data.resolution == 64, "expected the shortest"
    assert config.unet.attention_levels == [1], "64 positions are few"
    assert made.dataset.image(2, (64,)).shape == (64, 2)
    lines = [line for line in made.notes if line.startswith("signals")]
    assert lines[0].endswith("at 8,000 samples a second, 2 channels, floating point, -1 … 1")
    assert "2 of 3 signals, of up to 99 samples, are cut to the middle 64" in lines[1]


def test_arrays_are_signals_where_the_setting_says_so(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for number in range(3):
        np.save(data / f"{number}.npy", np.full((20, 3), number / 4, np.float32))
    config = plan(tmp_path, data).run.config
    assert PixelFormat.of(config.data) == PixelFormat(3, "float", spatial_dims=1)
    again = plan_diffusion({**QUICK}, data, "none", tmp_path / "images", quiet=True)
    assert PixelFormat.of(again.run.config.data) == PixelFormat(1, "float"), "else gray images"


def test_the_cost_of_a_signal_is_that_of_one_row():
    """A square of side 8 is 8 rows, and a kernel has 3 · 3 taps for 3."""
    sizes = {"kind": "classic", "channels": 8, "channel_multipliers": [1]}
    row, square = (
        cost_of(
            DiffusionRun.model_validate(
                {"data": {"resolution": 8, "spatial_dims": dims}, "unet": sizes}
            )
        )
        for dims in (1, 2)
    )
    assert square.multiply_adds == pytest.approx(24 * row.multiply_adds)
    assert square.numbers == pytest.approx(8 * row.numbers)


# --- Examples ------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(24, 3), (2, 3, 4, 3)], ids=["signals", "volumes"])
def test_noisy_examples_of_every_rank_hold_the_same_numbers(shape):
    """Those of images (4, 6, 3), in another shape."""
    schedule = NoiseSchedule()
    images = np.random.default_rng(0).normal(size=(5, 4, 6, 3)).astype("float32")
    flat, other = (
        next(iter(noisy_examples(latents, schedule, batch_size=3, seed=1)))
        for latents in (images, images.reshape(5, *shape))
    )
    assert other[1].shape == (3, *shape)
    for one, two in zip(tf.nest.flatten(flat), tf.nest.flatten(other), strict=True):
        np.testing.assert_array_equal(np.reshape(one, two.shape), two)


def test_weights_and_offset_noise_have_the_rank_of_signals(tmp_path):
    data = few_signals(tmp_path / "data", 12, 12, 12)
    catalog = open_catalog(data, tmp_path / "catalog", quiet=True)
    cache = PixelLatents.of(catalog, (12,), WAVES)
    assert cache.shaped(7, 7).latent_shape == (12, 2), "a signal has no other shape"
    mean, logvar = cache.gather([2, 0])
    np.testing.assert_array_equal(mean[1], catalog.image(0, (12,), WAVES))
    assert (logvar == -np.inf).all()

    def batch(**recipe):
        examples = diffusion_examples(
            cache,
            Selection(3),
            NoiseSchedule(),
            LatentSpace(1.0),
            batch_size=3,
            stream=RandomStream(0, "signals"),
            positions=tf.data.Dataset.range(3),
            **recipe,
        )
        return next(iter(examples))

    (_, plain), (inputs, target, weight) = batch(), batch(min_snr_gamma=5.0, offset_noise=0.5)
    assert inputs["noisy_latents"].shape == target.shape == (3, 12, 2)
    assert weight.shape == (3, 1), "expected one for each example, beside errors (3, 12)"
    shift = np.asarray(target - plain)
    np.testing.assert_allclose(shift, shift[:, :1].repeat(12, axis=1), atol=1e-6)
    assert np.ptp(shift[:, 0]) > 0.1, "expected a shift of each channel"


# --- Refused -------------------------------------------------------------------------------


def other_rate(data):
    save_wav(data / "x.wav", np.zeros((16, 2)), 44100)


def array(values):
    return lambda data: np.save(data / "x.npy", values)


@pytest.mark.parametrize(
    ("spoil", "settings", "message"),
    [
        (other_rate, [], "x.wav: 44100 samples a second, but .*0.wav has 8000; nothing is resam"),
        (array(np.zeros((16, 3))), [], "x.npy: 3 channels, expected 2"),
        (array(np.zeros((9, 2))), ["data.resolution=16"], "x.npy: 9 samples, .*resolution=9"),
        (
            array(np.zeros((16, 2, 3))),
            [],
            r"x.npy: an image of shape \(16, 2, 3\), expected a s",
        ),
        (array(np.full((16, 2), np.nan)), ["--strict"], "x.npy: nan among the values"),
        (None, ["data.spatial_dims=2"], "0.wav: a signal, expected an image; .*spatial_dims=1"),
        (None, ["data.flip=true"], "data.flip=True: a signal mirrored in time is another signal"),
        (None, ["data.rate=16000"], "0.wav: 8000 samples a second, but data.rate has 16000"),
        (None, ["data.window=[2, 3]"], r"data.window: \[2, 3\], but all values are in"),
    ],
    ids=["rate", "channels", "short", "rank", "nan", "images", "flip", "asked", "window"],
)
def test_what_does_not_fit_is_refused_in_one_line(tmp_path, spoil, settings, message):
    data = few_signals(tmp_path / "data", 16, 16)
    if spoil:
        spoil(data)
    given = ["--set", "data.spatial_dims=1", "--quiet"]
    for one in settings:
        given += [one] if one.startswith("--") else ["--set", one]
    run = ("train-diffusion", "--vae", "none", "--data", data, "--out", tmp_path / "run")
    done = call(*run, *given)
    assert done.code == 2, done.stderr
    line = done.stderr.strip().splitlines()[-1]
    assert re.search(message, line), line
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_a_model_of_signals_gives_its_format_to_a_run(tmp_path):
    signal_model().save(tmp_path / "model")
    manifest = json.loads((tmp_path / "model" / "pipeline.json").read_text("utf-8"))
    assert manifest["image_size"] == [12]
    assert manifest["pixels"]["rate"] == 8000
    data = few_signals(tmp_path / "data", 16, 16)
    config = {"init": str(tmp_path / "model"), "training": QUICK["training"]}
    made = plan_diffusion(config, data, None, tmp_path / "run", quiet=True).run.config
    assert (made.data.spatial_dims, made.data.rate, made.data.resolution) == (1, 8000, 12)
    done = call(
        "train-vae", "--data", data, "--out", tmp_path / "v", "--set", "data.spatial_dims=1"
    )
    assert done.code == 2
    assert "there is no autoencoder of signals" in done.stderr
