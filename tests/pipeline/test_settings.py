"""Settings: what is given, else the picture's, else the model's; and what a model cannot follow.

Facts of a model that is not there are enough for all of it.
"""

import dataclasses
import inspect
import json
import os
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from conftest import environment
from tiny import shared_model

from latentddpm.choices import SAMPLERS, TIMESTEP_SPACINGS
from latentddpm.conditions.conditions import NO_CONDITIONS, Conditions
from latentddpm.config import SamplesConfig
from latentddpm.errors import UserError
from latentddpm.pipeline.latent_diffusion import LatentDiffusion
from latentddpm.pipeline.model_facts import facts_of
from latentddpm.pipeline.model_folder import MANIFEST, read_model_folder
from latentddpm.pipeline.settings import DEFAULTS, FIELDS, GenerationSettings, ModelFacts

OWN = {"num_steps": 20, "sampler": "ddim", "timestep_spacing": "trailing", "guidance_scale": 4.0}
CONDITIONS = Conditions.from_json(
    [{"name": name, "kind": "class", "words": ["a", "b"]} for name in ("digit", "lines")]
)
FACTS = ModelFacts((OWN,), (64, 96), True, 1000, 8, conditions=CONDITIONS)
UNCONDITIONAL = dataclasses.replace(FACTS, has_text=False, conditions=NO_CONDITIONS)
OTHER = {
    "height": 8,
    "width": 16,
    "sampler": "unipc",
    "num_steps": 7,
    "timestep_spacing": "linspace",
    "guidance_scale": 2.5,
    "sampler_options": {"eta": 0.5},
    "guidance_rescale": 0.7,
    "negative_prompt": "dog",
    "start_step": 3,
    "guidance_interval": [0.25, 0.75],
    "condition_scales": {"digit": 2.0},
}
"""Of each setting, a value that is not the model's own."""
OF_IMAGES = [name for name in FIELDS if name != "length"]
SIGNALS = ModelFacts((OWN,), (64,), True, 1000, 8, spatial_dims=1)

NO_GUIDANCE = {"guidance_scale": 1.0, "guidance_rescale": 0.0, "negative_prompt": ""}


def with_own(**changes):
    return dataclasses.replace(FACTS, defaults=({**OWN, **changes},))


def any_settings(numbers):
    """Settings by chance, of any that can be given."""
    sampler = str(numbers.choice(list(SAMPLERS)))
    values = {"eta": 0.25, "set_alpha_to_one": False, "sigma_spacing": "karras"}
    return FACTS.settings(
        height=8 * int(numbers.integers(1, 9)),
        width=8 * int(numbers.integers(1, 9)),
        sampler=sampler,
        num_steps=int(numbers.integers(1, 1001)),
        timestep_spacing=str(numbers.choice(TIMESTEP_SPACINGS)),
        sampler_options={
            name: value
            for name, value in values.items()
            if name in SAMPLERS[sampler] and numbers.random() < 0.5
        },
        guidance_scale=float(numbers.uniform(0, 9)),
        guidance_rescale=float(numbers.uniform(0, 1)),
        guidance_interval=[*map(float, np.sort(numbers.uniform(0, 1, 2)))],
        condition_scales={"lines": float(numbers.uniform(0, 9))} if numbers.random() < 0.5 else {},
        negative_prompt=str(numbers.choice(["", "dog"])),
    )


def refused(facts, *words, **given):
    with pytest.raises(UserError) as error:
        facts.settings(**given)
    message = str(error.value)
    assert "\n" not in message, f"expected one line, got {message!r}"
    missing = [word for word in words if word not in message]
    assert not missing, f"expected {missing} to be named in {message!r}"


# --- Given, else the picture's, else the model's -------------------------------------------


def test_a_run_that_says_nothing_makes_a_model_that_says_nothing():
    """The defaults of `samples:`, which a finished model keeps, are those of a model without."""
    found = {name: getattr(SamplesConfig(), name) for name in DEFAULTS}
    assert found == DEFAULTS, f"samples: {found}, a model: {DEFAULTS}"


@pytest.mark.parametrize("schedule", ["ddpm", "flow"])
@pytest.mark.parametrize("has_text", [True, False])
def test_the_defaults_go_with_every_model(schedule, has_text):
    facts = ModelFacts((), (8, 8), has_text, 15, 8, schedule=schedule, learned_variance=True)
    found = dataclasses.asdict(facts.settings())
    expected = {"sampler": "unipc", "num_steps": 15, "timestep_spacing": "trailing"}
    assert found.items() >= expected.items(), f"{found}, expected {expected}"


