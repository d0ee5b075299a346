"""Models that are told conditions: `generate` in Python, and their folders."""

import json
import shutil

import numpy as np
import pytest
from tiny import quick_model, step_by_step

from latentddpm.conditions.classes import ClassCondition
from latentddpm.conditions.conditions import NO_CONDITIONS, Conditions
from latentddpm.conditions.number import NumberCondition
from latentddpm.errors import UserError
from latentddpm.pipeline.latent_diffusion import LatentDiffusion
from latentddpm.pipeline.model_folder import read_model_folder

DIGIT = ClassCondition("digit", words=("0", "1", "7"))
AGE = NumberCondition("age", mean=(40.0,), std=(10.0,), range=(20.0, 60.0))
BOTH = Conditions((DIGIT, AGE))


def told_model(conditions=BOTH, text=True):
    """An untrained model that words, the digit and the age all move."""
    return quick_model(text=text, conditions=conditions)


@pytest.fixture(scope="module")
def model():
    return told_model()


@pytest.fixture(scope="module")
def wordless():
    return told_model(Conditions((DIGIT,)), text=False)


@pytest.fixture(scope="module")
def bare():
    """A model without conditions."""
    return quick_model(text=False)


@pytest.fixture(scope="module")
def saved(bare, tmp_path_factory):
    """Its folder."""
    return bare.save(tmp_path_factory.mktemp("bare") / "model")


def drawn(model, *prompt, **given):
    with step_by_step():
        return model.generate(*prompt, **{"seed": 3, "num_steps": 2, "output": "latents", **given})


def close(one, other, what):
    np.testing.assert_allclose(one, other, atol=2e-4, err_msg=what)


def message(function, *arguments, **options):
    with pytest.raises(UserError) as caught:
        function(*arguments, **options)
    assert "\n" not in str(caught.value), f"expected one line, got {caught.value}"
    return str(caught.value)


# --- generate ------------------------------------------------------------------------------


def test_every_condition_changes_the_image(model):
    told = {"digit": 7, "age": 30}
    whole = drawn(model, "red apple", conditions=told)
    for change in ({"digit": 1}, {"age": 60}, {"digit": None}, {"age": None}):
        other = drawn(model, "red apple", conditions={**told, **change})
        assert np.abs(other - whole).max() > 1e-3, f"{change} changes nothing"
    again = drawn(model, "red apple", conditions={"age": 30.0, "digit": "7"})
    np.testing.assert_array_equal(again, whole, err_msg="the same values in another form")


def test_rows_of_conditions_are_images_of_their_own(model):
    rows = [{"digit": 7}, {"age": 30}, {}]
    found = drawn(model, "cat", conditions=rows)
    assert found.shape[0] == 3, f"{len(found)} images of three rows"
    for k, row in enumerate(rows):
        close(found[k : k + 1], drawn(model, "cat", seed=3 + k, conditions=row), f"row {k}")
    twice = drawn(model, "cat", conditions=rows[:2], num_images=2)
    close(twice[2:3], drawn(model, "cat", seed=5, conditions=rows[1]), "rows in order")


def test_a_list_has_the_conditions_of_each_prompt(model):
    prompts, rows = ["cat", "red apple"], [{"digit": 1}, {"digit": 7}]
    found = drawn(model, prompts, conditions=rows)
    close(found[1:], drawn(model, "red apple", seed=4, conditions=rows[1]), "the second prompt")
    one = drawn(model, prompts, conditions=rows[0])
    close(one[:1], found[:1], "a mapping is for all prompts")
    said = message(model.generate, prompts, conditions=[{}, {}, {}])
    assert said.startswith("conditions: 3 given for 2 prompts"), said


def test_the_seeds_do_not_depend_on_conditions(wordless):
    """Without guidance and with nothing told an image is that of its seed in any batch."""
    alone = drawn(wordless, seed=4)
    close(drawn(wordless, conditions=[{"digit": 7}, {}], seed=3)[1:], alone, "seed + 1")


