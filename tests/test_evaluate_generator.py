"""Generated images that are kept, what is measured of them, and the table over settings."""

import copy
import dataclasses
import os
import signal

import numpy as np
import pytest
from tiny import tiny_model

from latentddpm import interrupt
from latentddpm.data.captions import Captions
from latentddpm.data.scan import open_catalog
from latentddpm.data.split import Selection
from latentddpm.errors import UserError
from latentddpm.evaluation.generated import GeneratedImages, Setting, spread_prompts
from latentddpm.evaluation.sweep import parse_sweep, settings_of
from latentddpm.pictures import read_metadata

PROMPTS = ["red apple", "cat face", "rocket", "red apple"]


@pytest.fixture(scope="module")
def model():
    model = tiny_model()
    model.digest = "0123456789ab"
    return model


def images_of(model, root, prompts=PROMPTS, seed=7, **given):
    setting = Setting.of(model, num_steps=2, **given)
    return GeneratedImages(root, model, setting, prompts, seed)


def times(images):
    return {path.name: path.stat().st_mtime_ns for path in images.folder.glob("*.png")}


# --- The store -----------------------------------------------------------------------------


def test_what_is_drawn_is_reused_and_what_is_missing_is_drawn_the_same(model, tmp_path):
    images = images_of(model, tmp_path)
    images.draw(batch_size=2, quiet=True)
    before, pixels = times(images), [images.read(k) for k in range(len(images))]
    assert len(before) == len(PROMPTS), f"expected a file for each prompt, got {sorted(before)}"

    images.path(3).unlink()
    images.path(1).write_bytes(images.path(1).read_bytes()[:-100])  # cut off
    images.draw(batch_size=2, quiet=True)
    redrawn = {images.path(k).name for k in (1, 3)}
    changed = {name for name, time in times(images).items() if time != before[name]}
    assert changed == redrawn, f"expected {redrawn} to be drawn again, it was {changed}"
    for k, old in enumerate(pixels):
        np.testing.assert_array_equal(images.read(k), old, f"image {k} is another one now")


def test_an_image_is_what_generate_makes_of_its_prompt_and_seed(model, tmp_path):
    images = images_of(model, tmp_path, PROMPTS[:2])
    images.draw(quiet=True)
    told = read_metadata(images.path(1))
    assert told["prompts"] == ["cat face"], f"its metadata names {told['prompts']}"
    assert told["seed"] == 8, f"image 1 of seed 7 has seed {told['seed']}, expected 8"
    options = ("sampler", "num_steps", "timestep_spacing", "guidance_scale")
    again = model.generate(
        told["prompts"] * 2, seed=[8, 3], **{key: told[key] for key in options}
    )[0]
    worst = np.abs(again.astype(int) - images.read(1)).max()
    assert worst <= 1, f"beside another one it differs by {worst} of 255, expected rounding only"


@pytest.mark.parametrize(
    "change",
    [{"guidance_scale": 1.5}, {"sampler": "euler"}, {"timestep_spacing": "leading"}, {"seed": 8}],
)
def test_another_setting_finds_no_image_of_this_one(model, tmp_path, change):
    seed = change.pop("seed", 7)
    images, other = images_of(model, tmp_path), images_of(model, tmp_path, seed=seed, **change)
    shared = {images.path(0)} & {other.path(0)}
    assert not shared, f"{change or seed}: both would be {shared}"


def test_another_model_or_prompt_finds_no_image_of_this_one(model, tmp_path):
    images = images_of(model, tmp_path)
    other = copy.copy(model)
    other.digest = "ba9876543210"
    assert images_of(other, tmp_path).folder != images.folder, "two models share a folder"
    changed = images_of(model, tmp_path, ["green apple", *PROMPTS[1:]])
    assert changed.path(0) != images.path(0), "two prompts share a file"
    assert changed.path(1) == images.path(1), "the same prompt, seed and model: another file"


def test_a_file_of_another_making_under_the_same_name_is_drawn_again(model, tmp_path):
    images = images_of(model, tmp_path, PROMPTS[:2])
    images.draw(quiet=True)
    own = images.path(0).read_bytes()
    other = images_of(model, tmp_path, PROMPTS[:2], guidance_scale=1.5)
    other.draw(quiet=True)
    for k in range(2):
        images.path(k).write_bytes(other.path(k).read_bytes())
    images.draw(quiet=True)
    assert images.path(0).read_bytes() == own, "an image of another guidance was taken for its own"


