"""`generate` from pictures and with samplers' options; how the command line says what is wrong."""

import re
import subprocess
import sys
import warnings

import keras
import numpy as np
import pytest
from command_line import call, pixels, refused, refused_before, start, succeeds
from PIL import Image
from tiny import SIZE, perturb, quick_model, step_by_step

from latentddpm import choices
from latentddpm.diffusion import samplers
from latentddpm.utils.files import file_digest
from latentddpm.utils.pixels import read_metadata, save_png


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The folder of an untrained model."""
    folder = tmp_path_factory.mktemp("untrained") / "model"
    quick_model().save(folder)
    return folder


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """The folder of an unconditional model."""
    folder = tmp_path_factory.mktemp("bare") / "model"
    quick_model(text=False).save(folder)
    return folder


@pytest.fixture
def pictures(tmp_path):
    """`photo.png` of the model's size, `mask.png` with a white square, `other.png`."""
    numbers = np.random.default_rng(0)
    Image.fromarray(numbers.integers(0, 256, (*SIZE, 3), np.uint8)).save(tmp_path / "photo.png")
    Image.fromarray(numbers.integers(0, 256, (*SIZE, 3), np.uint8)).save(tmp_path / "other.png")
    mask = np.zeros(SIZE, np.uint8)
    mask[8:24, 8:24] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    return tmp_path


def generate(model, *arguments):
    return call("generate", "--model", model, "--prompt", "red apple", *arguments)


@step_by_step()
def test_a_picture_keeps_the_options_of_its_sampler(model, tmp_path):
    out, again = tmp_path / "out.png", tmp_path / "again.png"
    given = ("--steps", 3, "--sampler", "ddim", "--eta", "1,0.5,0")
    given += ("--variance", "large", "--clip-sample")
    succeeds(generate(model, "--seed", 7, "--out", out, *given, "--start-step", 1))
    made = read_metadata(out)
    expected = {"eta": [1.0, 0.5, 0.0], "variance": "large", "clip_sample": True}
    assert made["sampler_options"] == expected, f"metadata {made}, expected {expected}"
    assert made["start_step"] == 1, f"metadata {made}"
    shouted = out.rename(tmp_path / "OUT.PNG")  # as some cameras and systems name files
    done = succeeds(call("generate", "--from", shouted, "--out", again))
    assert "every pixel as in" in done.stderr, f"expected the same picture: {done.stderr}"
    assert read_metadata(again) == made, "expected the same metadata"


@pytest.mark.slow
@step_by_step()
def test_a_picture_keeps_the_precision_it_was_computed_in(model, tmp_path):
    whole, half, again = (tmp_path / f"{name}.png" for name in ("whole", "half", "again"))
    given = ("--seed", 7, "--steps", 2, "--engine", "keras")
    succeeds(generate(model, *given, "--precision", "float32", "--out", whole))
    succeeds(generate(model, *given, "--precision", "bfloat16", "--out", half))
    made = read_metadata(half)
    assert made["precision"] == "bfloat16", f"metadata {made}"
    assert "precision" not in read_metadata(whole), "expected no word of float32"
    assert (pixels(half) != pixels(whole)).any(), "expected another rounding to be seen"
    done = succeeds(call("generate", "--from", half, "--out", again))
    assert "every pixel as in" in done.stderr, f"expected the same picture: {done.stderr}"
    assert read_metadata(again) == made, "expected the same metadata"
    other = again.with_name("other.png")
    succeeds(call("generate", "--from", half, "--precision", "float32", "--out", other))
    assert (pixels(other) == pixels(whole)).all(), "expected what is given to come first"
    refused(call("generate", "--from", half, "--engine", "onnx"), "onnx", "float32", "bfloat16")
    refused(generate(model, "--precision", "half"), "--precision: 'half' is not known")


# --- From a picture ------------------------------------------------------------------------


def test_a_picture_tells_what_it_started_from(model, pictures):
    photo, mask, out = (pictures / f"{name}.png" for name in ("photo", "mask", "out"))
    succeeds(
        generate(
            *(model, "--seed", 7, "--out", out, "--init-image", photo, "--mask", mask),
            *("--strength", 0.8),
        )
    )
    made = read_metadata(out)
    expected = {
        "init_image": "photo.png",
        "init_image_sha256": file_digest(photo),
        "mask": "mask.png",
        "mask_sha256": file_digest(mask),
        "strength": 0.8,
    }
    wrong = {key: made.get(key) for key, value in expected.items() if made.get(key) != value}
    assert not wrong, f"metadata {wrong}, expected {expected}"
    kept = pixels(mask) == 0
    assert np.array_equal(pixels(out)[kept], pixels(photo)[kept]), "expected black to be kept"
    assert (pixels(out)[~kept] != pixels(photo)[~kept]).any(), "expected white to be repainted"