def test_guidance_leads_away_from_what_is_not_told(wordless):
    """Linear in the scale at one step: s = 0 tells nothing, s = 3 goes three times as far."""
    one = {"num_steps": 1, "sampler": "ddim"}
    at = {s: drawn(wordless, conditions={"digit": 7}, guidance_scale=s, **one) for s in (0, 1, 3)}
    close(at[0], drawn(wordless, guidance_scale=1, **one), "s = 0 is not told")
    np.testing.assert_allclose(
        at[3] - at[0], 3 * (at[1] - at[0]), rtol=1e-3, atol=1e-3, err_msg="ε̃ is linear in s"
    )


def test_what_is_always_told_is_told_in_both_halves():
    side = ClassCondition("side", null=False, words=("left", "right"))
    model = told_model(Conditions((side,)), text=False)
    assert "side" in message(model.generate)
    one = drawn(model, conditions={"side": "left"}, guidance_scale=1)
    assert np.abs(drawn(model, conditions={"side": "right"}) - one).max() > 1e-3
    said = message(model.generate, conditions={"side": "left"}, guidance_scale=3.0)
    assert "guidance_scale" in said, said


@pytest.mark.parametrize(
    ("conditions", "words"),
    [
        ({"digt": 7}, ["digt", "did you mean 'digit'"]),
        ({"digit": 8}, ["digit", "'8'", "0, 1, 7"]),
        ({"age": "old"}, ["age", "a number", "20 … 60"]),
        ("digit=7", ["conditions", "names with values"]),
    ],
)
def test_bad_conditions_are_refused_before_anything_is_drawn(model, conditions, words):
    said = message(model.generate, "cat", conditions=conditions)
    missing = [word for word in words if word not in said]
    assert not missing, f"expected {missing} in {said!r}"


def test_a_model_without_conditions_says_that_it_has_none(bare):
    said = message(bare.generate, conditions={"digit": 7})
    assert said == "digit: is no condition of this model; it has none"


# --- Folders -------------------------------------------------------------------------------


def test_a_folder_keeps_conditions_and_draws_the_same(model, tmp_path):
    folder = model.save(tmp_path / "model")
    assert folder.conditions == BOTH
    entries = json.loads((tmp_path / "model" / "pipeline.json").read_text("utf-8"))["conditions"]
    assert [(one["name"], one["kind"]) for one in entries] == [
        ("digit", "class"),
        ("age", "number"),
    ]
    again = LatentDiffusion.load(tmp_path / "model", engine="keras")
    assert again.conditions == BOTH
    told = {"digit": 7, "age": 30}
    np.testing.assert_array_equal(
        drawn(again, "cat", conditions=told), drawn(model, "cat", conditions=told)
    )
    shown = repr(again)
    assert "digit (class): one of 0, 1, 7" in shown, shown
    assert "age (number): a number, 20 … 60" in shown, shown


def test_a_folder_without_conditions_reads_as_before(saved):
    assert saved.conditions == NO_CONDITIONS
    manifest = json.loads((saved.path / "pipeline.json").read_text("utf-8"))
    assert "conditions" not in manifest


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([{"name": "digit", "kind": "clas"}], ["digit", "did you mean 'class'"]),
        ([{"kind": "class"}], ["a name, a kind"]),
        ({"digit": "class"}, ["conditions"]),
    ],
)
def test_a_malformed_manifest_is_refused(saved, tmp_path, entries, words):
    shutil.copytree(saved.path, tmp_path / "model")
    path = tmp_path / "model" / "pipeline.json"
    manifest = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({**manifest, "conditions": entries}), "utf-8")
    said = message(read_model_folder, tmp_path / "model")
    missing = [word for word in words if word not in said]
    assert not missing, f"expected {missing} in {said!r}"


@pytest.mark.parametrize("text", [True, False], ids=["with text", "of conditions alone"])
def test_onnx_draws_what_keras_draws(model, wordless, text, tmp_path):
    own = model if text else wordless
    own.save(tmp_path / "model")
    prompt = ["cat"] if text else []
    told = [{"digit": 7, "age": 30} if text else {"digit": 7}, {}]
    found = LatentDiffusion.load(tmp_path / "model", engine="onnx")
    assert found.engine == "onnx"
    one, other = (
        drawn(each, *prompt, conditions=told, guidance_scale=3.0) for each in (own, found)
    )
    np.testing.assert_allclose(one, other, atol=5e-3 * np.abs(one).max())