def test_nothing_is_left_to_defaults():
    expected = GenerationSettings(64, 96, "ddim", 20, "trailing", 4.0, {}, 0.0, "", 0)
    assert FACTS.settings() == expected, f"{FACTS.settings()!r}, expected {expected!r}"
    given_none = FACTS.settings(**dict.fromkeys(FIELDS))
    assert given_none == expected, "expected None to mean: not given"


@pytest.mark.parametrize("name", OF_IMAGES)
def test_what_is_given_comes_first_and_changes_nothing_else(name):
    assert [*OTHER] == OF_IMAGES, "expected this test to have a value for each setting"
    found = dataclasses.asdict(FACTS.settings(**{name: OTHER[name]}))
    expected = {**dataclasses.asdict(FACTS.settings()), name: OTHER[name]}
    assert found == expected, f"{found}, expected {expected}"


@pytest.mark.parametrize("name", OF_IMAGES)
def test_a_picture_comes_before_the_model_and_after_what_is_given(name):
    facts = FACTS.with_defaults({name: OTHER[name]})
    assert getattr(facts.settings(), name) == OTHER[name], "expected the picture's"
    if name != "sampler_options":  # these are given one by one
        own = getattr(FACTS.settings(), name)
        assert getattr(facts.settings(**{name: own}), name) == own, "expected what was given"


def test_signals_have_a_length_and_images_a_height_and_a_width():
    found = SIGNALS.settings(length=40)
    assert (found.size, found.height, found.width) == ((40,), None, None)
    assert SIGNALS.with_defaults(found.to_json()).settings() == found, "expected the picture's"
    assert SIGNALS.with_defaults(FACTS.settings().to_json()).settings().length == 64
    refused(SIGNALS, "length", "8", "nearest valid: 40 or 48", length=44)
    refused(SIGNALS, "height", "draws signals; expected length", height=64)
    refused(FACTS, "length", "draws images; expected height and width", length=64)
    with pytest.raises(UserError, match="height: 64, but this model draws signals"):
        SIGNALS.check(FACTS.settings())
    with pytest.raises(UserError, match="length: 40, but this model draws images"):
        FACTS.check(found)


@pytest.mark.parametrize("seed", range(50))
def test_settings_are_their_own_settings(seed):
    """Whatever they are: given all again, remembered all, or read from JSON."""
    settings = any_settings(np.random.default_rng(seed))
    values = dataclasses.asdict(settings)
    assert FACTS.settings(**values) == settings, f"{settings!r}: given again, others"
    remembered = json.loads(json.dumps(values))
    found = with_own(sampler=settings.sampler, sampler_options={"steps_offset": 1})
    found = found.with_defaults(remembered).settings()
    assert found == settings, f"{settings!r}: remembered, {found!r}"
    FACTS.check(settings)


def test_settings_do_not_change():
    options, interval, scales = {"eta": 0.5}, [0.0, 0.5], {"lines": 2.0}
    settings = FACTS.settings(
        sampler_options=options, guidance_interval=interval, condition_scales=scales
    )
    options["eta"] = interval[1] = scales["lines"] = 1.0
    found = settings.sampler_options, settings.guidance_interval, settings.condition_scales
    assert found == ({"eta": 0.5}, [0.0, 0.5], {"lines": 2.0}), "expected copies"
    assert FACTS.settings().guidance_interval is not FACTS.settings().guidance_interval
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.num_steps = 3
    assert len({settings, FACTS.settings(), FACTS.settings()}) == 2, "expected two in a set"


def test_settings_of_later_versions_are_written_where_they_say_something():
    """So the bytes of a picture without them are those of the versions before."""
    later = {"guidance_interval", "condition_scales"}
    assert not later & FACTS.settings(guidance_interval=(0, 1)).to_json().keys()
    given = {name: OTHER[name] for name in later}
    found = FACTS.settings(**given).to_json()
    assert {name: found[name] for name in later} == given, f"{found}"


def test_condition_scales_come_in_the_models_order():
    found = FACTS.settings(condition_scales={"lines": 2, "digit": 1.5}).condition_scales
    assert list(found.items()) == [("digit", 1.5), ("lines", 2.0)], f"{found}"
    refused(FACTS, "'dog' is no condition", "it has digit, lines", condition_scales={"dog": 1.0})
    refused(UNCONDITIONAL, "'dog' is no condition", "has none", condition_scales={"dog": 1.0})