def test_from_finds_its_picture_again(model, pictures, monkeypatch):
    photo, mask, out = (pictures / f"{name}.png" for name in ("photo", "mask", "out"))
    options = ("--num-images", 2, "--seed", 7, "--out", pictures, "--sampler", "ddpm")
    succeeds(generate(model, "--init-image", photo, "--mask", mask, *options))
    made = pictures / "red-apple-8.png"
    assert read_metadata(made)["strength"] == 1, "expected a strength of 1 with a mask"
    monkeypatch.chdir(pictures.parent)  # beside the picture, wherever one stands
    done = succeeds(call("generate", "--from", made, "--out", out))
    assert re.search("every pixel|at most 1 of", done.stderr), f"not the same: {done.stderr}"
    assert read_metadata(out) == read_metadata(made), "expected the same metadata"


def test_from_refuses_another_picture(model, pictures, tmp_path):
    photo, other, mask = (pictures / f"{name}.png" for name in ("photo", "other", "mask"))
    made = tmp_path / "sub" / "made.png"
    succeeds(generate(model, "--init-image", photo, "--mask", mask, "--out", made))
    gone = call("generate", "--from", made)
    refused(gone, made, "photo.png", "--init-image", file_digest(photo)[:12])
    swapped = call("generate", "--from", made, "--init-image", other)
    refused(swapped, other, "photo.png", made, file_digest(photo)[:12])
    masked = call("generate", "--from", made, "--init-image", photo, "--mask", other)
    refused(masked, other, "mask.png", file_digest(mask)[:12])
    again = succeeds(
        call(
            *("generate", "--from", made, "--init-image", photo, "--mask", mask),
            *("--out", tmp_path / "again.png"),
        )
    )
    assert "every pixel as in" in again.stderr, f"expected the same picture: {again.stderr}"


def test_another_size_is_said(model, pictures):
    Image.new("RGB", (100, 60), "teal").save(pictures / "wide.png")
    with warnings.catch_warnings():
        warnings.simplefilter("default")  # as in a program, not as in a test
        done = succeeds(generate(model, "--init-image", pictures / "wide.png", "--out", pictures))
    expected = "wide.png: 100×60 pixels, scaled and cropped to 32×32 pixels"
    assert expected in done.stderr, f"expected {expected!r} on stderr, got {done.stderr!r}"
    made = read_metadata(done.stdout.strip())
    assert made["strength"] == 0.75, f"expected a strength of 0.75, got {made['strength']}"


def test_the_bar_counts_the_steps_that_are_run(model, pictures):
    done = succeeds(
        generate(
            *(model, "--init-image", pictures / "photo.png", "--out", pictures),
            *("--steps", 10, "--strength", 0.5, "--sampler", "heun"),
        )
    )
    totals = set(re.findall(r"(\d+)/(\d+) \[", done.stderr))
    assert ("5", "5") in totals, f"expected half of ten steps counted to the end: {done.stderr!r}"
    assert {total for _, total in totals} == {"5"}, f"expected one total, got {totals}"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--strength", 0.5), ("--strength", "give --init-image")),
        (("--mask", "mask.png"), ("--mask", "give --init-image")),
        (("--init-image", "nowhere.png"), ("nowhere.png", "no such file")),
        (("--init-image", "photo.png", "--strength", 0), ("strength", "0.0")),
        (("--init-image", "photo.png", "--strength", 0.01), ("strength", "0.01", "3 steps")),
        (("--init-image", "photo.png", "--mask", "small.png"), ("small.png", "8×8", "32×32")),
        (("--init-image", "text.png"), ("text.png",)),
    ],
)
def test_a_picture_that_does_not_fit_is_refused(options, words, model, pictures, monkeypatch):
    monkeypatch.chdir(pictures)
    Image.new("L", (8, 8)).save("small.png")
    (pictures / "text.png").write_text("not a picture", "utf-8")
    refused(generate(model, "--out", "out.png", *options), *words)
    assert not (pictures / "out.png").exists(), "expected no picture"


