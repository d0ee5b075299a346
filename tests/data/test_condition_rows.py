"""Conditions in the data: the value of each image, and how often each is dropped, alone or all."""

import json

import numpy as np
import pytest
from PIL import Image

from latentddpm.clip.tokenizer import CLIPTokenizer
from latentddpm.conditions.classes import ClassCondition
from latentddpm.conditions.conditions import Conditions
from latentddpm.conditions.labels import LabelsCondition
from latentddpm.conditions.number import NumberCondition
from latentddpm.config import ConditionConfig, DiffusionRun
from latentddpm.config_file import parse_config
from latentddpm.data.batches import alone
from latentddpm.data.catalog.scan import open_catalog
from latentddpm.data.conditions.rows import ConditionRows, read_conditions, read_rows
from latentddpm.data.examples import noisy_examples
from latentddpm.diffusion.schedule import NoiseSchedule
from latentddpm.errors import UserError

ROWS = {
    "cat/0.png": {"digit": 3, "tags": ["smile", "hat"], "age": 20.5, "x": 1, "y": 2},
    "cat/1.png": {"digit": "7", "tags": "hat, beard", "age": "40", "x": 3, "y": 4},
    "dog/2.png": {"digit": None, "tags": [], "age": None, "x": None, "y": 5},
    "dog/3.png": {"tags": None},
    "dog/big/4.png": {"digit": 10, "tags": ["smile"], "age": 0, "x": 0, "y": 0},
}


def folder_of(folder, rows):
    for name in rows:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), "red").save(folder / name)
    lines = [json.dumps({"file_name": name, **row}) for name, row in rows.items()]
    (folder / "metadata.jsonl").write_text("\n".join(lines), "utf-8")
    return folder


@pytest.fixture(scope="module")
def catalog(tmp_path_factory):
    folder = folder_of(tmp_path_factory.mktemp("data") / "pictures", ROWS)
    return open_catalog(folder, tmp_path_factory.mktemp("catalog"), quiet=True)


def read(catalog, null=True, known=None, name="it", **settings):
    return read_rows(name, ConditionConfig(**settings), catalog, null, known)


def values(rows, catalog):
    return {catalog.name(image): rows.value(image) for image in range(len(catalog))}


def message(function, *arguments, **settings):
    with pytest.raises(UserError) as caught:
        function(*arguments, **settings)
    assert "\n" not in str(caught.value), f"expected one line, got {caught.value}"
    return str(caught.value)


# --- Values of images ----------------------------------------------------------------------


def test_the_folder_of_an_image_is_its_class(catalog):
    rows = read(catalog)
    assert rows.condition == ClassCondition("it", words=("big", "cat", "dog"))
    found = values(rows, catalog)
    assert found == {name: name.split("/")[-2] for name in ROWS}


def test_words_of_a_column_are_in_order_and_missing_ones_are_not_told(catalog):
    rows = read(catalog, column="digit")
    assert rows.condition.words == ("3", "7", "10")
    assert list(values(rows, catalog).values()) == ["3", "7", None, None, "10"]


def test_labels_are_lists_or_texts_with_commas(catalog):
    rows = read(catalog, kind="labels", column="tags")
    assert rows.condition == LabelsCondition("it", words=("beard", "hat", "smile"))
    expected = [("smile", "hat"), ("hat", "beard"), (), None, ("smile",)]
    assert list(values(rows, catalog).values()) == expected


def test_numbers_may_be_of_several_columns(catalog):
    rows = read(catalog, kind="number", column="age")
    assert list(values(rows, catalog).values()) == [(20.5,), (40.0,), None, None, (0.0,)]
    assert rows.condition.range == (0.0, 40.0)
    rows = read(catalog, kind="number", column=["x", "y"])
    assert list(values(rows, catalog).values())[:3] == [(1.0, 2.0), (3.0, 4.0), None]
    assert rows.condition.range == (0.0, 3.0, 0.0, 4.0)


