"""Metadata of images: every setting goes in and comes back, whoever wrote it."""

import dataclasses

import numpy as np
import pytest
from tiny import quick_model, shared_model

from latentddpm.choices import SAMPLER_OPTIONS, SAMPLERS
from latentddpm.conditions.conditions import Conditions
from latentddpm.errors import UserError
from latentddpm.generation.plan import plan_images
from latentddpm.generation.provenance import read_generation_metadata, remembered_settings
from latentddpm.pipeline.settings import FIELDS, LATER_DEFAULTS, ModelFacts
from latentddpm.utils.pixels import save_png

NEEDED = {"prompts": ["red apple"], "seed": 1, "model_digest": "x"}
OWN = {"num_steps": 20, "sampler": "ddim", "timestep_spacing": "trailing", "guidance_scale": 4.0}
CONDITIONS = Conditions.from_json(
    [{"name": name, "kind": "class", "words": ["a", "b"]} for name in ("digit", "lines")]
)
FACTS = ModelFacts((OWN,), (64, 96), True, 1000, 8, conditions=CONDITIONS)
OTHERS = {"ddpm": "shift", "flow": "sigma_spacing"}
"""Kind of schedule → the option that only the other kind takes."""
OF_IMAGES = FIELDS.keys() - {"length"}
ALWAYS = OF_IMAGES - LATER_DEFAULTS.keys()
"""Settings that are written whatever they are."""
VALUES = {
    "steps_offset": 0,
    "eta": [1.0, 0.5, 0.0],
    "set_alpha_to_one": False,
    "variance": "large",
    "clip_sample": True,
    "sigma_spacing": "karras",
    "shift": 3.0,
    "corrector_steps": 2,
    "original_steps": 20,
    "snr": 0.1,
}
WRONG = {int: 0.5, float: "1", float | list: "1", bool: 1, str: 3, dict: [], list: {}}


def picture(path, **metadata):
    save_png(path, np.zeros((32, 32, 3), np.uint8), {**NEEDED, **metadata})
    return path


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of two untrained models: `text`, `unconditional`."""
    root = tmp_path_factory.mktemp("models")
    quick_model().save(root / "text")
    shared_model(text=False).save(root / "unconditional")
    return root


def options(model, **given):
    """Options as the command line hands them over, those given first."""
    names = ("prompts", "negative_prompt", "loras", "num_images", "seed", "num_steps", "sampler")
    names += ("timestep_spacing", "sigma_spacing", "eta", "guidance_scale", "guidance_rescale")
    names += ("init_image", "strength", "mask", "height", "width", "source", "out", "grid")
    names += ("overwrite", "tile", "frames", "animate", "engine", "precision", "strategy")
    names += ("labels", "autoguidance")
    left_out = {**dict.fromkeys(names), "prompts": (), "loras": (), "labels": (), "grid": False}
    left_out |= {"overwrite": False, "tile": "auto", "strategy": "auto"}
    return {**given, **{name: left_out[name] for name in names if name not in given}} | {
        "model": model
    }


# --- In and out ----------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_setting_goes_in_and_comes_back(sampler, tmp_path):
    kinds = ["ddpm"] + ["flow"] * ("shift" in SAMPLERS[sampler])
    for kind in kinds:
        facts = dataclasses.replace(FACTS, schedule=kind)
        own = {name: VALUES[name] for name in SAMPLERS[sampler] if name != OTHERS[kind]}
        settings = facts.settings(
            sampler=sampler,
            num_steps=3,
            start_step=1,
            timestep_spacing="leading",
            sampler_options=own,
            guidance_rescale=0.5,
            negative_prompt="dog",
            guidance_interval=[0.1, 0.9],
            condition_scales={"digit": 1.5, "lines": 2.0},
        )
        path = picture(tmp_path / "a.png", **settings.to_json())
        remembered = remembered_settings(read_generation_metadata(path))
        assert remembered.keys() == OF_IMAGES, f"{remembered.keys()}, expected all settings"
        found = facts.with_defaults(remembered).settings()
        assert found == settings, f"{found!r}, expected {settings!r}"


@pytest.mark.parametrize("name", FIELDS)
def test_a_setting_of_the_wrong_kind_is_refused(name, tmp_path):
    path = picture(tmp_path / "a.png", **{name: WRONG[FIELDS[name]]})
    with pytest.raises(UserError, match=rf"a\.png: its metadata has {name}: expected "):
        read_generation_metadata(path)


@pytest.mark.parametrize("option", SAMPLER_OPTIONS)
def test_an_option_of_the_wrong_kind_is_refused(option, tmp_path):
    path = picture(tmp_path / "a.png", sampler_options={option: WRONG[SAMPLER_OPTIONS[option]]})
    with pytest.raises(UserError, match=rf"a\.png: .* sampler_options {option}: expected "):
        read_generation_metadata(path)


def test_a_picture_without_an_interval_had_none_whatever_its_model_says(tmp_path):
    """One that is written only where it says something must not become the model's own."""
    model = dataclasses.replace(FACTS, defaults=({**OWN, "guidance_interval": [0.2, 0.8]},))
    settings = model.settings(guidance_interval=[0, 1])
    path = picture(tmp_path / "a.png", **settings.to_json())
    facts = model.with_defaults(remembered_settings(read_generation_metadata(path)))
    assert facts.settings() == settings, f"{facts.settings()}, expected {settings}"
    facts = model.with_defaults(remembered_settings({}))
    assert facts.settings().guidance_interval == [0.2, 0.8], "expected the model's own"


