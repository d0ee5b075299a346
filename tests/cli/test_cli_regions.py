"""`generate --region`: prompts for parts of a picture, remembered and made again."""

import json
import shutil

import numpy as np
import pytest
from command_line import call, pixels, refused, refused_before, succeeds
from PIL import Image, PngImagePlugin
from tiny import SIZE, quick_model, step_by_step, tiny_model

import latentddpm
from latentddpm.conditions.classes import ClassCondition
from latentddpm.conditions.conditions import Conditions
from latentddpm.conditions.number import NumberCondition
from latentddpm.utils.files import file_digest
from latentddpm.utils.pixels import read_metadata


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The folder of an untrained model."""
    folder = tmp_path_factory.mktemp("untrained") / "model"
    quick_model().save(folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def quick():
    with step_by_step():
        yield


@pytest.fixture
def masks(tmp_path):
    """A folder with `left.png`, `middle.png`, `black.png` and `small.png`."""
    return draw_masks(tmp_path)


def draw_masks(folder):
    left, middle = np.zeros((2, *SIZE), np.uint8)
    left[:, :16], middle[8:24, 8:24] = 255, 255
    for name, mask in {"left": left, "middle": middle, "black": 0 * left}.items():
        Image.fromarray(mask).save(folder / f"{name}.png")
    Image.new("L", (8, 8), 255).save(folder / "small.png")
    return folder


@pytest.fixture(scope="module")
def drawn(model, tmp_path_factory):
    """A PNG of two regions; tests put it beside masks of their own."""
    folder = draw_masks(tmp_path_factory.mktemp("drawn"))
    succeeds(generate(model, *two(folder), "--out", folder / "made.png"))
    return folder / "made.png"


@pytest.fixture
def made(drawn, masks):
    """A copy of it, beside its masks."""
    return shutil.copy(drawn, masks / "made.png")


def generate(model, *arguments):
    return call("generate", "--model", model, *arguments, "--seed", 7, "--steps", 2)


def two(masks):
    """Options of two regions."""
    return (
        *("--region", masks / "left.png", "a red apple"),
        *("--region", masks / "middle.png", "a cat"),
    )


def test_regions_are_drawn_and_remembered(model, masks):
    out, plain = masks / "out.png", masks / "plain.png"
    succeeds(generate(model, "--prompt", "a forest", *two(masks), "--out", out))
    succeeds(generate(model, "--prompt", "a forest", "--engine", "keras", "--out", plain))
    made = read_metadata(out)
    expected = [
        {"mask": f"{name}.png", "mask_sha256": file_digest(masks / f"{name}.png"), "prompt": text}
        for name, text in (("left", "a red apple"), ("middle", "a cat"))
    ]
    assert made["regions"] == expected, f"metadata {made['regions']}, expected {expected}"
    assert made["engine"] == "keras", f"expected Keras's engine, got {made['engine']}"
    assert "regions" not in read_metadata(plain), "expected no word of what is not there"
    assert (pixels(out) != pixels(plain)).any(), "expected the regions to be seen"
    found = latentddpm.LatentDiffusion.load(model).generate(
        "a forest",
        seed=7,
        num_steps=2,
        regions=[(masks / "left.png", "a red apple"), (masks / "middle.png", "a cat")],
    )
    np.testing.assert_array_equal(found[0], pixels(out), err_msg="expected Python's picture")


@pytest.mark.slow
def test_from_finds_the_masks_again(model, masks, monkeypatch):
    folder, again = masks / "sub", masks / "again.png"
    folder.mkdir()
    for name in ("left.png", "middle.png"):
        (masks / name).rename(folder / name)
    given = ("--prompt", "a lake", "--prompt", "a forest")
    succeeds(generate(model, *given, *two(folder), "--out", folder))
    monkeypatch.chdir(masks)  # beside the picture, wherever one stands
    made = folder / "a-forest-8.png"
    done = succeeds(call("generate", "--from", made, "--out", again))
    assert "every pixel as in" in done.stderr, f"expected the same picture: {done.stderr}"
    assert read_metadata(again) == read_metadata(made), "expected the same metadata"
    assert again.read_bytes() == made.read_bytes(), "expected the same bytes"
    other = masks / "other.png"
    succeeds(call("generate", "--from", made, *two(folder)[:3], "--out", other))
    assert len(read_metadata(other)["regions"]) == 1, "expected what is given to come first"


def test_from_refuses_other_masks(made, masks):
    digest = file_digest(masks / "left.png")[:12]
    (masks / "small.png").replace(masks / "left.png")
    refused(call("generate", "--from", made), "left.png", "--region", digest)
    (masks / "left.png").unlink()
    refused(call("generate", "--from", made), made, "left.png", "not beside it", "--region")


@pytest.mark.parametrize("regions", [[7], [{"mask": "left.png"}], [{"mask": 1, "prompt": "a"}]])
def test_metadata_of_somebody_else_is_checked(regions, made, masks):
    with Image.open(made) as image:
        (key,) = [name for name in image.text if "regions" in image.text[name]]
        metadata = json.loads(image.text[key]) | {"regions": regions}
        text = PngImagePlugin.PngInfo()
        text.add_text(key, json.dumps(metadata))
        image.save(masks / "wrong.png", pnginfo=text)
    refused(call("generate", "--from", masks / "wrong.png"), "wrong.png", "metadata has regions")


def test_regions_go_with_a_picture_frames_and_a_grid(model, masks):
    photo = masks / "photo.png"
    Image.new("RGB", SIZE, "teal").save(photo)
    given = ("--prompt", "a forest", "--num-images", 2, "--grid", "--out", masks / "grid.png")
    start = ("--init-image", photo, "--mask", masks / "left.png", "--frames", 2)
    succeeds(generate(model, *given, *start, *two(masks)))
    made = read_metadata(masks / "grid.png")
    assert len(made["regions"]) == 2, f"metadata {made}"
    assert made["grid"], f"metadata {made}"
    assert made["mask"] == "left.png", f"metadata {made}"


def test_a_region_of_nothing_is_said(model, masks):
    out = masks / "out.png"
    given = ("--prompt", "a forest", "--region", masks / "black.png", "a cat")
    done = succeeds(generate(model, *given, "--out", out))
    expected = "--region: mask 1 is black everywhere, so nothing is told there"
    assert expected in done.stderr, f"expected {expected!r}: {done.stderr!r}"
    plain = masks / "plain.png"
    succeeds(generate(model, "--prompt", "a forest", "--engine", "keras", "--out", plain))
    np.testing.assert_array_equal(pixels(out), pixels(plain))


def test_what_does_not_fit_is_refused_before_keras_is_imported(model, masks, tmp_path_factory):
    bare = tmp_path_factory.mktemp("bare") / "model"
    quick_model(text=False).save(bare)
    small = ("--region", masks / "small.png", "a cat")
    words = {
        (model, "--region", "nowhere.png", "a cat"): ("--region: nowhere.png: no such file",),
        (model, *small): ("--region: ", "small.png", "8×8", "32×32"),
        (model, *two(masks), *small): ("region 3", "small.png", "8×8"),
        (bare, *two(masks)): ("--region 1: 'a red apple'", "unconditional"),
        (model, *two(masks), "--engine", "onnx"): ("--engine onnx", "--region", "--engine keras"),
        (model, *two(masks), "--out", masks / "left.png", "--overwrite"): ("left.png", "is read"),
    }
    for arguments, expected in words.items():
        refused(generate(*arguments), *expected)
    refused(call("generate", "--region", masks / "left.png"), "--region", "2 arguments")
    lines = [("generate", "--model", *arguments) for arguments in words]
    refused_before("keras", lines, masks)


# --- Models without text -------------------------------------------------------------------


@pytest.fixture(scope="module")
def of_digits(tmp_path_factory):
    """The folder of a model of digits and ages, without text."""
    folder = tmp_path_factory.mktemp("digits") / "model"
    digit = ClassCondition("digit", words=("0", "1", "2"))
    known = Conditions((digit, NumberCondition("age", range=(0.0, 1.0))))
    made = tiny_model(text=False, conditions=known.specs())
    made.conditions = known
    made.save(folder)
    return folder


@pytest.mark.parametrize("engine", [pytest.param("keras", marks=pytest.mark.slow), "onnx"])
def test_labels_are_told_in_regions(engine, of_digits, masks):
    out, again = masks / "out.png", masks / "again.png"
    given = ("--label", "digit=1", "--label", "age=0.5", "--engine", engine, "--out", out)
    left = ("--region", masks / "left.png", "digit=2; age=0.9")
    succeeds(generate(of_digits, *given, *left, "--region", masks / "middle.png", "digit=0"))
    made = read_metadata(out)
    words = [one["prompt"] for one in made["regions"]]
    assert words == ["digit=2; age=0.9", "digit=0"], f"metadata {made['regions']}"
    assert made["engine"] == engine, f"expected the engine that was asked for: {made}"
    done = succeeds(call("generate", "--from", out, "--out", again))
    assert "every pixel as in" in done.stderr, f"expected the same picture: {done.stderr}"
    if engine == "keras":
        regions = [
            latentddpm.Region(masks / "left.png", conditions={"digit": 2, "age": 0.9}),
            latentddpm.Region(masks / "middle.png", conditions={"digit": 0}),
        ]
        found = latentddpm.LatentDiffusion.load(of_digits).generate(
            conditions={"digit": 1, "age": 0.5}, seed=7, num_steps=2, regions=regions
        )
        np.testing.assert_array_equal(found[0], pixels(out), err_msg="expected Python's picture")


def test_labels_that_the_model_does_not_have_are_refused(of_digits, masks):
    left = masks / "left.png"
    refused(generate(of_digits, "--region", left, "digti=2"), f"--region {left} digti=2", "digit")
    refused(generate(of_digits, "--region", left, "digit=7"), "digit", "7")