def test_a_condition_that_is_always_told_has_no_scale():
    entries = [{**one.to_json(), "null": one.name == "lines"} for one in CONDITIONS]
    facts = dataclasses.replace(FACTS, conditions=Conditions.from_json(entries))
    assert facts.settings(condition_scales={"lines": 2}).condition_scales == {"lines": 2.0}
    refused(facts, "may be left out", "it has lines", condition_scales={"digit": 1.0})


def test_numbers_of_numpy_become_numbers_of_json():
    given = {"num_steps": np.int64(5), "guidance_scale": np.float32(2.5), "height": np.int32(8)}
    given["guidance_interval"] = np.float32(0.25), np.float64(0.5)
    given["condition_scales"] = {"lines": np.float32(2.5)}
    given["sampler_options"] = {"eta": np.float32(0.5)}
    values = dataclasses.asdict(FACTS.settings(**given))
    assert json.loads(json.dumps(values)) == values, f"{values} are not JSON's"
    assert (values["num_steps"], values["guidance_scale"]) == (5, 2.5), f"other values: {values}"


# --- Options of samplers -------------------------------------------------------------------


def test_options_of_a_sampler_are_given_one_by_one():
    facts = with_own(sampler_options={"set_alpha_to_one": False, "eta": 0.5})
    found = facts.settings(sampler_options={"eta": 1.0}).sampler_options
    expected = {"set_alpha_to_one": False, "eta": 1.0}
    assert found == expected, f"{found}, expected {expected}"
    assert facts.settings(sampler_options={}).sampler_options == facts.settings().sampler_options


def test_default_options_count_for_their_own_sampler():
    model = with_own(sampler="pndm", sampler_options={"set_alpha_to_one": False})
    picture = model.with_defaults({"sampler": "ddim", "sampler_options": {"eta": 0.5}})
    for facts, sampler, expected in (
        (model, None, {"set_alpha_to_one": False}),
        (model, "ddim", {}),
        (picture, None, {"eta": 0.5}),
        (picture, "pndm", {"set_alpha_to_one": False}),
        (picture, "euler", {}),
        (model.with_defaults({"sampler": "pndm", "sampler_options": {}}), None, {}),
    ):
        found = facts.settings(sampler=sampler).sampler_options
        assert found == expected, f"sampler {sampler}: {found}, expected {expected}"


def test_a_default_offset_counts_for_leading_spacing():
    facts = with_own(timestep_spacing="leading", sampler_options={"steps_offset": 0, "eta": 0.5})
    found = facts.settings().sampler_options
    assert found == {"steps_offset": 0, "eta": 0.5}, f"{found}, expected the model's own"
    found = facts.settings(timestep_spacing="trailing").sampler_options
    assert found == {"eta": 0.5}, f"{found}, expected no offset"


# --- Unconditional models ------------------------------------------------------------------


def test_without_text_the_defaults_are_no_guidance():
    own = with_own(guidance_rescale=0.7)
    facts = dataclasses.replace(own, has_text=False, conditions=NO_CONDITIONS)
    picture = facts.with_defaults({"guidance_scale": 4.0})  # as the version before wrote
    for found in (facts.settings(), facts.settings(**NO_GUIDANCE), picture.settings()):
        values = {name: getattr(found, name) for name in NO_GUIDANCE}
        assert values == NO_GUIDANCE, f"{values}, expected {NO_GUIDANCE}"
    assert own.settings().guidance_rescale == 0.7, "with text: expected the model's own"


@pytest.mark.parametrize("name", NO_GUIDANCE)
def test_guidance_without_text_is_refused(name):
    expected = f"expected {NO_GUIDANCE[name]!r}"
    refused(UNCONDITIONAL, f"{name}: ", "unconditional", expected, **{name: OTHER[name]})


def test_words_without_text_are_refused():
    UNCONDITIONAL.check_prompts(["", ""])
    FACTS.check_prompts(["red apple"])
    with pytest.raises(UserError, match="prompt: 'cat', but this model is unconditional"):
        UNCONDITIONAL.check_prompts(["", "cat", "dog"])


