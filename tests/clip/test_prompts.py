"""Prompts, seeds and counts as people give them; other tools' syntax in prompts."""

import numpy as np
import pytest

from latentddpm.clip.prompts import (
    MAX_IMAGES,
    for_each_image,
    for_each_prompt,
    foreign_syntax,
    read_count,
    read_texts,
)
from latentddpm.errors import UserError
from latentddpm.pipeline.seeds import MAX_SEED, image_seeds


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, [""]),
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        (("a", None), ["a", ""]),
        (np.array(["a", "b"]), ["a", "b"]),
    ],
)
def test_texts_are_read_as_they_are_given(given, expected):
    assert read_texts("prompt", given) == expected, f"{given!r}: expected {expected}"


@pytest.mark.parametrize("given", [3, 2.5, b"a", [], {}, {"a": 1}, [1], [["a"]], True, object()])
def test_what_is_no_text_is_refused(given):
    with pytest.raises(UserError, match=r"^prompt: .*expected"):
        read_texts("prompt", given)


@pytest.mark.parametrize("given", [1, np.int64(1), np.array(1), np.uint8(1)])
def test_a_count_is_any_whole_number(given):
    found = read_count("num_images", given)
    assert (found, type(found)) == (1, int), f"expected Python's 1, got {found!r}"


@pytest.mark.parametrize("given", [0, -1, 2.0, 2.5, True, "3", None, [1], float("nan")])
def test_what_is_no_count_is_refused(given):
    with pytest.raises(UserError, match=r"^num_images: .*expected a whole number of at least 1"):
        read_count("num_images", given)


@pytest.mark.parametrize(
    "given", [[5, 6], (5, 6), range(5, 7), np.array([5, 6]), [np.int64(5), np.array(6)], 5]
)
def test_seeds_are_read_as_they_are_given(given):
    found = image_seeds(given, 2)
    assert found == [5, 6], f"{given!r}: expected [5, 6], got {found}"
    assert {type(one) for one in found} == {int}, "expected Python's numbers"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("3", "expected a whole number"),
        (2.0, "expected a whole number"),
        (True, "expected a whole number"),
        ([1, None], "expected a whole number"),
        (["1", "2"], "expected a whole number"),
        (np.array([1.0, 2.0]), "expected a whole number"),
        (np.array([[1, 2], [3, 4]]), "expected a whole number"),
        ({1, 2}, "expected a whole number"),
        ([1, 2, 3], "3 seeds for 2 images"),
        (-1, "leave it out to draw one"),
        (MAX_SEED, str(MAX_SEED - 2)),
    ],
)
def test_what_is_no_seed_is_refused(given, words):
    with pytest.raises(UserError, match=f"^seed: .*{words}"):
        image_seeds(given, 2)


def test_a_negative_prompt_is_for_all_or_for_each():
    assert for_each_prompt(["c"], ["a", "b"]) == ["c", "c"], "expected one for all"
    assert for_each_prompt(["c", "d"], ["a", "b"]) == ["c", "d"], "expected one for each"
    with pytest.raises(UserError, match=r"negative_prompt: 2 given for 3 prompts.*one for all"):
        for_each_prompt(["c", "d"], ["a", "b", "c"])


def test_each_prompt_gives_its_images_in_order():
    assert for_each_image(["a", "b"], 2) == ["a", "a", "b", "b"], "expected images by prompt"
    with pytest.raises(UserError, match=f"at most {MAX_IMAGES:,}"):
        for_each_image(["a"], 10**12)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(red:1.3) apple <lora:x:0.8>", ["(red:1.3)", "<lora:x:0.8>"]),
        ("[red|green] apple", ["[red|green]"]),
        ("[red:green:10] apple", ["[red:green:10]"]),
        ("a BREAK b", ["BREAK"]),
        ("a ((red)) cat AND a dog", ["((red))", "AND"]),
        ("{red|blue} __animal__", ["{red|blue}", "__animal__"]),
        ("a cat --ar 16:9", ["--ar"]),
        ("a <cat-toy>, embedding:bad", ["<cat-toy>", "embedding:bad"]),
        ("a (nice) cat at 12:30, x < 3 > y", []),
        ("BLACK AND WHITE", []),
        ("rock-and-roll (1985), c++, :-)", []),
    ],
)
def test_the_syntax_of_other_tools_is_found(text, expected):
    found = foreign_syntax([text, text])
    assert found == expected, f"{text}: expected {expected}, each once, got {found}"