def test_a_signal_keeps_what_was_drawn(model, tmp_path, monkeypatch):
    images = images_of(model, tmp_path)
    generate = model.generate

    def interrupted(prompts, **options):
        if prompts[0] == "rocket":  # the second batch
            os.kill(os.getpid(), signal.SIGTERM)
        return generate(prompts, **options)

    monkeypatch.setattr(model, "generate", interrupted)
    with interrupt.listening(), pytest.raises(interrupt.Stopped, match="2 of 4 images") as stopped:
        images.draw(batch_size=2, quiet=True)
    assert stopped.value.exit_code == 128 + signal.SIGTERM, "another exit code than the signal's"
    monkeypatch.undo()
    before = times(images)
    assert len(before) == 2, f"expected the first batch to be kept, found {sorted(before)}"
    images.draw(batch_size=2, quiet=True)
    after = times(images)
    assert before.items() <= after.items(), "what was kept was drawn again"
    assert len(after) == 4, f"expected all four images, found {sorted(after)}"


# --- Prompts -------------------------------------------------------------------------------


def test_prompts_are_spread_evenly_and_more_go_on_where_fewer_ended(emoji_folder, tmp_path):
    catalog = open_catalog(emoji_folder, tmp_path / "catalog", quiet=True)
    captions = Captions(catalog, ["{text}", "{text}, {style} style"])
    prompts = spread_prompts(captions, Selection(len(catalog)), 24)
    assert prompts[:10] == spread_prompts(captions, Selection(len(catalog)), 10)
    known = {text: row for row in range(len(catalog)) for text in captions[row]}
    unknown = set(prompts) - set(known)
    assert not unknown, f"these are captions of no image: {unknown}"
    styled = sum("style" in text for text in prompts)
    assert styled == 12, f"{styled} of 24 come from the second template, expected half"
    # The three-distance theorem: no gap between 24 of these points exceeds 2/24 or so.
    positions = np.sort(np.arange(24) * (5**0.5 - 1) / 2 % 1)
    assert np.diff(positions).max() < 2 / 24, "the sequence leaves gaps"


# --- Settings and sweeps -------------------------------------------------------------------


def test_a_setting_leaves_nothing_to_defaults(model):
    setting = Setting.of(model, guidance_scale=2.0)
    expected = Setting("ddim", 3, "trailing", 2.0)
    assert setting == expected, f"{setting}, expected the model's defaults and guidance 2"
    assert all(value is not None for value in dataclasses.astuple(setting))


def test_a_sweep_is_every_combination(model):
    swept = parse_sweep(["steps=2,3", "guidance=1,2.5", "sampler=ddim,unipc"])
    settings = settings_of(model, swept)
    assert len(settings) == 8, f"{len(settings)} settings, expected 2 × 2 × 2"
    assert len(set(settings)) == 8, "settings come twice"
    assert settings[0] == Setting("ddim", 2, "trailing", 1.0), f"first is {settings[0]}"
    assert settings[-1] == Setting("unipc", 3, "trailing", 2.5), f"last is {settings[-1]}"
    assert settings_of(model, {}) == [Setting.of(model)], "no sweep: one setting"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["stps=10"], r"'stps' is not known \(did you mean 'steps'\?\)"),
        (["steps"], r"steps: '' is no number; such as steps=10,20,50"),
        (["steps=10,x"], "'x' is no number"),
        (["sampler=dimm"], r"'dimm' is not known \(did you mean 'ddim'\?\)"),
        (["steps=10", "steps=20"], "steps was given before"),
    ],
)
def test_a_sweep_that_makes_no_sense(options, message):
    with pytest.raises(UserError, match=message):
        parse_sweep(options)


def test_a_setting_that_cannot_be_drawn_is_told_before_anything_is(model):
    with pytest.raises(UserError, match="num_steps"):
        settings_of(model, {"num_steps": [2, 0]})
    unconditional = copy.copy(model)
    unconditional.text_encoder = None
    with pytest.raises(UserError, match="unconditional: there is no guidance"):
        Setting.of(unconditional, guidance_scale=4.0)