# --- Pictures of the version before --------------------------------------------------------


def test_a_picture_of_the_version_before_is_made_with_its_settings(folders, tmp_path):
    """As `generate --sampler ddim --eta 0.5 …` wrote it."""
    made = {
        "latentddpm": "0.1.0",
        "negative_prompt": "dog",
        "num_images": 1,
        "sampler": "ddim",
        "guidance_scale": 3.0,
        "guidance_rescale": 0.5,
        "timestep_spacing": "leading",
        "height": 16,
        "width": 48,
        "num_steps": 3,
        "sampler_options": {"eta": 0.5, "steps_offset": 0},
    }
    made["model_digest"] = plan_images(options(folders / "text")).folder.digest
    source = picture(tmp_path / "a.png", **made)
    plan = plan_images(options(folders / "text", source=source))
    found = plan.settings.to_json()
    expected = {name: made.get(name, 0) for name in ALWAYS}  # start_step is younger
    assert found == expected, f"{found}, expected {expected}"
    assert (plan.prompts, plan.seeds) == (["red apple"], [1]), f"{plan.prompts}, {plan.seeds}"
    plan = plan_images(options(folders / "text", source=source, eta=1.0, num_steps=5))
    found = plan.settings.sampler_options
    assert found == {"eta": 1.0, "steps_offset": 0}, f"{found}, expected the given eta"
    assert plan.settings.num_steps == 5, "expected what is given to come first"


def test_a_picture_of_fewer_settings_leaves_the_others_to_the_model(folders, tmp_path):
    """As versions wrote it that had no options of samplers, and as `evaluate` does."""
    digest = plan_images(options(folders / "text")).folder.digest
    made = {"model_digest": digest, "sampler": "euler", "num_steps": 4}
    source = picture(tmp_path / "a.png", **made)
    found = plan_images(options(folders / "text", source=source)).settings
    expected = dataclasses.replace(
        plan_images(options(folders / "text")).settings, sampler="euler", num_steps=4
    )
    assert found == expected, f"{found!r}, expected {expected!r}"


def test_an_unconditional_picture_that_names_guidance_is_made_again(folders, tmp_path):
    """The version before wrote the model's default, which nothing followed."""
    model = folders / "unconditional"
    digest = plan_images(options(model)).folder.digest
    made = {"prompts": [""], "model_digest": digest, "guidance_scale": 4.0}
    plan = plan_images(options(model, source=picture(tmp_path / "a.png", **made)))
    found = plan.settings.guidance_scale
    assert found == 1.0, f"guidance {found}, expected none"


# --- What is written -----------------------------------------------------------------------


def test_metadata_keeps_the_order_of_the_command_line(folders):
    """The same line writes the same bytes, in every version."""
    given = {"sampler": "ddim", "num_steps": 2, "guidance_scale": 2.0, "eta": 0.5}
    found = list(plan_images(options(folders / "text", **given)).metadata)
    expected = ["latentddpm", "model", "model_digest", "sampler", "guidance_scale"]
    expected += ["negative_prompt", "num_images", "timestep_spacing", "guidance_rescale"]
    expected += ["height", "width", "num_steps", "sampler_options", "start_step", "engine"]
    assert found == expected, f"{found}, expected {expected}"


def test_metadata_holds_every_setting(folders):
    plan = plan_images(options(folders / "text", sampler="ddim", eta=0.5))
    written = {name: plan.metadata[name] for name in ALWAYS}
    assert written == plan.settings.to_json(), f"{written}, of {plan.settings!r}"
    assert "length" not in plan.metadata, "that is of signals"


# --- Unconditional models: the same words everywhere ---------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"guidance_scale": 2.0}, "guidance_scale: 2.0, but this model is unconditional"),
        ({"guidance_rescale": 0.5}, "guidance_rescale: 0.5, but this model is unconditional"),
        ({"negative_prompt": "cat"}, "negative_prompt: 'cat', but this model is unconditional"),
        ({"prompts": ("cat",)}, "prompt: 'cat', but this model is unconditional"),
    ],
)
def test_an_unconditional_model_follows_no_words(given, message, folders):
    with pytest.raises(UserError) as planned:
        plan_images(options(folders / "unconditional", **given))
    model = shared_model(text=False)
    if "prompts" in given:
        given = {"prompt": given["prompts"]}
    with pytest.raises(UserError) as drawn:
        model.generate(**given)
    assert str(planned.value) == str(drawn.value), "expected the same words in Python"
    assert str(drawn.value).startswith(message), f"{drawn.value}, expected {message}"
