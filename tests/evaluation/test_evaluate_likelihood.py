"""`evaluate --nll`: the bound on real images, and its estimate against closed forms."""

import json
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import EMOJI
from gaussian import gaussian_bound, least_error
from tiny import SIZE, shared_model, tiny_lora, tiny_model

from latentddpm.cli import main
from latentddpm.config import DataConfig
from latentddpm.data.catalog.scan import open_catalog
from latentddpm.data.dataset import Dataset
from latentddpm.diffusion import NoiseSchedule
from latentddpm.diffusion.likelihood import timestep_bands
from latentddpm.errors import UserError
from latentddpm.evaluation.denoiser import likelihood
from latentddpm.evaluation.denoiser.likelihood import Measured, evaluate_bound, summary
from latentddpm.evaluation.images import ImageSet
from latentddpm.evaluation.report import Report
from latentddpm.interop.lora_merge import merge_lora


@pytest.fixture(scope="module")
def catalog(tmp_path_factory):
    return open_catalog(EMOJI, tmp_path_factory.mktemp("catalog"), quiet=True)


def images(catalog, *rows, templates=()):
    dataset = Dataset(catalog, DataConfig(caption_templates=list(templates)))
    return ImageSet(dataset, np.array(rows), SIZE)


def short(model):
    """The model with a schedule of few timesteps."""
    model.schedule = NoiseSchedule("linear", 0.01, 0.5, 6)
    return model


@pytest.fixture(scope="module")
def model():
    return short(tiny_model())


def test_a_sample_of_the_timesteps_estimates_the_bound():
    """Of the best network for Gaussian data, whose error at each timestep is known."""
    schedule, std, count = NoiseSchedule("cosine"), 0.5, 4000
    edges = timestep_bands(schedule, 30)
    timesteps = np.random.default_rng(0).integers(edges[:-1], edges[1:], (count, len(edges) - 1))
    spread = np.random.default_rng(1).chisquare(64, timesteps.shape) / 64
    errors = least_error(schedule, std)[timesteps] * spread  # those of 64 numbers an image
    bar = schedule.alphas_cumprod[-1]
    prior = np.full(count, (bar * (std**2 - 1) - np.log(1 - bar)) / 2 / np.log(2))
    none = np.full(count, np.nan)
    measured = Measured(prior, np.zeros(count), timesteps, errors, none)
    found = summary(schedule, edges, measured)
    for variance in ("posterior", "beta"):
        expected, _ = gaussian_bound(schedule, std, variance)
        value, error = found[variance]["bound"], found[variance]["standard_error"]
        assert 0 < error < 0.02, f"expected a small standard error, got {error}"
        assert abs(value - expected) < 4 * error, f"{variance}: {value}, expected {expected}"
        parts = found["prior"] + found[variance]["kl"] + found[variance]["l0"]
        assert value == pytest.approx(parts), "expected the sum of its parts"
        assert found[variance]["rate"] == pytest.approx(value), "the entropy given is 0"
    assert [found["terms"][0]["first"], found["terms"][-1]["last"]] == [0, 999]
    terms = sum((b["last"] - b["first"] + 1) * b["beta"] for b in found["terms"])
    assert terms + found["prior"] == pytest.approx(found["beta"]["bound"]), "the curve adds up"


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    """What the command prints and leaves, of the first and the last emoji at all timesteps, with
    a LoRA, which `model` has from here on."""
    folder = tmp_path_factory.mktemp("command")
    model.save(folder / "model")
    lora = tiny_lora(folder / "style.safetensors")
    merge_lora(model, lora, 0.5)
    arguments = ["--model", folder / "model", "--data", EMOJI, "--out", folder, "--limit", 2]
    arguments += ["--lora", f"{lora}:0.5"]
    result = CliRunner().invoke(main, ["evaluate", *map(str, arguments), "--nll", "--quiet"])
    assert result.exit_code == 0, result.stderr
    assert (folder / "bound.png").stat().st_size > 5000, "expected a plot"
    values = json.loads((folder / "evaluation.json").read_text("utf-8"))["bound"]
    return Report(result.stdout, values)


def test_bound_of_a_model_on_images(whole):
    values = whole.values
    assert values["without_caption"] == 0
    assert (values["dimensions"], values["timesteps_per_image"]) == (4 * 4 * 4, 6)
    assert [band["first"] for band in values["terms"]] == [0, 1, 2, 3, 4, 5], "all timesteps"
    assert all(band["posterior"] >= 0 for band in values["terms"][1:]), "a KL is not negative"
    assert all(np.isfinite(list(values[name].values())).all() for name in ("posterior", "beta"))
    for word in (
        "with style.safetensors:0.5 (SHA-256 ",
        "none of 2 images without a caption",
        "prior",
        "KL terms",
        "L_0",
        "64 dimensions",
        "may be negative",
        "bound.png",
    ):
        assert word in whole.text, f"no {word!r} in:\n{whole.text}"


@pytest.mark.slow
def test_an_image_draws_the_same_beside_any_others(model, catalog, whole, monkeypatch):
    monkeypatch.setattr(likelihood, "BATCH", 1)
    alone = evaluate_bound(model, images(catalog, 39, 0), quiet=True).values
    for name in ("posterior", "beta"):
        for key, value in whole.values[name].items():
            assert alone[name][key] == pytest.approx(value, abs=1e-4), f"{name} {key}"


@pytest.mark.slow
def test_captions_and_seeds_count(model, catalog, whole, tmp_path, monkeypatch):
    """And without matplotlib there is no plot, and a line that says so."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    other = evaluate_bound(
        model, images(catalog, 0, 39, templates=["a rocket"]), out=tmp_path, quiet=True
    )
    told, said = (report.values["beta"]["kl"] for report in (whole, other))
    assert told != pytest.approx(said, abs=1e-6), "expected the caption to count"
    assert other.values["caption_templates"] == ["a rocket"]
    assert "no bound.png: plots need matplotlib" in other.text
    assert not list(tmp_path.iterdir()), "expected nothing to be written"


@pytest.mark.slow
def test_model_without_words(catalog, whole):
    report = evaluate_bound(short(shared_model(text=False)), images(catalog, 0, 39), quiet=True)
    assert report.values["caption_templates"] is None
    assert "2 of 2 images without a caption" in report.text
    assert report.values["prior"] == pytest.approx(whole.values["prior"]), "the same latents"


def test_what_cannot_be_measured_is_refused(model, catalog):
    with pytest.raises(UserError, match=r"no column 'txt'.*did you mean 'text'"):
        evaluate_bound(model, images(catalog, 0, 1, templates=["{txt}"]), quiet=True)
    with pytest.raises(UserError, match="need 2 images, not 1"):
        evaluate_bound(model, images(catalog, 0), quiet=True)
    with pytest.raises(UserError, match="1, expected 2 to 6"):
        evaluate_bound(model, images(catalog, 0, 1), num_timesteps=1, quiet=True)
