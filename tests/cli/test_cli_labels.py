"""`generate --label`: rows, metadata, the same bytes again, grids; what `info` says of labels."""

import json

import pytest
from command_line import call, pixels, refused, refused_before, succeeds
from tiny import quick_model, step_by_step

from latentddpm.conditions.classes import ClassCondition
from latentddpm.conditions.conditions import Conditions
from latentddpm.conditions.labels import LabelsCondition
from latentddpm.conditions.number import NumberCondition
from latentddpm.utils.pixels import read_metadata

TOLD = Conditions(
    (
        ClassCondition("digit", words=("0", "1", "7")),
        LabelsCondition("face", words=("glasses", "smile")),
        NumberCondition("age", mean=(40.0,), std=(10.0,), range=(20.0, 60.0)),
    )
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The folder of an untrained model that is told a digit, words and an age, and no text."""
    folder = tmp_path_factory.mktemp("told") / "model"
    quick_model(text=False, conditions=TOLD).save(folder)
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain") / "model"
    quick_model(text=False).save(folder)
    return folder


def generate(model, *arguments):
    return call("generate", "--model", model, "--steps", 2, *arguments)


def labels(*texts):
    return [part for text in texts for part in ("--label", text)]


@step_by_step()
def test_a_png_remembers_its_labels_and_gives_the_same_bytes_again(model, tmp_path):
    out, again, other = (tmp_path / f"{name}.png" for name in ("out", "again", "other"))
    given = labels("digit=7", "smile,glasses", "age=30.5")
    succeeds(generate(model, "--seed", 7, "--out", out, *given))
    made = read_metadata(out)
    assert made["labels"] == {"digit": "7", "face": "smile,glasses", "age": "30.5"}
    done = succeeds(call("generate", "--from", out, "--out", again))
    assert "every pixel as in" in done.stderr, done.stderr
    assert again.read_bytes() == out.read_bytes(), "expected the same bytes"
    succeeds(call("generate", "--from", out, "--out", other, *labels("digit=1")))
    assert read_metadata(other)["labels"] == {"digit": "1"}, "what is given replaces what was"
    assert (pixels(other) != pixels(out)).any(), "another digit, the same picture"
    shown = succeeds(call("info", out)).stdout
    assert json.loads(shown)["labels"] == made["labels"]


@step_by_step()
def test_a_label_that_is_given_several_times_is_a_row_each(model, tmp_path):
    grid, again, single = (tmp_path / f"{name}.png" for name in ("grid", "again", "single"))
    given = labels("digit=1", "digit=7", "age=30")
    succeeds(generate(model, "--seed", 3, "--num-images", 2, "--grid", "--out", grid, *given))
    made = read_metadata(grid)
    assert made["labels"] == [{"digit": "1", "age": "30"}, {"digit": "7", "age": "30"}]
    assert made["num_images"] == 2
    assert pixels(grid).shape[0] > 2 * 32, f"a grid of {pixels(grid).shape}"
    succeeds(call("generate", "--from", grid, "--out", again))
    assert read_metadata(again) == made
    assert (pixels(again) == pixels(grid)).all()
    folder = tmp_path / "all"
    succeeds(generate(model, "--seed", 3, "--num-images", 2, "--out", folder, *given))
    files = sorted(folder.glob("*.png"))
    assert [read_metadata(one)["seed"] for one in files] == [3, 4, 5, 6], files
    assert [read_metadata(one)["labels"]["digit"] for one in files] == ["1", "1", "7", "7"]
    assert "7" in files[2].name, f"named {files[2].name}"
    succeeds(call("generate", "--from", files[2], "--out", single))
    assert read_metadata(single) == read_metadata(files[2])
    assert (pixels(single) == pixels(files[2])).all()


@step_by_step()
def test_an_image_that_is_told_nothing_says_so(model, plain, tmp_path):
    done = succeeds(generate(model, "--seed", 1, "--out", tmp_path / "a.png"))
    assert "no --label" in done.stderr, done.stderr
    assert "labels" not in read_metadata(tmp_path / "a.png")
    done = succeeds(generate(model, "--seed", 1, "--out", tmp_path / "b.png", *labels("age=90")))
    assert "90 is outside of 20 … 60" in done.stderr, done.stderr
    succeeds(generate(plain, "--seed", 1, "--out", tmp_path / "c.png"))
    assert "labels" not in read_metadata(tmp_path / "c.png")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["digt=7"], ["digt=7", "did you mean 'digit'"]),
        (["digit=8"], ["digit", "'8'", "0, 1, 7"]),
        (["smiles"], ["smiles", "digit, face, age"]),
        (["face=smile,glases"], ["'glases'", "did you mean 'glasses'"]),
        (["age=old"], ["age", "'old'", "20 … 60"]),
        (["digit=1", "digit=7", "age=1", "age=2", "age=3"], ["digit", "2 values", "3 rows"]),
    ],
)
def test_a_bad_label_is_refused_in_one_line(model, tmp_path, given, words):
    refused(generate(model, "--out", tmp_path / "a.png", *labels(*given)), *words)
    assert not (tmp_path / "a.png").exists()


def test_labels_are_judged_before_keras_is_imported(model, plain, tmp_path):
    lines = [
        ["generate", "--model", model, "--out", tmp_path / "a.png", "--label", "digit=8"],
        ["generate", "--model", plain, "--out", tmp_path / "a.png", "--label", "7"],
    ]
    refused_before("keras", lines, tmp_path)


def test_labels_of_another_model_are_refused(model, plain, tmp_path):
    with step_by_step():
        succeeds(generate(model, "--seed", 1, "--out", tmp_path / "a.png", *labels("digit=7")))
    done = call(
        "generate", "--from", tmp_path / "a.png", "--model", plain, "--out", tmp_path / "b"
    )
    refused(done, "made by model")


def test_info_of_a_model_lists_its_conditions(model, plain):
    lines = succeeds(call("info", model)).stdout.splitlines()
    found = [line for line in lines if line.startswith("condition ")]
    assert found == [
        "condition  digit (class): one of 0, 1, 7",
        "condition  face (labels): some of glasses, smile, or none",
        "condition  age (number): a number, 20 … 60",
    ]
    assert "condition" not in succeeds(call("info", plain)).stdout
