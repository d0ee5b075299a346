"""`info`: the curves of runs as numbers and as a picture; shards, a catalog, a latents cache."""

import json
import math
import shutil
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from tiny import few_emoji

from latentddpm.cli import main
from latentddpm.data.catalog.scan import open_catalog
from latentddpm.data.pack import pack
from latentddpm.training.run.curves import read_curves, smooth


def info(*arguments, code=0):
    """What the command says, on stdout or in the one line of its error."""
    done = CliRunner().invoke(main, ["info", *map(str, arguments)])
    assert done.exit_code == code, f"expected exit code {code}: {done.stderr} {done.exception}"
    if code:
        assert done.stderr.count("\n") == 1, f"expected one line, got {done.stderr}"
    return done.stderr if code else done.stdout


@pytest.fixture
def run(tmp_path):
    """A run's folder with a log of 300 lines: a loss that falls by a third every 100 steps."""
    folder = tmp_path / "runs" / "one"
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    lines = []
    for step in range(10, 3001, 10):
        loss = math.exp(-step / 1000)
        line = {"step": step, "loss": loss * math.exp(draw.normal(0, 0.1)), "gradient_norm": loss}
        line |= {f"loss_q{q}": loss / q if step % 100 else None for q in (1, 2, 3, 4)}
        lines.append(line | {"learning_rate": 1e-4, "examples_per_second": 300.0})
        if step % 500 == 0:
            lines.append({"step": step, "validation_loss": loss + abs(step - 2500) / 1e4})
    log = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "log.jsonl").write_text(log, "utf-8")
    return folder


def test_curves_leave_out_what_is_null(run):
    curves = read_curves(run)
    steps, values = curves["loss_q2"]
    assert len(steps) == 270, f"expected 300 lines without the 30 nulls, got {len(steps)}"
    np.testing.assert_allclose(values, np.exp(-steps / 1000) / 2)
    assert curves["validation_loss"].steps.tolist() == list(range(500, 3001, 500))


def test_a_smooth_line_is_the_mean_around_each_value():
    values = np.random.default_rng(0).normal(size=200)
    expected = [values[max(i - 2, 0) : i + 3].mean() for i in range(200)]
    np.testing.assert_allclose(smooth(values), expected, err_msg="200 / 40 = 5 values each")
    np.testing.assert_allclose(smooth(values[:10]), values[:10], err_msg="too few to smooth")


def test_info_tells_the_lowest_validation_loss_and_the_quarters(run):
    text = info(run)
    for words in ("step       3000", "at step 3000; lowest", "at step 2500", "noise 0.05"):
        assert words in text, f"expected {words!r} in {text}"


def test_runs_are_drawn(run, tmp_path):
    """One, and two of different lengths: a picture, with ink of each run's colour."""
    other = tmp_path / "runs" / "two"
    shutil.copytree(run, other)
    lines = (run / "log.jsonl").read_text("utf-8").splitlines(keepends=True)
    (other / "log.jsonl").write_text("".join(lines[:100]).replace("_q4", "_other"), "utf-8")
    info(run, "--plot", tmp_path / "one.svg")
    text = (tmp_path / "one.svg").read_text("utf-8")
    assert text.count('<g id="axes_') == 8, "expected the loss, four quarters and three more"
    info(run, other, "--plot", tmp_path / "two.png")
    with Image.open(tmp_path / "two.png") as picture:
        colours = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    for colour in ((0x3B, 0x6F, 0xD4), (0xE8, 0x70, 0x3A)):
        count = (colours == colour).all(axis=1).sum()
        assert count > 500, f"expected lines of the colour {colour}, found {count} pixels"


def test_a_plot_that_cannot_be_drawn_is_refused_in_one_line(run, tmp_path, monkeypatch):
    picture = tmp_path / "curves.png"
    assert "choose one of '.png'" in info(run, "--plot", tmp_path / "curves.jpg", code=2)
    assert "not a run" in info(tmp_path, "--plot", picture, code=2)
    (tmp_path / "log.jsonl").touch()
    assert "its log is empty" in info(tmp_path, "--plot", picture, code=2)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert "pip install matplotlib" in info(run, "--plot", picture, code=2)
    assert not picture.exists(), "expected no picture"


# --- What training reads -------------------------------------------------------------------


def test_info_describes_shards_and_catalogs(tmp_path):
    few_emoji(tmp_path / "photos", 5)
    pack(tmp_path / "photos", tmp_path / "shards", kind="tar", shard_size=10_000, quiet=True)
    count = len(list((tmp_path / "shards").glob("*.tar")))
    for place in (tmp_path / "shards", sorted((tmp_path / "shards").glob("*.tar"))[0]):
        text = info(place)
        shown = count if place.is_dir() else 1
        assert f"shards     {shown} of tar" in text, f"expected {shown} shards: {text}"
    assert "images     5," in info(tmp_path / "shards"), "expected the five images"
    assert "text (5)" in info(tmp_path / "shards"), "expected the five captions"
    open_catalog(tmp_path / "photos", tmp_path / "catalog", quiet=True)
    text = info(tmp_path / "catalog")
    for words in (f"{tmp_path / 'photos'} (folder", "images     5,", "48 to 48 pixels", "text"):
        assert words in text, f"expected {words!r} in {text}"
    (tmp_path / "catalog" / "version-000001" / "catalog.json").write_text("{}", "utf-8")
    assert "catalog" in info(tmp_path / "catalog", code=2)
    (tmp_path / "torn.tar").write_bytes(b"not a tar")
    assert "torn.tar" in info(tmp_path / "torn.tar", code=2)