# --- Refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"num_stepz": 3}, ("'num_stepz'", "did you mean 'num_steps'")),
        ({"sampler": "ddin"}, ("sampler: ", "did you mean 'ddim'", "'unipc'")),
        ({"sampler": 3}, ("sampler: expected text, got 3",)),
        ({"timestep_spacing": "leding"}, ("timestep_spacing: ", "did you mean 'leading'")),
        ({"num_steps": 0}, ("num_steps: ", "1 to 1000", "got 0")),
        ({"num_steps": 1001}, ("num_steps: ", "1 to 1000", "got 1001")),
        ({"num_steps": 2.5}, ("num_steps: expected a whole number, got 2.5",)),
        ({"num_steps": True}, ("num_steps: expected a whole number, got True",)),
        ({"sampler_options": {"etta": 1}}, ("etta: ", "'ddim'", "did you mean 'eta'")),
        ({"sampler": "ddpm", "sampler_options": {"eta": 1}}, ("eta: ", "'ddpm'")),
        ({"sampler_options": {"eta": 2}}, ("eta: ", "0 (deterministic) to 1", "got 2")),
        ({"sampler_options": {"eta": "much"}}, ("eta: expected a number or a list, got 'much'",)),
        ({"sampler_options": ["eta"]}, ("sampler_options: expected names with values",)),
        ({"guidance_scale": -1}, ("guidance_scale: ", "at least 0", "got -1")),
        ({"guidance_scale": float("nan")}, ("guidance_scale: ", "got nan")),
        ({"guidance_rescale": 2}, ("guidance_rescale: ", "to 1 (all)", "got 2")),
        ({"negative_prompt": ["a"]}, ("negative_prompt: expected text",)),
        ({"guidance_interval": 0.5}, ("guidance_interval: expected a list, got 0.5",)),
        ({"guidance_interval": [0.5]}, ("guidance_interval: expected two numbers", "[0.5]")),
        ({"guidance_interval": ["a", 1]}, ("guidance_interval: expected two numbers", "'a'")),
        ({"guidance_interval": (0.8, 0.2)}, ("guidance_interval: ", "did you mean 0.2 and 0.8")),
        ({"guidance_interval": (0.2, 8)}, ("guidance_interval: ", "to 1 (pure noise)", "8")),
        ({"guidance_interval": (-1, 0)}, ("guidance_interval: ", "from 0 (clean)", "-1")),
        ({"guidance_interval": [float("nan"), 1]}, ("guidance_interval: ", "nan")),
        ({"condition_scales": {"line": 2}}, ("condition_scales: 'line'", "mean 'lines'", "digit")),
        ({"condition_scales": {"lines": -2}}, ("condition_scales: lines: ", "at least 0")),
        ({"condition_scales": {"lines": "2"}}, ("condition_scales: lines: ", "a number, got '2'")),
        ({"condition_scales": ["lines"]}, ("condition_scales: expected names with values",)),
        ({"height": 33}, ("height 33", "32 or 40")),
        ({"height": 0}, ("height 0", "nearest valid: 8")),
        ({"width": -16}, ("width -16", "nearest valid: 8")),
        ({"width": 7}, ("width 7", "nearest valid: 8")),
    ],
)
def test_what_cannot_be_followed_is_refused(given, words):
    refused(FACTS, *words, **given)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"sampler": "pndm"}, ("sampler: 'pndm'", "'dpmpp_2m'")),
        (
            {"sampler": "euler", "sampler_options": {"sigma_spacing": "karras"}},
            ("sigma_spacing: ", "leave it out"),
        ),
        ({"sampler": "euler", "sampler_options": {"shift": -3}}, ("shift: ", "above 0", "-3")),
    ],
)
def test_what_a_flow_model_cannot_follow_is_refused(given, words):
    refused(dataclasses.replace(FACTS, schedule="flow"), *words, **given)


def test_only_a_flow_model_has_a_shift():
    given = {"sampler": "euler", "sampler_options": {"shift": 3.0}}
    settings = dataclasses.replace(FACTS, schedule="flow").settings(**given)
    assert settings.sampler_options == {"shift": 3.0}, f"{settings!r}"
    refused(FACTS, "shift: ", "only a flow schedule", **given)


def test_a_size_that_is_advised_is_taken():
    for pixels in range(-9, 70):
        try:
            FACTS.check_size(pixels, 8)
        except UserError as error:
            for near in str(error).split("nearest valid: ")[1].split(" or "):
                FACTS.check_size(int(near), int(near))
        else:
            assert pixels > 0, f"{pixels} pixels were taken"
            assert pixels % 8 == 0, f"{pixels} pixels were taken"


def test_a_model_without_a_size_asks_for_one():
    facts = dataclasses.replace(FACTS, image_size=None)
    refused(facts, "height and width", height=8)
    assert facts.settings(height=8, width=16).size == (8, 16), "expected the size given"


def test_a_default_of_the_wrong_kind_is_refused():
    refused(with_own(num_steps="many"), "num_steps: expected a whole number, got 'many'")


# --- Models and their folders --------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    return shared_model()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    """The model's folder; tests that change it copy it first."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    model.save(folder)
    return folder


