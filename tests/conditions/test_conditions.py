"""Conditions of a model: which one a value is meant for, rows of values, inputs of the network."""

import numpy as np
import pytest

from latentddpm.conditions.classes import ClassCondition
from latentddpm.conditions.conditions import NO_CONDITIONS, Conditions
from latentddpm.conditions.labels import LabelsCondition
from latentddpm.conditions.number import NumberCondition
from latentddpm.errors import UserError

DIGIT = ClassCondition("digit", words=("0", "1", "7"))
FACE = LabelsCondition("face", words=("glasses", "smile"))
AGE = NumberCondition("age", mean=(40.0,), std=(10.0,), range=(20.0, 60.0))
SIDE = ClassCondition("side", null=False, words=("left", "right"))
MODEL = Conditions((DIGIT, FACE, AGE))


def message(function, *arguments):
    with pytest.raises(UserError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value), f"expected one line, got {caught.value}"
    return str(caught.value)


# --- Which condition is meant --------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "rows"),
    [
        ([], []),
        (["digit=7"], [{"digit": "7"}]),
        (["smile"], [{"face": ("smile",)}]),
        (["smile,glasses"], [{"face": ("smile", "glasses")}]),
        (["age=30"], [{"age": (30.0,)}]),
        (["age = 30"], [{"age": (30.0,)}]),
        (["digit=7", "age=30"], [{"digit": "7", "age": (30.0,)}]),
        (["digit=1", "digit=7"], [{"digit": "1"}, {"digit": "7"}]),
        (
            ["digit=1", "digit=7", "smile"],
            [{"digit": "1", "face": ("smile",)}, {"digit": "7", "face": ("smile",)}],
        ),
    ],
)
def test_texts_are_of_the_condition_that_they_name_or_fit(texts, rows):
    assert MODEL.parse(texts) == rows


def test_a_value_of_the_only_condition_needs_no_name():
    assert Conditions((DIGIT,)).parse(["7", "0"]) == [{"digit": "7"}, {"digit": "0"}]
    odd = Conditions((ClassCondition("sum", words=("a=b", "c")),))
    assert odd.parse(["a=b"]) == [{"sum": "a=b"}], "a word may have an equals sign"


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["7"], ["7", "NAME=VALUE", "digit", "age"]),  # a digit, and an age
        (["digt=7"], ["did you mean 'digit'"]),
        (["digit=8"], ["digit", "'8'", "0, 1, 7"]),
        (["cat"], ["cat", "digit", "face", "age"]),
        (["digit=1", "digit=7", "age=1", "age=2", "age=3"], ["digit", "2 values", "3 rows"]),
    ],
)
def test_what_cannot_be_meant_is_refused_in_a_line(texts, words):
    said = message(MODEL.parse, texts)
    missing = [word for word in words if word not in said]
    assert not missing, f"expected {missing} in {said!r}"


def test_one_condition_says_what_is_wrong_with_a_value():
    said = message(Conditions((DIGIT,)).parse, ["8"])
    assert "'8'" in said
    assert "0, 1, 7" in said
    said = message(NO_CONDITIONS.parse, ["digit=8"])
    assert said == "digit: is no condition of this model; it has none"


def test_two_of_one_name_are_refused():
    assert "'digit'" in message(Conditions, (DIGIT, DIGIT))


# --- Values of rows ------------------------------------------------------------------------


def test_rows_are_a_mapping_or_a_sequence_of_them():
    assert MODEL.rows(None) == [{}]
    assert MODEL.rows({"age": 30, "digit": 7, "face": None}) == [{"digit": "7", "age": (30.0,)}]
    assert MODEL.rows([{"digit": 1}, {}]) == [{"digit": "1"}, {}]


@pytest.mark.parametrize("given", ["7", 7, [], ["7"], [{"digit": 7}, 7]])
def test_other_rows_are_refused(given):
    assert message(MODEL.rows, given).startswith("conditions: ")


def test_a_name_that_the_model_does_not_have_is_refused():
    assert "did you mean 'digit'" in message(MODEL.check, {"digits": 7})


def test_what_is_always_told_cannot_be_left_out():
    both = Conditions((DIGIT, SIDE))
    assert both.check({"side": "left"}) == {"side": "left"}
    for values in ({}, {"side": None}, {"digit": 7}):
        assert message(both.check, values).startswith("side: this model has to be told it")


def test_texts_of_values_give_the_values_again():
    values = MODEL.check({"digit": 7, "face": ["smile", "glasses"], "age": 30.5})
    texts = MODEL.texts(values)
    assert texts == {"digit": "7", "face": "smile,glasses", "age": "30.5"}
    assert MODEL.from_texts(texts) == values
    assert MODEL.to_text(values) == "digit=7, face=smile,glasses, age=30.5"
    assert MODEL.to_text({}) == ""
    assert "digit" in message(MODEL.from_texts, {"digit": 7})


def test_warnings_are_those_of_the_conditions():
    (line,) = MODEL.warnings({"digit": "7", "age": (70.0,)})
    assert "70" in line


# --- Inputs of the network -----------------------------------------------------------------


def test_inputs_are_those_of_the_network_in_order():
    assert MODEL.specs() == [
        {"name": "digit", "enters": "rows", "size": 4},
        {"name": "face", "enters": "rows", "size": 3},
        {"name": "age", "enters": "projection", "size": 2},
    ]


def test_guidance_leads_away_from_what_can_be_left_out_alone():
    both = Conditions((DIGIT, SIDE))
    arrays = both.vector_arrays([{"digit": "7", "side": "left"}, {"side": "right"}])
    assert arrays["digit"].tolist() == [[0, 0, 1, 0], [0, 0, 0, 1]]
    assert arrays["side"].tolist() == [[1, 0], [0, 1]]
    null = both.null_arrays(arrays)
    assert null["digit"].tolist() == [[0, 0, 0, 1]] * 2
    np.testing.assert_array_equal(null["side"], arrays["side"])
    assert both.guided
    assert not Conditions((SIDE,)).guided


def test_untold_is_one_row_of_what_can_be_left_out():
    found = Conditions((DIGIT, SIDE, AGE)).untold()
    assert {name: array.tolist() for name, array in found.items()} == {
        "digit": [[0, 0, 0, 1]],
        "age": [[0, 0]],
    }


def test_a_model_folder_keeps_the_order():
    assert Conditions.from_json(MODEL.to_json()) == MODEL
    assert Conditions.from_json(None) == NO_CONDITIONS