def test_it_is_refused_before_keras_is_imported(model, pictures):
    photo = pictures / "photo.png"
    wrong = (
        ("--init-image", "nowhere.png"),
        ("--init-image", str(pictures / "photo.png"), "--strength", "2"),
        ("--init-image", str(pictures / "photo.png"), "--strength", "0.1"),
        ("--sampler", "ddin"),
        ("--seed", "-1"),
        ("--steps", "0"),
        ("--steps", "1001"),
        ("--timestep-spacing", "leding"),
        ("--sampler", "ddpm", "--eta", "0.5"),
        ("--sampler", "ddim", "--eta", "2"),
        ("--sampler", "ddim", "--eta", "1,a"),
        ("--sampler", "ddim", "--eta", "1,0.5"),
        ("--sampler", "ddim", "--variance", "large"),
        ("--sampler", "ddpm", "--variance", "larg"),
        ("--sampler", "ddpm", "--variance", "learned_range"),
        ("--sampler", "pc", "--snr", "0"),
        ("--sampler", "unipc", "--corrector-steps", "2"),
        ("--sampler", "euler", "--clip-sample"),
        ("--start-step", "1000"),
        ("--start-step", "1", "--init-image", str(photo)),
        ("--sampler", "ddim", "--sigma-spacing", "karras"),
        ("--guidance-scale", "-1"),
        ("--guidance-interval", "0.8,0.2"),
        ("--condition-scale", "lines=2"),
        ("--autoguidance", "nowhere"),
        ("--autoguidance", "emoji-128"),
        ("--autoguidance", f"{model}:-1"),
        ("--height", "33"),
        ("--height", "-16"),
        ("--height", "3200000", "--width", "3200000"),
        ("--num-images", "0"),
        ("--num-images", "1000000000000"),
        ("--batch-size", "0"),
        ("--tile", "high"),
        ("--tile", "9"),
        ("--strategy", "two"),
        ("--sampler", "ddim", "--eta", "nan"),
        ("--guidance-scale", "nan"),
        ("--mask", str(pictures / "mask.png")),
        ("--strength", "0.5"),
        ("--negative-prompt", "a", "--negative-prompt", "b"),
        ("--lora", "nowhere.safetensors"),
        ("--lora", str(pictures / "photo.png")),
        ("--out", str(pictures / "photo.png" / "below")),
        ("--out", "a.jpg"),
        ("--init-image", str(photo), "--out", str(photo), "--overwrite"),
    )
    lines = [("generate", "--model", model, *options) for options in wrong]
    lines += [("generate", *options) for options in (("--steps", "0"), ("--height", "100"))]
    refused_before("keras", lines, pictures)


# --- Nothing is lost -----------------------------------------------------------------------


@step_by_step()
def test_a_picture_that_is_there_is_kept(model, tmp_path):
    """Of the same prompt and seed, too: another guidance draws another picture."""
    options = ("--seed", 7, "--steps", 1, "--out", tmp_path)
    first = succeeds(generate(model, *options)).stdout.strip()
    before = file_digest(first)
    done = succeeds(generate(model, *options, "--guidance-scale", 9))
    second = done.stdout.strip()
    assert file_digest(first) == before, "expected the first picture to stay as it was"
    assert second == str(tmp_path / "red-apple-7_2.png"), f"expected a number, got {second}"
    for words in (first, "is kept", second, "--overwrite"):
        assert words in done.stderr, f"expected {words!r} to be said: {done.stderr}"
    again = succeeds(generate(model, *options, "--guidance-scale", 9, "--overwrite", "--quiet"))
    assert again.stdout.strip() == first, f"expected to replace {first}: {again}"
    assert again.stderr == "", f"expected --quiet to say nothing, got {again.stderr!r}"
    assert np.array_equal(pixels(first), pixels(second)), "expected the second picture there"


def test_a_file_of_somebody_is_kept_and_the_one_made_again_is_replaced(model, tmp_path):
    mine = tmp_path / "mine.png"
    mine.write_bytes(b"of somebody")
    made = tmp_path / "mine_2.png"
    done = succeeds(generate(model, "--seed", 7, "--steps", 1, "--out", mine))
    assert done.stdout.strip() == str(made), f"expected {made}, got {done.stdout}"
    assert mine.read_bytes() == b"of somebody", "expected the file that was there"
    done = succeeds(call("generate", "--from", made, "--out", made))
    assert done.stdout.strip() == str(made), f"expected the same file, got {done.stdout}"
    assert "every pixel as in" in done.stderr, f"expected the same picture: {done.stderr}"


