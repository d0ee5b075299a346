"""Evaluation of models that are told conditions: what they are told, and numbers of each class."""

import json
from collections import Counter

import keras
import numpy as np
import pytest
import yaml
from command_line import call, refused, succeeds
from PIL import Image
from tiny import quick_model, step_by_step

from latentddpm.conditions.classes import ClassCondition
from latentddpm.conditions.conditions import Conditions
from latentddpm.conditions.number import NumberCondition
from latentddpm.config import ConditionConfig, DataConfig
from latentddpm.data.conditions.rows import read_conditions
from latentddpm.data.dataset import open_dataset
from latentddpm.errors import UserError
from latentddpm.evaluation.denoiser.denoising import evaluate_denoising
from latentddpm.evaluation.denoiser.likelihood import evaluate_bound
from latentddpm.evaluation.denoiser.told import ImagesTold
from latentddpm.evaluation.extractors import Extractor
from latentddpm.evaluation.generated_images import GeneratedImages
from latentddpm.evaluation.generator import evaluate_generator
from latentddpm.evaluation.images import spread_images
from latentddpm.evaluation.metrics import by_class
from latentddpm.evaluation.metrics.by_class import LEAST, class_table, compare_classes, members
from latentddpm.evaluation.metrics.frechet import Statistics, frechet_distance
from latentddpm.evaluation.plan import plan_evaluation
from latentddpm.utils.pixels import read_metadata

