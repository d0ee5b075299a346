"""`examples/control_circles.py`: its pictures are what their captions, outlines and masks say."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "control_circles.py"


@pytest.fixture(scope="module")
def circles():
    spec = importlib.util.spec_from_file_location("control_circles", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def drawn(circles, tmp_path_factory):
    folder = tmp_path_factory.mktemp("circles")
    circles.draw(folder, 12, seed=0)
    lines = (folder / "metadata.jsonl").read_text("utf-8").splitlines()
    return folder, [json.loads(line) for line in lines]


def wanted(circles, row):
    return np.asarray(circles.disc(row["x"], row["y"], row["radius"], "white", None)) > 127


def test_the_disc_found_in_a_picture_is_the_one_that_was_drawn(circles, drawn):
    folder, rows = drawn
    assert len(rows) == 12
    for row, other in zip(rows, rows[1:] + rows[:1], strict=True):
        picture = np.asarray(Image.open(folder / row["file_name"]).convert("RGB"))
        disc = circles.found_disc(picture, row)
        assert circles.iou(disc, wanted(circles, row)) > 0.9, row
        assert circles.iou(disc, wanted(circles, other)) < 0.8, "another circle would do as well"
        area = np.pi * row["radius"] ** 2
        assert 0.85 < wanted(circles, row).sum() / area < 1.15
        assert row["text"] == f"{row['circle']} circle on {row['ground']} background"


def test_an_outline_lies_on_the_border_of_its_disc(circles, drawn):
    folder, rows = drawn
    for row in rows:
        outline = np.asarray(Image.open(folder / row["outline"]).convert("L")).astype(float)
        down, right = np.indices(outline.shape) + 0.5
        distance = np.hypot(right - row["x"], down - row["y"]) - row["radius"]
        assert outline[np.abs(distance) > 2].max() == 0
        assert outline.sum() / 255 == pytest.approx(2 * np.pi * row["radius"], rel=0.2)


def test_the_same_seed_draws_the_same(circles, drawn, tmp_path):
    circles.draw(tmp_path, 12, seed=0)
    for one in sorted(drawn[0].rglob("*.png")):
        assert one.read_bytes() == (tmp_path / one.relative_to(drawn[0])).read_bytes()


def test_iou_in_closed_form(circles):
    one, other = np.zeros((2, 4, 4), bool)
    one[:, :2] = other[:2] = True
    assert circles.iou(one, other) == pytest.approx(4 / 12)
    assert circles.iou(one, one) == 1
    assert circles.iou(one, ~one) == 0