# --- Prompts -------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [False, True])
def test_each_prompt_has_its_own_negative_prompt(grid, model, tmp_path):
    def draw(out, *options):
        options = ("--seed", 7, "--steps", 1, "--guidance-scale", 9, "--out", out, *options)
        return succeeds(call("generate", "--model", model, *options)).stdout.split()

    own = ("--prompt", "cat", "--negative-prompt", "red", "--prompt", "dog")
    own += ("--negative-prompt", "blue", "--num-images", "2")
    made = draw(tmp_path / "own", *own, *["--grid"] * grid)
    plain = draw(tmp_path / "one", "--prompt", "cat", "--prompt", "dog", "--num-images", "2")
    if not grid:
        assert not np.array_equal(pixels(made[3]), pixels(plain[3])), "expected to be heeded"
        found = [read_metadata(path)["negative_prompt"] for path in made]
        assert found == ["red", "red", "blue", "blue"], f"expected each its own, got {found}"
    again = tmp_path / "again.png"
    done = succeeds(call("generate", "--from", made[-1], "--out", again))
    # One of four drawn together, and now alone: a level may be rounded to the other side.
    same = "every pixel as in" in done.stderr or "by at most 1 of 255" in done.stderr
    assert same, f"expected the same picture: {done.stderr}"
    assert read_metadata(again) == read_metadata(made[-1]), "expected the same metadata"


@pytest.mark.slow
@step_by_step()
def test_what_may_be_meant_otherwise_is_said_once(model, bare, pictures, monkeypatch):
    monkeypatch.chdir(pictures)
    Image.new("L", SIZE, "white").save("white.png")
    foreign = ("--prompt", "(red:1.3) <lora:x:0.8>", "--num-images", 2)
    painting = ("--prompt", "cat", "--init-image", "photo.png", "--mask", "white.png")
    long = ("--prompt", " ".join(["word"] * 40))
    for options, words in {
        (): ("no --prompt",),
        foreign: ("(red:1.3)", "literally", "--lora FILE:SCALE"),
        ("--prompt", "cat", "--height", 48): ("32×48 pixels", "trained at 32×32"),
        painting: ("--mask: white everywhere", "all of the picture"),
        long: ("prompt too long", "'word word", "has 40 tokens, 14 fit"),
    }.items():
        line = ("generate", "--model", model, "--steps", 1, *options)
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            said = succeeds(call(*line)).stderr.splitlines()
        found = [one for one in said if all(word in one for word in words)]
        assert len(found) == 1, f"{options}: expected one line with {words}, got {said}"
    line = ("generate", "--steps", 1, "--model")
    for options in ((model, "--prompt", "cat"), (bare,), (model, "--quiet")):
        said = succeeds(call(*line, *options)).stderr.splitlines()
        said = [one for one in said if one and not one.endswith("…") and "step" not in one]
        assert not said, f"{options}: expected nothing to be said, got {said}"


# --- Samplers' options ---------------------------------------------------------------------


def test_help_lists_what_there_is():
    assert set(choices.SAMPLERS) == set(samplers.NAMES), "choices.SAMPLERS is another list"
    assert set(choices.TIMESTEP_SPACINGS) == set(samplers.TIMESTEP_SPACINGS), "another list"
    assert set(choices.SIGMA_SPACINGS) == set(samplers.SIGMA_SPACINGS), "another list"
    text = succeeds(call("generate", "--help")).stdout
    missing = [name for name in samplers.NAMES if name not in text]
    assert not missing, f"generate --help does not name {missing}"


