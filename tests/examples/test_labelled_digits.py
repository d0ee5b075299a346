"""`examples/labelled_digits.py`: its data have what they say, and its judge knows real digits."""

import importlib.util
import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import perturb, step_by_step

from latentddpm.conditions.classes import ClassCondition
from latentddpm.conditions.conditions import Conditions
from latentddpm.conditions.labels import LabelsCondition
from latentddpm.conditions.number import NumberCondition
from latentddpm.config import DiffusionRun
from latentddpm.config_file import load_config
from latentddpm.diffusion.schedule import NoiseSchedule
from latentddpm.models.autoencoder.pixel_space import PixelSpace
from latentddpm.models.denoisers.unet import UNet
from latentddpm.pipeline.latent_diffusion import LatentDiffusion
from latentddpm.training.plan.settle import dry_diffusion

ROOT = Path(__file__).resolve().parents[2]
DIGIT = ClassCondition("digit", words=tuple("0123456789"))


@pytest.fixture(scope="module")
def example():
    file = ROOT / "examples" / "labelled_digits.py"
    spec = importlib.util.spec_from_file_location("labelled_digits", file)
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(file.parent))  # as for a script that is run: it imports another one
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(file.parent))
    return module


@pytest.fixture(scope="module")
def data(example, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    example.write_data(folder)
    return folder


@pytest.fixture(scope="module")
def judge(example):
    return example.Judge()


def table(folder):
    lines = (folder / "metadata.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def pixels(folder, row):
    with Image.open(folder / row["file_name"]) as image:
        return np.asarray(image) / 255


def test_every_combination_but_one_is_in_the_data(data):
    pairs = {(row["digit"], row["inverted"]) for row in table(data / "attributes")}
    everything = set(itertools.product(range(10), (False, True)))
    assert everything - pairs == {(3, True)}
    assert len(list((data / "labels").rglob("*.png"))) == 1434


@pytest.mark.parametrize("never", [3, 8])
def test_the_digit_that_is_never_inverted_is_asked_for_apart(example, never):
    found = example.questions(["digit", "inverted"], never)
    new = {"digit": never, "inverted": True}
    assert all(one == new for one in found["never seen together"])
    assert new not in found["seen together"]
    assert {one["digit"] for one in found["seen together"]} == set(range(10))


def test_ink_is_the_mean_of_the_white_pixels(data):
    rows = table(data / "attributes")[:40]
    for row in rows:
        mean = pixels(data / "attributes", row).mean()
        ink = 1 - mean if row["inverted"] else mean
        assert row["ink"] == pytest.approx(ink, abs=1 / 255), row


@pytest.mark.slow
def test_tags_are_what_the_pictures_show(example, data, judge):
    rows = table(data / "tags")[::20]
    pictures = np.stack([pixels(data / "tags", row) for row in rows])
    assert {tuple(row["tags"]) for row in rows} == {
        tags for n in range(4) for tags in itertools.combinations(example.TAGS, n)
    }
    found = example.answered(rows, judge(pictures, has_tags=True))
    assert (found["inverted"], found["framed"]) == (1, 1)
    assert found["mirrored"] > 0.95
    assert found["digit"] > 0.95


@pytest.mark.parametrize(
    "names",
    [
        ["digit"],
        ["digit", "inverted"],
        pytest.param(["digit", "tags"], marks=pytest.mark.slow),
    ],
)
def test_the_judge_knows_real_digits_that_it_has_not_seen(example, judge, names):
    for name, rows in example.questions(names).items():
        if rows[0]:
            found = example.answered(rows, judge(example.real(rows), "tags" in names))
            assert found["all"] > 0.9, f"{name}: {found}"


def test_the_judge_is_not_content_with_other_digits(example, judge):
    rows = example.questions(["digit", "inverted"])["seen together"]
    others = [{"digit": (row["digit"] + 1) % 10, "inverted": row["inverted"]} for row in rows]
    found = example.answered(rows, judge(example.real(others)))
    assert found["digit"] < 0.1, f"{found}, of digits that were not asked for"
    others = [{**row, "inverted": not row["inverted"]} for row in rows]
    found = example.answered(rows, judge(example.real(others)))
    assert (found["inverted"], found["all"]) == (0, 0)


@pytest.mark.parametrize(
    "members",
    [
        (ClassCondition("inverted", words=("no", "yes")), NumberCondition("ink", mean=(0.3,))),
        pytest.param(
            (LabelsCondition("tags", words=("framed", "inverted", "mirrored")),),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_model_is_asked_for_what_it_is_told(example, judge, tmp_path, monkeypatch, members):
    monkeypatch.setattr(example, "SAMPLES", 20)
    conditions = Conditions((DIGIT, *members))
    sizes = {"channel_multipliers": (1,), "num_res_blocks": 1, "attention_levels": ()}
    unet = UNet(8, **sizes, latent_channels=1, norm_groups=4, conditions=conditions.specs())
    perturb(unet)
    model = LatentDiffusion(
        PixelSpace(1), unet, NoiseSchedule(), image_size=(16, 16), conditions=conditions
    )
    model.save(tmp_path / "model")
    (tmp_path / "out").mkdir()
    with step_by_step():
        numbers = example.judged(tmp_path / "out", tmp_path / "model", judge, num_steps=1)
    assert json.loads((tmp_path / "out/judged.json").read_text("utf-8")) == numbers
    assert sum(numbers["nothing told"]["labels"]) == 20
    asked = set(example.questions(conditions.names))
    assert asked < set(numbers), "expected an answer to each question"
    pictures = {path.stem for path in (tmp_path / "out").glob("*.png")}
    assert {name.replace(" ", "-") for name in asked} <= pictures
    assert ("ink-plot" in pictures) is ("ink" in conditions.names)


@pytest.mark.parametrize(("name", "columns"), [("labels", 1), ("attributes", 3)])
def test_its_configurations_fit_its_data(data, name, columns):
    config = load_config(DiffusionRun, ROOT / "configs" / f"digits-{name}.yaml")
    config, _ = dry_diffusion(config, data / name, "none")
    assert len(config.conditions) == columns
    assert config.data.resolution == 16
