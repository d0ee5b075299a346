"""Kinds of conditions: values to arrays in closed form, texts there and back, and bad values."""

from types import SimpleNamespace

import numpy as np
import pytest

from latentddpm import choices
from latentddpm.conditions.base import VectorCondition
from latentddpm.conditions.classes import ClassCondition
from latentddpm.conditions.conditions import Conditions
from latentddpm.conditions.kinds import KINDS
from latentddpm.conditions.labels import LabelsCondition
from latentddpm.conditions.number import ChangesCondition, NumberCondition
from latentddpm.conditions.words import in_order
from latentddpm.config import ConditionConfig
from latentddpm.errors import UserError

DIGIT = ClassCondition("digit", words=("0", "1", "2"))
FACE = LabelsCondition("face", words=("beard", "glasses", "smile"))
SUM = LabelsCondition("face", words=("beard", "glasses", "smile"), combine="sum")
AGE = NumberCondition("age", mean=(40.0,), std=(10.0,), range=(20.0, 60.0))
PLACE = NumberCondition("place", mean=(0.0, 1.0), std=(1.0, 2.0), range=(-1.0, 1.0, 0.0, 3.0))
ALL = [DIGIT, FACE, SUM, AGE, PLACE]
ALWAYS = [type(one)(**{**vars(one), "null": False}) for one in ALL]


def array(condition, *values):
    (found,) = condition.arrays(values).values()
    assert found.dtype == np.float32
    (entry,) = condition.inputs()
    assert found.shape == (len(values), entry.size), f"{found.shape}, but the input is {entry}"
    return found.tolist()


def message(function, *arguments):
    with pytest.raises(UserError) as caught:
        function(*arguments)
    text = str(caught.value)
    assert "\n" not in text, f"expected one line, got {text!r}"
    return text


def test_the_table_of_kinds_is_that_of_the_configuration():
    assert KINDS.keys() == choices.CONDITIONS.keys(), "kinds and choices differ"
    own = {*ConditionConfig.model_fields} - {"kind", "dropout"}
    taken = {key for keys in choices.CONDITIONS.values() for key in keys}
    assert taken == own, f"settings of no kind, or of no configuration: {taken ^ own}"
    assert all(name == kind.kind for name, kind in KINDS.items())


# --- Arrays, in closed form ----------------------------------------------------------------


def test_a_class_is_one_hot_and_not_told_is_the_row_behind_the_words():
    assert array(DIGIT, "1", None, "0") == [[0, 1, 0, 0], [0, 0, 0, 1], [1, 0, 0, 0]]
    assert array(ALWAYS[0], "2") == [[0, 0, 1]], "a table without a row for not told"


def test_labels_are_the_mean_or_the_sum_of_their_rows():
    both, none = ("glasses", "smile"), ()
    assert array(FACE, both, ("beard",), none, None) == [
        [0, 0.5, 0.5, 0],
        [1, 0, 0, 0],
        [0, 0, 0, 0],
        [0, 0, 0, 1],
    ]
    assert array(SUM, both, none) == [[0, 1, 1, 0], [0, 0, 0, 0]]
    assert array(ALWAYS[1], both) == [[0, 0.5, 0.5]]


def test_numbers_are_standardised_behind_a_one_and_not_told_is_zero():
    assert array(AGE, (45.0,), (20.0,), None) == [[1, 0.5], [1, -2], [0, 0]]
    assert array(PLACE, (1.0, 2.0)) == [[1, 1, 0.5]]
    assert array(ALWAYS[3], (45.0,)) == [[0.5]], "a number that is always told needs no one"


def test_changes_that_nobody_tells_are_zero():
    changes = ChangesCondition.of_scales({"zoom": 0.5, "turn": 10.0})
    assert array(changes, (0.5, -20.0), None) == [[1, -2], [0, 0]]
    told = Conditions((AGE, changes))
    assert told.check({"age": 30}) == {"age": (30.0,)}, "expected no question for the changes"
    assert told.vector_arrays([{}])["changes"].tolist() == [[0, 0]]
    assert not Conditions((changes,)).guided, "guidance has nothing to lead away from"