@pytest.fixture(scope="module")
def plain(model, tmp_path_factory):
    """Five steps of the model's own sampler."""
    path = tmp_path_factory.mktemp("plain") / "plain.png"
    succeeds(generate(model, "--seed", 7, "--steps", 5, "--out", path))
    return path


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--sampler", "ddim", "--eta", 0.5), {"sampler_options": {"eta": 0.5}}),
        (
            ("--sampler", "euler", "--sigma-spacing", "karras"),
            {"sampler_options": {"sigma_spacing": "karras"}},
        ),
        (("--guidance-rescale", 0.7), {"guidance_rescale": 0.7}),
        (("--guidance-interval", "0.3,0.9"), {"guidance_interval": [0.3, 0.9]}),
    ],
)
def test_options_change_the_picture_and_come_back(options, expected, model, plain, tmp_path):
    out, again = tmp_path / "out.png", tmp_path / "again.png"
    succeeds(generate(model, "--seed", 7, "--steps", 5, "--out", out, *options))
    made = read_metadata(out)
    assert made.items() >= expected.items(), f"expected {expected} in {made}"
    assert not np.array_equal(pixels(out), pixels(plain)), f"{options} changed nothing"
    done = succeeds(call("generate", "--from", out, "--out", again))
    assert "every pixel as in" in done.stderr, f"expected the same picture: {done.stderr}"
    assert read_metadata(again) == made, "expected the same metadata"


@pytest.mark.slow
def test_a_picture_away_from_a_weaker_model_comes_back(model, plain, tmp_path):
    """With its scale, from where it was or from where it is, and from no other one."""
    weaker, out, again = tmp_path / "weaker", tmp_path / "out.png", tmp_path / "again.png"
    other = quick_model()
    perturb(other.unet, seed=1, size=0.3)
    digest = other.save(weaker).digest
    options = ("--seed", 7, "--steps", 5, "--autoguidance")
    succeeds(generate(model, *options, f"{weaker}:3", "--out", out))
    made = read_metadata(out)
    assert made["autoguidance"] == {"model": str(weaker), "digest": digest, "scale": 3.0}
    assert not np.array_equal(pixels(out), pixels(plain)), "the weaker model changed nothing"
    done = succeeds(call("generate", "--from", out, "--out", again))
    assert "every pixel as in" in done.stderr, f"expected the same picture: {done.stderr}"
    assert read_metadata(again) == made, "expected the same metadata"
    moved = weaker.rename(tmp_path / "moved")
    line = call("generate", "--from", out, "--out", again)
    refused(line, f"guided by the model {digest}", "no such model", "--autoguidance MODEL:3")
    line = ("generate", "--from", out, "--out", again, "--overwrite", "--autoguidance", moved)
    assert "every pixel as in" in succeeds(call(*line)).stderr, "expected the scale of the PNG"
    perturb(other.unet, seed=2)
    other.save(weaker)
    refused(call("generate", "--from", out, "--out", again), digest, f"{weaker} is ")


def test_another_sampler_takes_its_own_options(model, tmp_path):
    out, again = tmp_path / "out.png", tmp_path / "again.png"
    succeeds(generate(model, "--sampler", "ddim", "--eta", 0.5, "--out", out))
    succeeds(call("generate", "--from", out, "--sampler", "euler", "--out", again))
    found = read_metadata(again)
    assert found["sampler_options"] == {}, f"eta is of ddim alone, got {found}"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--sampler", "ddpm", "--eta", 0.5), ("--eta: ", "'ddpm'", "no such option")),
        (
            ("--sampler", "ddim", "--sigma-spacing", "karras"),
            ("--sigma-spacing: ", "'ddim'", "euler"),
        ),
        (("--sampler", "euler", "--sigma-spacing", "karas"), ("--sigma-spacing: ", "'karras'")),
        (("--sampler", "ddim", "--eta", 2), ("--eta: ", "2.0")),
        (("--guidance-rescale", 2), ("--guidance-rescale: ", "2.0")),
        (("--guidance-interval", "0.5"), ("--guidance-interval", "'0.5': expected 2 numbers")),
        (("--guidance-interval", "0,2"), ("--guidance-interval: ", "to 1 (pure noise)", "2")),
        (
            ("--guidance-interval", "0.8,0.2"),
            ("--guidance-interval: ", "mean 0.2 and 0.8"),
        ),
        (("--condition-scale", "lines"), ("--condition-scale", "'lines': expected NAME=NUMBER")),
        (("--condition-scale", "lines=2"), ("--condition-scale: 'lines'", "it has none")),
    ],
)
def test_options_that_do_not_apply_are_refused(options, words, model, tmp_path):
    refused(generate(model, "--quiet", "--out", tmp_path / "out.png", *options), *words)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--prompt", "cat"), ("--prompt: 'cat'", "unconditional")),
        (("--negative-prompt", "cat"), ("--negative-prompt: 'cat'", "unconditional")),
        (("--guidance-scale", 2), ("--guidance-scale: 2.0", "unconditional", "expected 1.0")),
        (("--guidance-rescale", 0.5), ("--guidance-rescale: 0.5", "unconditional")),
    ],
)
def test_an_unconditional_model_refuses_words_and_guidance(options, words, bare, tmp_path):
    refused(call("generate", "--model", bare, "--out", tmp_path / "out.png", *options), *words)
    assert not list(tmp_path.iterdir()), "expected no picture"