COLOURS = ("blue", "green", "red")
COLOUR = ClassCondition("colour", words=COLOURS)
SIZE = NumberCondition("size", mean=(1.0,), std=(1.0,), range=(0.0, 3.0))
SETTINGS = {
    "colour": ConditionConfig(kind="class"),
    "size": ConditionConfig(kind="number", column="size"),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Four images of each colour, with a size; the last one has none."""
    folder = tmp_path_factory.mktemp("data") / "pictures"
    lines = []
    for colour in COLOURS:
        (folder / colour).mkdir(parents=True)
        for k in range(4):
            Image.new("RGB", (32, 32), colour).save(folder / colour / f"{k}.png")
            size = None if (colour, k) == ("red", 3) else k
            lines.append(json.dumps({"file_name": f"{colour}/{k}.png", "size": size}))
    (folder / "metadata.jsonl").write_text("\n".join(lines), "utf-8")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folder as training leaves it: the model, and the settings that made it."""
    folder = tmp_path_factory.mktemp("run")
    model = quick_model(text=False, conditions=Conditions((COLOUR, SIZE)))
    model.save(folder / "model")
    settings = {name: one.model_dump() for name, one in SETTINGS.items()}
    config = {"text": {"source": "none"}, "conditions": settings}
    (folder / "config.yaml").write_text(yaml.safe_dump(config), "utf-8")
    return folder


def images_of(data, catalog, *conditions):
    dataset = open_dataset(data, catalog, DataConfig(validation_fraction=0), quiet=True)
    rows = read_conditions(Conditions(conditions), SETTINGS, dataset.catalog)
    return spread_images(dataset, dataset.split("all"), (32, 32), conditions=rows)


def test_images_tell_what_the_data_has(data, tmp_path):
    model = quick_model(text=False, conditions=Conditions((COLOUR, SIZE)))
    images = images_of(data, tmp_path / "catalog", COLOUR, SIZE)
    told = images.told()
    names = [images.catalog.name(int(row)) for row in images.rows]
    assert [one["colour"] for one in told] == [name.split("/")[0] for name in names]
    assert "size" not in told[names.index("red/3.png")]
    inputs = ImagesTold(model, images)
    assert inputs.values["conditions"] == {"colour": 0, "size": 1}
    found = inputs.inputs(np.array([names.index("green/2.png"), names.index("red/3.png")]))
    assert found["colour"].tolist() == [[0, 1, 0, 0], [0, 0, 1, 0]]
    assert found["size"].tolist() == [[1, 1], [0, 0]]


@step_by_step()
def test_the_denoiser_is_told_the_conditions_of_the_images(data, tmp_path):
    """Another word for all images gives other errors, and each class has its own."""
    model = quick_model(text=False, conditions=Conditions((COLOUR,)))
    images = images_of(data, tmp_path / "catalog", COLOUR)
    values = evaluate_denoising(model, images, quiet=True).values
    assert list(values["classes"]) == list(COLOURS)
    assert [one["images"] for one in values["classes"].values()] == [4, 4, 4]
    for key in ("rmse", "psnr", "rmse_latents"):
        own = np.mean([one[key] for one in values["classes"].values()])
        whole = np.mean([level[key] for level in values["levels"]])
        assert own == pytest.approx(whole), f"{key}: classes of one size have the mean of all"
    turned = ClassCondition("colour", words=COLOURS[::-1])
    model.conditions = Conditions((turned,))
    images = images_of(data, tmp_path / "catalog", turned)
    other = evaluate_denoising(model, images, quiet=True).values
    assert other["levels"] != values["levels"], "the network is not told the colour"
    assert np.isfinite(evaluate_bound(model, images, num_timesteps=3, quiet=True).values["prior"])


# --- Numbers of each class -----------------------------------------------------------------


def test_classes_are_compared_with_their_own():
    numbers = np.random.default_rng(0)
    training = numbers.normal(size=(3 * LEAST, 4))
    words = [*["a"] * LEAST, *["b"] * LEAST, *["c"] * (LEAST - 1), None]
    training[LEAST : 2 * LEAST] += 5
    drawn = training[: 2 * LEAST][::-1] + 0.01
    asked = [*["b"] * LEAST, *["a"] * (LEAST - 1), "d"]
    found = compare_classes(training, words, drawn, asked)
    assert list(found) == ["a", "b", "d"]
    assert found["a"] == {
        "images": LEAST - 1,
        "training_images": LEAST,
        "frechet": None,
        "kernel": None,
    }
    assert found["d"]["training_images"] == 0
    pair = training[LEAST : 2 * LEAST], drawn[:LEAST]
    expected = frechet_distance(*(Statistics().add(one) for one in pair))
    assert found["b"]["frechet"] == pytest.approx(expected)
    assert found["b"]["frechet"] < 0.1, "far from its own class"
    table = class_table("letter", found)
    assert f"{LEAST} images" in table, table
    assert [line.split()[0] for line in table.splitlines()[1:4]] == ["a", "b", "d"], table


def test_members_leave_out_images_without_a_class():
    found = members(["b", None, "a", "b"])
    assert {word: numbers.tolist() for word, numbers in found.items()} == {"a": [2], "b": [0, 3]}


# --- Generated images ----------------------------------------------------------------------


@step_by_step()
def test_generated_images_are_kept_by_their_conditions(tmp_path):
    model = quick_model(text=False, conditions=Conditions((COLOUR,)))
    model.digest = "0123456789ab"
    settings = model.settings(num_steps=1)
    told = [{"colour": "red"}, {"colour": "blue"}]
    images = GeneratedImages(tmp_path, model, settings, ["", ""], 7, told)
    images.draw(quiet=True)
    assert read_metadata(images.path(1))["labels"] == {"colour": "blue"}
    other = GeneratedImages(tmp_path, model, settings, ["", ""], 7, told[::-1])
    assert other.path(0) != images.path(0), "two colours share a file"
    bare = GeneratedImages(tmp_path, model, settings, ["", ""], 7)
    assert bare.path(0) != images.path(0), "told and not told share a file"
    before = images.path(0).stat().st_mtime_ns
    images.draw(quiet=True)
    assert images.path(0).stat().st_mtime_ns == before, "drawn twice"
    again = model.generate(conditions=told, seed=7, num_steps=1)
    assert np.abs(again.astype(int) - images.read([0, 1])).max() <= 1, "other images"


@step_by_step()
def test_a_generator_draws_the_conditions_of_the_training_images(data, tmp_path, monkeypatch):
    monkeypatch.setattr(by_class, "LEAST", 4)
    keras.utils.set_random_seed(0)
    layers = [keras.Input((32, 32, 3)), keras.layers.Conv2D(3, 16, 16), keras.layers.Flatten()]
    extractor = Extractor("tiny", keras.Sequential(layers))
    model = quick_model(text=False, conditions=Conditions((COLOUR, SIZE)))
    model.digest = "0123456789ab"
    images, lines = images_of(data, tmp_path / "catalog", COLOUR, SIZE), []
    given = {"num_images": 14, "quiet": True, "tell": lines.append}
    settings = [model.settings(num_steps=1)]
    report = evaluate_generator(model, settings, images, extractor, tmp_path / "out", **given)
    labels = [read_metadata(one).get("labels") for one in tmp_path.glob("out/generated/*/*.png")]
    drawn = Counter(one["colour"] for one in labels)
    (entry,) = report["settings"]
    classes = entry["classes"]
    assert {word: one["images"] for word, one in classes.items()} == drawn
    assert {word: one["training_images"] for word, one in classes.items()} == dict.fromkeys(
        COLOURS, 4
    )
    assert sum(drawn.values()) == 14
    for word, one in classes.items():
        assert (one["frechet"] is not None) == (drawn[word] >= 4), f"{word}: {one}"
    assert any("colour" in line and "red" in line for line in lines), lines
    assert json.loads(json.dumps(report)) == report, "the report is not made for JSON"
    before = {one: one.stat().st_mtime_ns for one in tmp_path.glob("out/generated/*/*.png")}
    evaluate_generator(model, settings, images, extractor, tmp_path / "out", **given)
    assert before == {one: one.stat().st_mtime_ns for one in before}, "drawn again"


# --- The command ---------------------------------------------------------------------------


def test_the_run_says_which_columns_have_the_conditions(run, data, tmp_path):
    out = tmp_path / "out"
    with step_by_step():
        done = succeeds(
            call(
                *("evaluate", "--model", run / "model", "--data", data, "--denoise", "--quiet"),
                *("--split", "all", "--out", out),
            )
        )
    assert "1 of 12 images without size" in done.stdout, done.stdout
    values = json.loads((out / "evaluation.json").read_text("utf-8"))["denoise"]
    assert values["conditions"] == {"colour": 0, "size": 1}
    assert set(values["classes"]) == set(COLOURS)


def test_a_model_without_its_run_is_refused(run, data, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "model").symlink_to(run / "model")
    model = tmp_path / "elsewhere" / "model"
    done = call("evaluate", "--model", model, "--data", data, "--denoise")
    refused(done, "--denoise", "colour, size", "config.yaml")


def test_unknown_words_of_other_data_are_refused(run, data, tmp_path):
    other = tmp_path / "other"
    (other / "rde").mkdir(parents=True)
    Image.new("RGB", (32, 32)).save(other / "rde" / "0.png")
    done = call(
        "evaluate", "--model", run / "model", "--data", other, "--denoise", "--split", "all"
    )
    refused(done, "rde/0.png", "'rde'", "did you mean 'red'")


def test_parts_that_tell_nothing_need_no_conditions(run, data):
    options = {
        **dict.fromkeys(("out", "split", "extractor", "perceptual", "clip", "engine"), None),
        **dict.fromkeys(("resolution", "validation_fraction", "validation_by"), None),
        **{"caption_templates": (), "loras": (), "projection": "tsne", "precision": "float32"},
        **{"data": str(data), "model": run / "model"},
    }
    assert plan_evaluation(frozenset({"autoencoder"}), options).conditions == {}
    found = plan_evaluation(frozenset({"denoise"}), options)
    assert found.conditions == SETTINGS
    assert isinstance(found.conditions["size"], ConditionConfig)
    with pytest.raises(UserError, match="--generator: needs --extractor"):
        plan_evaluation(frozenset({"generator"}), options)