def test_the_range_of_a_number_is_that_of_the_data():
    values = [(1.0, -3.0), None, (2.0, -5.0), (6.0, -4.0)]
    found = NumberCondition.of_data("place", None, values, True)
    assert found.range == (1.0, 6.0, -5.0, -3.0)
    told = np.array(array(found, *filter(None, values)))[:, 1:]
    np.testing.assert_allclose(told.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(told.std(axis=0), 1, atol=1e-6)
    same = NumberCondition.of_data("age", None, [(3.0,), (3.0,)], True)
    assert array(same, (3.0,)) == [[1, 0]], "numbers that are all alike: no division by zero"


def test_words_of_data_are_in_order_of_the_numbers_in_them():
    assert in_order(["10", "9", "b2", "b10", "a", "9"]) == ("9", "10", "a", "b2", "b10")
    settings = SimpleNamespace(words=None, combine="sum")
    found = ClassCondition.of_data("digit", settings, ["10", None, "9", "10"], True)
    assert found.words == ("9", "10")
    labels = LabelsCondition.of_data("tags", settings, [("b", "a"), None, (), ("c",)], True)
    assert (labels.words, labels.combine) == (("a", "b", "c"), "sum")
    settings.words = ["z", "a"]
    assert ClassCondition.of_data("d", settings, ["a"], True).words == ("z", "a"), (
        "the given order"
    )


@pytest.mark.parametrize("condition", ALWAYS, ids=lambda one: f"{one.kind}-{one.name}")
def test_what_is_always_told_is_never_left_out(condition):
    said = message(condition.arrays, [None])
    assert said.startswith(f"{condition.name}: this model has to be told it"), said


def test_null_arrays_are_those_of_not_told():
    for condition in ALL:
        told = condition.arrays([None, None])
        others = {condition.name: np.ones_like(told[condition.name])}
        np.testing.assert_array_equal(
            condition.null_arrays(others)[condition.name], told[condition.name]
        )


# --- Texts and values ----------------------------------------------------------------------

TEXTS = [
    (DIGIT, "1", "1"),
    (DIGIT, " 2 ", "2"),
    (FACE, "smile,glasses", ("smile", "glasses")),
    (FACE, "smile", ("smile",)),
    (FACE, "none", ()),
    (AGE, "45", (45.0,)),
    (AGE, "0.1", (0.1,)),
    (AGE, "-1e3", (-1000.0,)),
    (PLACE, "0.5, 2", (0.5, 2.0)),
    (LabelsCondition("x", words=("none", "a")), "none", ("none",)),
]


@pytest.mark.parametrize(("condition", "text", "value"), TEXTS, ids=[text for _, text, _ in TEXTS])
def test_a_text_is_parsed_and_written_so_that_it_is_parsed_again(condition, text, value):
    found = condition.parse(text)
    assert found == value
    assert condition.check(found) == found, "what is parsed can be given in Python"
    assert condition.parse(condition.to_text(found)) == found, condition.to_text(found)
    condition.arrays([found])


@pytest.mark.parametrize(
    ("condition", "given", "value"),
    [
        (DIGIT, 1, "1"),
        (DIGIT, 1.0, "1"),
        (DIGIT, ["2"], "2"),
        (ClassCondition("bald", words=("no", "yes")), True, "yes"),
        (FACE, ["smile", "beard"], ("smile", "beard")),
        (FACE, "smile, beard", ("smile", "beard")),
        (FACE, [], ()),
        (AGE, 45, (45.0,)),
        (AGE, np.float32(0.5), (0.5,)),
        (PLACE, np.array([1.0, 2.0]), (1.0, 2.0)),
    ],
)
def test_python_values_are_taken_as_they_come(condition, given, value):
    assert condition.check(given) == value


@pytest.mark.parametrize(
    ("condition", "given", "words"),
    [
        (DIGIT, "7", ["digit", "'7'", "0, 1, 2"]),
        (ClassCondition("animal", words=("cat", "dog")), "cta", ["animal", "did you mean 'cat'"]),
        (DIGIT, "1,2", ["digit", "'1,2'", "one of"]),
        (DIGIT, ["1", "2"], ["digit", "one of"]),
        (DIGIT, [], ["digit"]),
        (DIGIT, 0.5, ["digit", "0.5"]),
        (FACE, "smile,glases", ["face", "'glases'", "did you mean 'glasses'"]),
        (FACE, "", ["face", "some of", "none"]),
        (FACE, {"smile": 1}, ["face"]),
        (AGE, "old", ["age", "a number", "20 … 60"]),
        (AGE, [1, 2], ["age", "a number"]),
        (AGE, float("nan"), ["age", "nan"]),
        (AGE, True, ["age", "True"]),
        (PLACE, 1.0, ["place", "2 numbers"]),
    ],
)
def test_a_bad_value_is_named_with_what_is_valid(condition, given, words):
    said = message(condition.check, given)
    missing = [word for word in words if word not in said]
    assert not missing, f"expected {missing} in {said!r}"


@pytest.mark.parametrize("text", ["1,2", "", "a"])
def test_a_bad_text_of_a_number_is_refused(text):
    assert "age" in message(AGE.parse, text)


def test_a_number_outside_of_the_data_is_told_with_a_warning():
    assert AGE.warning((60.0,)) == ""
    assert "70 is outside of 20 … 60" in AGE.warning((70.0,))
    assert "4 is outside of 0 … 3" in PLACE.warning((0.0, 4.0))
    assert NumberCondition("age").warning((1e9,)) == "", "without a known range no warning"
    assert DIGIT.warning("1") == ""


# --- Rows of data --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "column", "columns", "value"),
    [
        (ClassCondition, "folder", {"folder": "cat"}, "cat"),
        (ClassCondition, "digit", {"digit": 7}, "7"),
        (ClassCondition, "digit", {"digit": " 7 "}, "7"),
        (ClassCondition, "digit", {"digit": None}, None),
        (ClassCondition, "digit", {"digit": ""}, None),
        (ClassCondition, "digit", {}, None),
        (ClassCondition, "age", {"tags": "a"}, None),
        (LabelsCondition, "tags", {"tags": ["a", "b", "a"]}, ("a", "b")),
        (LabelsCondition, "tags", {"tags": "a, b,"}, ("a", "b")),
        (LabelsCondition, "tags", {"tags": []}, ()),
        (LabelsCondition, "tags", {"tags": None}, None),
        (NumberCondition, "age", {"age": "3.5"}, (3.5,)),
        (NumberCondition, "age", {"age": [1, 2]}, (1.0, 2.0)),
        (NumberCondition, ["x", "y"], {"x": 1, "y": 2}, (1.0, 2.0)),
        (NumberCondition, ["x", "y"], {"x": 1, "y": None}, None),
    ],
)
def test_a_row_of_data_has_a_value(kind, column, columns, value):
    assert kind.read(columns, column, "table line 3") == value