def test_an_unconditional_model_draws_and_draws_again(bare, tmp_path):
    out, again = tmp_path / "out.png", tmp_path / "again.png"
    succeeds(call("generate", "--model", bare, "--seed", 7, "--steps", 2, "--out", out))
    made = read_metadata(out)
    assert made["guidance_scale"] == 1, f"expected no guidance, got {made['guidance_scale']}"
    save_png(out, pixels(out), {**made, "guidance_scale": 4.0})  # as the version before wrote
    done = succeeds(call("generate", "--from", out, "--out", again))
    assert "every pixel as in" in done.stderr, f"expected the same picture: {done.stderr}"
    assert read_metadata(again) == made, "expected the metadata of this version"


def test_other_backends_have_one_device(model, tmp_path, monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    options = ("--quiet", "--out", tmp_path / "out.png", "--strategy", "mirrored:2")
    refused(generate(model, *options), "mirrored:2", "KERAS_BACKEND=tensorflow", "jax")


@pytest.mark.parametrize(
    "wrong",
    [
        {"sampler_options": {"eta": "much"}},
        {"sampler_options": {"schedule": 1}},
        {"sampler_options": []},
        {"strength": "0.5"},
        {"init_image": 5},
    ],
)
def test_metadata_of_others_is_refused(wrong, model, tmp_path):
    made = {"prompts": ["a"], "seed": 1, "model_digest": "x", **wrong}
    save_png(tmp_path / "picture.png", np.zeros((*SIZE, 3), np.uint8), made)
    done = call("generate", "--from", tmp_path / "picture.png", "--model", model)
    refused(done, tmp_path / "picture.png", *wrong)


def test_a_remembered_path_is_only_a_name(model, pictures):
    """A PNG of others must not make us look through the disk."""
    secret = pictures / "photo.png"
    digest = file_digest(secret)
    made = {"prompts": ["a"], "seed": 1, "model_digest": "x"}
    made |= {"init_image": str(secret), "init_image_sha256": digest}
    (pictures / "sub").mkdir()
    save_png(pictures / "sub" / "picture.png", np.zeros((*SIZE, 3), np.uint8), made)
    done = call("generate", "--from", pictures / "sub" / "picture.png", "--model", model)
    refused(done, "photo.png", "not beside it")


# --- The command line itself ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("generate", "--steps", "abc"), ("--steps", "'abc'", "latentddpm generate --help")),
        (("generate", "--promt", "x"), ("--promt", "did you mean '--prompt'")),
        (("generate", "--steps"), ("--steps", "argument")),
        (("export", "--out", "x"), ("--model", "missing")),
        (("doctor",), ("DATA", "missing")),
        (("configs", "a", "b"), ("unexpected", "b")),
        (("genrate",), ("'genrate'", "did you mean 'generate'", "'info'")),
        (("--vesrion",), ("--vesrion", "did you mean '--version'")),
    ],
)
def test_a_line_that_makes_no_sense_is_one_line(arguments, words):
    refused(call(*arguments), *words)


def test_a_bare_command_shows_its_help():
    done = start()
    assert "\nTrain:\n" in done.stdout + done.stderr, f"expected the commands, got {done}"


def test_python_m_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "latentddpm", "--version"], capture_output=True, text=True
    )
    assert done.returncode == 0, f"expected exit code 0: {done.stderr}"
    assert done.stdout.startswith("latentddpm, version"), f"got {done.stdout!r}"


def test_a_folder_that_may_not_be_written_is_named(model, tmp_path):
    (tmp_path / "file").write_text("not a folder", "utf-8")
    done = generate(model, "--quiet", "--out", tmp_path / "file" / "out.png")
    refused(done, "--out", tmp_path / "file", "not a folder")