def test_a_batch_is_the_arrays_of_its_images(catalog):
    rows = read(catalog, column="digit")
    images, dropped = np.array([4, 2, 1, 0]), np.array([False, False, True, False])
    (found,) = rows.batch(images, dropped, dropped, images)
    assert found.tolist() == [[0, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 1], [1, 0, 0, 0]]


def test_words_and_range_of_a_model_stay(catalog):
    known = ClassCondition("it", words=("10", "7", "3", "0"))
    assert read(catalog, known=known, column="digit").condition is known
    few = ClassCondition("it", words=("3", "7"))
    said = message(read, catalog, known=few, column="digit")
    assert "4.png: it: '10' is not among the words" in said, said
    age = NumberCondition("it", mean=(1.0,), std=(2.0,), range=(0.0, 3.0))
    assert read(catalog, known=age, column="age").condition is age
    settings = {"it": ConditionConfig(column="digit")}
    (found,) = read_conditions(Conditions((known,)), settings, catalog)
    assert found.condition is known


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"column": "colour"}, ["conditions.it", "'colour'", "columns are", "'digit'"]),
        ({"column": "digits"}, ["conditions.it", "'digits'", "did you mean 'digit'"]),
        ({"kind": "number", "column": ["x", "z"]}, ["conditions.it", "'x', 'z'", "'y'"]),
        ({"column": "tags"}, ["line 1", "2 words", "labels"]),
        ({"kind": "number", "column": "tags"}, ["line 1", "'tags'", "expected numbers"]),
        ({"column": "digit", "words": ["3", "7"]}, ["4.png", "'10'", "3, 7"]),
    ],
)
def test_data_without_the_values_is_refused_with_the_row(catalog, settings, words):
    said = message(read, catalog, **settings)
    missing = [word for word in words if word not in said]
    assert not missing, f"expected {missing} in {said!r}"


def test_images_in_no_folder_have_no_class(tmp_path):
    folder = folder_of(tmp_path / "flat", {"0.png": {}, "1.png": {}})
    catalog = open_catalog(folder, tmp_path / "catalog", quiet=True)
    assert "its images lie in no folder" in message(read, catalog)


def test_what_is_always_told_is_needed_of_every_image(catalog):
    said = message(read, catalog, null=False, column="digit")
    assert "2 of 5 images have no value, such as" in said, said
    assert "conditions.it.dropout" in said, said
    assert read(catalog, null=False).condition.null is False


def test_rows_of_values_in_memory_are_checked():
    digit = ClassCondition("digit", words=("3", "7"))
    rows = ConditionRows.of(digit, [7, None, "3"])
    assert [rows.value(k) for k in range(3)] == ["7", None, "3"]
    assert "'8'" in message(ConditionRows.of, digit, [8])


# --- What is drawn -------------------------------------------------------------------------

LATENTS = (np.arange(6 * 4 * 4 * 2) % 7 / 7 - 0.5).astype("float32").reshape(6, 4, 4, 2)
CAPTIONS = ["red apple", "cat", "", "rocket", "blue hat", "tree"]
TOKENIZER = CLIPTokenizer(8)
DIGIT = ConditionRows.of(ClassCondition("digit", words=("0", "1")), list("010101"))
AGE = ConditionRows.of(NumberCondition("age", mean=(3.0,)), [float(k) for k in range(6)])
SIDE = ConditionRows.of(ClassCondition("side", null=False, words=("l", "r")), list("lrlrlr"))