def test_a_folder_has_the_facts_of_its_model(model, folder, tmp_path):
    unconditional = shared_model(text=False)
    unconditional.save(tmp_path / "unconditional")
    for made, path in ((model, folder), (unconditional, tmp_path / "unconditional")):
        found = facts_of(read_model_folder(path))
        assert found == made.facts, f"{found}, expected {made.facts}"


def test_the_facts_of_a_folder_need_no_keras(folder):
    code = (
        "import sys\n"
        "from latentddpm.pipeline.model_folder import read_model_folder\n"
        "from latentddpm.pipeline.model_facts import facts_of\n"
        "print(facts_of(read_model_folder(sys.argv[1])).settings(num_steps=7))\n"
        "print({'keras', 'tensorflow', 'h5py'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"expected it to run: {done.stderr}"
    expected = ["unipc, 7 steps, trailing, guidance 3", "set()"]
    assert done.stdout.splitlines() == expected, f"{done.stdout!r}, expected {expected}"


@pytest.mark.parametrize(
    "config", [None, b"{", b"[]", b'{"config": 3}', b'{"config": {"channel_multipliers": []}}']
)
def test_an_archive_that_does_not_say_leaves_sizes_for_later(config, folder, tmp_path):
    copied = shutil.copytree(folder, tmp_path / "tiny")
    if config is None:
        (copied / "vae.keras").write_bytes(b"no archive")
    else:
        with zipfile.ZipFile(copied / "vae.keras", "w") as archive:
            archive.writestr("config.json", config)
    found = read_model_folder(folder)
    facts = facts_of(dataclasses.replace(found, path=copied, schedule=None))
    assert (facts.size_multiple, facts.num_train_timesteps) == (None, None), f"found {facts}"
    assert facts.settings(height=33, num_steps=2000).size == (33, 32), "expected no check of it"


def test_a_manifest_with_a_default_of_the_wrong_kind_is_named(folder):
    found = dataclasses.replace(read_model_folder(folder), defaults={"guidance_scale": "much"})
    with pytest.raises(UserError) as error:
        facts_of(found)
    expected = f"{folder / MANIFEST}: defaults: guidance_scale: expected a number, got 'much'"
    assert str(error.value) == expected, f"{error.value}, expected {expected}"


def test_changed_weights_may_be_looked_for_later(folder, tmp_path):
    copied = shutil.copytree(folder, tmp_path / "tiny")
    content = bytearray((copied / "unet.keras").read_bytes())
    content[len(content) // 2] ^= 1
    (copied / "unet.keras").write_bytes(content)
    assert read_model_folder(copied, verify=False).digest, "expected the manifest's digest"
    with pytest.raises(UserError, match=r"unet\.keras: is not the file"):
        LatentDiffusion.load(copied)
    os.truncate(copied / "unet.keras", 10)
    with pytest.raises(UserError, match=r"unet\.keras: is not the file"):
        read_model_folder(copied, verify=False)


def test_generate_has_every_setting_by_its_name():
    missing = FIELDS.keys() - inspect.signature(LatentDiffusion.generate).parameters.keys()
    assert not missing, f"generate has no {missing}"


def test_a_model_alone_without_a_unet_has_no_settings(model):
    with pytest.raises(UserError, match="without a UNet"):
        LatentDiffusion(model.autoencoder, None, None).settings()


def test_a_model_refuses_what_only_its_sampler_knows(model):
    with pytest.raises(UserError, match="steps_offset: expected a whole number from 0 to"):
        model.settings(timestep_spacing="leading", sampler_options={"steps_offset": 999})


def test_settings_handed_over_draw_what_they_say(model):
    given = {"num_steps": 2, "guidance_scale": 2.0, "height": 16, "negative_prompt": "cat"}
    given |= {"sampler": "ddim", "sampler_options": {"eta": 0.5}}
    settings = model.settings(**given)
    images = model.generate("red apple", seed=3, settings=settings)
    expected = model.generate("red apple", seed=3, **given)
    assert np.array_equal(images, expected), "expected the same bytes as with the options alone"


@pytest.mark.parametrize("name", OF_IMAGES)
def test_nothing_is_given_beside_settings(model, name):
    with pytest.raises(UserError, match=f"{name}: .* beside settings that have their own"):
        model.generate("red apple", settings=model.settings(), **{name: OTHER[name]})


def test_settings_of_another_model_are_refused(model):
    larger = dataclasses.replace(model.settings(), height=20)
    with pytest.raises(UserError, match="height 20 is not a multiple of 8"):
        model.generate("red apple", settings=larger)