@pytest.mark.parametrize(
    ("kind", "column", "columns", "words"),
    [
        (ClassCondition, "digit", {"digit": "a, b"}, ["table line 3", "2 words", "labels"]),
        (ClassCondition, "digit", {"digit": {"a": 1}}, ["table line 3", "expected words"]),
        (ClassCondition, "digit", {"digit": 0.5}, ["0.5", "expected words"]),
        (NumberCondition, "age", {"age": "old"}, ["table line 3", "'age'", "expected numbers"]),
        (NumberCondition, "age", {"age": float("inf")}, ["expected numbers"]),
    ],
)
def test_a_bad_row_is_named(kind, column, columns, words):
    said = message(kind.read, columns, column, "table line 3")
    missing = [word for word in words if word not in said]
    assert not missing, f"expected {missing} in {said!r}"


# --- JSON ----------------------------------------------------------------------------------


@pytest.mark.parametrize("condition", [*ALL, *ALWAYS], ids=lambda one: f"{one.kind}-{one.null}")
def test_a_model_folder_keeps_all_of_a_condition(condition):
    entry = condition.to_json()
    assert (entry["name"], entry["kind"]) == (condition.name, condition.kind)
    (again,) = Conditions.from_json([entry])
    assert again == condition
    assert isinstance(again, VectorCondition)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"name": "digit", "kind": "clas"}, ["digit", "did you mean 'class'"]),
        ({"name": "digit", "kind": "class", "wrds": []}, ["digit", "wrds"]),
        ({"name": "age", "kind": "number", "mean": [1.0, 2.0]}, ["age", "different numbers"]),
        ({"kind": "class"}, ["a name, a kind"]),
        ("digit", ["a name, a kind"]),
    ],
)
def test_a_malformed_entry_of_a_model_folder_is_refused(entry, words):
    said = message(Conditions.from_json, [entry])
    missing = [word for word in words if word not in said]
    assert not missing, f"expected {missing} in {said!r}"