def drawn(count, batch_size=500, **settings):
    given = {"captions": CAPTIONS, "tokenizer": TOKENIZER, **settings}
    batches = noisy_examples(LATENTS, NoiseSchedule(), batch_size=batch_size, seed=3, **given)
    found = []
    for inputs, target in batches.take(-(-count // batch_size)):
        found.append({name: one.numpy() for name, one in {**inputs, "target": target}.items()})
    return {name: np.concatenate([one[name] for one in found])[:count] for name in found[0]}


def test_without_conditions_all_is_drawn_as_before_there_were_any():
    """Sums of the first batch, and of its squares, computed before conditions came."""
    found = drawn(32, 32, condition_dropout=0.25)
    expected = {
        "noisy_latents": (-80.72413570433855, 721.0235110502441),
        "timesteps": (19360, 14857500),
        "token_ids": (11361032, 557056677072),
        "target": (-83.56169213360408, 989.4400257183988),
    }
    assert found.keys() == expected.keys()
    assert found["timesteps"][:8].tolist() == [542, 5, 825, 258, 760, 816, 388, 497]
    for name, sums in expected.items():
        values = found[name].astype("float64")
        assert (values.sum(), (values**2).sum()) == pytest.approx(sums, rel=1e-6), name


def test_conditions_change_nothing_else():
    """The same images, noise, captions and dropped captions; also where each drops alone."""
    plain = drawn(200, condition_dropout=0.3)
    told = drawn(200, condition_dropout=0.3, conditions=[DIGIT], dropouts={"digit": 0.5})
    for name, one in plain.items():
        np.testing.assert_array_equal(told[name], one, err_msg=name)


def test_an_example_is_a_function_of_its_position():
    settings = {"condition_dropout": 0.2, "conditions": [DIGIT, AGE], "dropouts": {"age": 0.3}}
    whole, small = drawn(60, 60, **settings), drawn(60, 7, **settings)
    for name, one in whole.items():
        np.testing.assert_array_equal(small[name], one, err_msg=name)


def test_a_condition_is_that_of_the_image():
    found = drawn(600, conditions=[DIGIT, AGE], condition_dropout=0)
    rows = {tuple(TOKENIZER([text])[0]): k for k, text in enumerate(CAPTIONS)}
    images = np.array([rows[tuple(ids)] for ids in found["token_ids"]])
    assert (found["digit"][:, :2].argmax(axis=1) == images % 2).all(), "digits of other images"
    np.testing.assert_allclose(found["age"], np.stack([images * 0 + 1, images - 3], axis=1))


def test_each_thing_is_dropped_alone_and_all_together_as_often_as_asked():
    """Of 20,000 examples: P(dropped) = 1 − (1 − together)(1 − alone), and alone independently."""
    count, together = 20_000, 0.1
    alone_ = {"text": 0.2, "digit": 0.05, "age": 0.0}
    given = {"captions": ["red apple"] * 6, "conditions": [DIGIT, AGE, SIDE]}
    found = drawn(count, condition_dropout=together, dropouts=alone_, **given)
    empty = np.asarray(TOKENIZER([""]))[0]
    dropped = {
        "text": (found["token_ids"] == empty).all(axis=1),
        "digit": found["digit"][:, -1] == 1,
        "age": found["age"][:, 0] == 0,
    }
    assert (found["side"].sum(axis=1) == 1).all(), "what is always told was dropped"
    assert not (dropped["age"] & ~dropped["text"]).any(), "age is dropped with all others only"

    def near(share, expected, what):
        bound = 4 * np.sqrt(expected * (1 - expected) / count)
        assert abs(share - expected) < bound, f"{what}: {share:.4f}, expected {expected:.4f}"

    for name, own in alone_.items():
        near(dropped[name].mean(), 1 - (1 - together) * (1 - own), name)
    all_three = dropped["text"] & dropped["digit"] & dropped["age"]
    near(all_three.mean(), together, "all together")
    text_alone = dropped["text"] & ~dropped["digit"]
    near(text_alone.mean(), 0.9 * 0.2 * 0.95, "text without the digit")
    both = dropped["text"] & dropped["digit"] & ~dropped["age"]
    near(both.mean(), 0.9 * 0.2 * 0.05, "text and digit, each for itself")


def test_what_is_dropped_alone_is_what_the_configuration_says():
    conditions = {"digit": {"dropout": 0.2}, "age": {"kind": "number"}}
    config = parse_config(DiffusionRun, {"conditions": conditions, "text": {"dropout": 0.1}})
    assert alone(config) == {"text": 0.1, "digit": 0.2, "age": 0.05}
    config = parse_config(DiffusionRun, {"conditions": {"digit": {}}, "text": {"dropout": 0}})
    assert alone(config) == {"text": 0.0, "digit": 0.05}
