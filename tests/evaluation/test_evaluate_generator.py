"""Generated images that are kept, what is measured of them, and the table over settings."""

import copy
import hashlib
import json
import os
import signal

import keras
import numpy as np
import pytest
from click.testing import CliRunner
from conftest import EMOJI, TESTS
from metric_sets import image_set
from PIL import Image
from tiny import shared_model, tiny_lora

import latentddpm
from latentddpm.cli import main
from latentddpm.config import DataConfig
from latentddpm.data.captions import Captions
from latentddpm.data.catalog.scan import open_catalog
from latentddpm.data.catalog.split import Selection, split_catalog
from latentddpm.errors import UserError
from latentddpm.evaluation.extractors import Extractor
from latentddpm.evaluation.generated_images import GeneratedImages, prompts_of, spread_rows
from latentddpm.evaluation.generator import References, evaluate_generator, heading, table_row
from latentddpm.evaluation.metrics.nearest import nearest, share_nearer
from latentddpm.evaluation.sweep import KEYS, parse_sweep, settings_of
from latentddpm.models.precision import hold_in
from latentddpm.pipeline.latent_diffusion import LatentDiffusion
from latentddpm.utils import signals
from latentddpm.utils.pixels import read_metadata

SIZE = (32, 32)
PROMPTS = ["red apple", "cat face", "rocket", "red apple"]


@pytest.fixture(scope="module")
def model():
    model = shared_model()
    model.digest = "0123456789ab"
    return model


@pytest.fixture(scope="module")
def unconditional(tmp_path_factory):
    """The folder of a model without text."""
    folder = tmp_path_factory.mktemp("unconditional") / "model"
    shared_model(text=False).save(folder)
    return folder


def images_of(model, root, prompts=PROMPTS, seed=7, **given):
    settings = model.settings(num_steps=2, **given)
    return GeneratedImages(root, model, settings, prompts, seed)


def times(images):
    return {path.name: path.stat().st_mtime_ns for path in images.folder.glob("*.png")}


# --- The store -----------------------------------------------------------------------------


def test_what_is_drawn_is_reused_and_what_is_missing_is_drawn_the_same(model, tmp_path):
    images = images_of(model, tmp_path)
    images.draw(batch_size=2, quiet=True)
    before, pixels = times(images), [*images.read(range(len(images)))]
    assert len(before) == len(PROMPTS), f"expected a file for each prompt, got {sorted(before)}"

    images.path(3).unlink()
    images.path(1).write_bytes(images.path(1).read_bytes()[:-100])  # cut off
    images.draw(batch_size=2, quiet=True)
    redrawn = {images.path(k).name for k in (1, 3)}
    changed = {name for name, time in times(images).items() if time != before[name]}
    assert changed == redrawn, f"expected {redrawn} to be drawn again, it was {changed}"
    for k, old in enumerate(pixels):
        np.testing.assert_array_equal(images.read([k])[0], old, f"image {k} is another one now")


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
    worst = np.abs(again.astype(int) - images.read([1])[0]).max()
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


def test_images_kept_by_the_version_before_are_found_again(model, tmp_path):
    """Its name for the folder, from what it wrote into each image."""
    making = {
        "latentddpm": latentddpm.__version__,
        "model_digest": model.digest,
        "height": 32,
        "width": 32,
        "sampler": "ddim",
        "num_steps": 2,
        "timestep_spacing": "trailing",
        "guidance_scale": 1.5,
        "sampler_options": {},
        "guidance_rescale": 0.0,
    }
    images = images_of(model, tmp_path, sampler="ddim", guidance_scale=1.5)
    assert list(images.making.items()) == list(making.items()), f"metadata {images.making}"
    digest = hashlib.sha256(json.dumps(making, sort_keys=True).encode()).hexdigest()
    expected = f"ddim-2-1.5-{digest[:8]}"
    assert images.folder.name == expected, f"{images.folder.name}, expected {expected}"


def test_another_lora_or_scale_finds_no_image_of_this_one(model, tmp_path):
    def folder(*loras):
        other = copy.copy(model)
        other.loras = [{"file": "x", "sha256": sha256, "scale": scale} for sha256, scale in loras]
        return images_of(other, tmp_path).folder

    changes = [[], [("aa", 1.0)], [("aa", 0.5)], [("bb", 1.0)], [("aa", 1.0), ("bb", 1.0)]]
    folders = {folder(*loras) for loras in changes}
    assert len(folders) == len(changes), f"{len(folders)} folders for {len(changes)} changes"
    assert folder() == images_of(model, tmp_path).folder, "without a LoRA: the model's own"


def test_another_precision_finds_no_image_of_this_one(model, tmp_path):
    half = copy.copy(model)
    half.unet = hold_in(model.unet, "bfloat16")
    images, other = images_of(model, tmp_path), images_of(half, tmp_path)
    assert images.folder != other.folder, "two precisions share a folder"
    assert other.making["precision"] == "bfloat16", f"metadata {other.making}"
    assert "precision" not in images.making, f"metadata {images.making}: float32 is left out"


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
    with signals.listening(), pytest.raises(signals.Stopped, match="2 of 4 images") as stopped:
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
    prompts = prompts_of(captions, spread_rows(Selection(len(catalog)), 24))
    assert prompts[:10] == prompts_of(captions, spread_rows(Selection(len(catalog)), 10))
    known = {text: row for row in range(len(catalog)) for text in captions[row]}
    unknown = set(prompts) - set(known)
    assert not unknown, f"these are captions of no image: {unknown}"
    styled = sum("style" in text for text in prompts)
    assert styled == 12, f"{styled} of 24 come from the second template, expected half"
    # The three-distance theorem: no gap between 24 of these points exceeds 2/24 or so.
    positions = np.sort(np.arange(24) * (5**0.5 - 1) / 2 % 1)
    assert np.diff(positions).max() < 2 / 24, "the sequence leaves gaps"


# --- Settings and sweeps -------------------------------------------------------------------


def swept_part(settings):
    """What can be swept of settings, in the order of `KEYS`."""
    return tuple(getattr(settings, name) for name in KEYS.values())


def test_a_sweep_is_every_combination(model):
    swept = parse_sweep(["steps=2,3", "guidance=1,2.5", "sampler=ddim,unipc"])
    settings = settings_of(model, swept)
    assert len(settings) == 8, f"{len(settings)} settings, expected 2 × 2 × 2"
    assert len(set(settings)) == 8, "settings come twice"
    first, last = swept_part(settings[0]), swept_part(settings[-1])
    assert first == ("ddim", "trailing", 1.0, 2), f"first is {settings[0]}"
    assert last == ("unipc", "trailing", 2.5, 3), f"last is {settings[-1]}"
    assert settings == settings_of(model.facts, swept), "the facts alone give other settings"
    assert settings_of(model, {}) == [model.settings()], "no sweep: one choice"
    with pytest.raises(UserError, match="steps is given as 5 as well"):
        settings_of(model, swept, num_steps=5)


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
    for wrong in (-1.0, float("nan")):
        with pytest.raises(UserError, match="guidance_scale: expected a number of at least 0"):
            settings_of(model, {"guidance_scale": [2.0, wrong]})
    unconditional = copy.copy(model)
    unconditional.text_encoder = None
    with pytest.raises(UserError, match="unconditional: there is no guidance"):
        settings_of(unconditional, {"guidance_scale": [1.0, 4.0]})


# --- Nearest training images ---------------------------------------------------------------


def test_nearest_is_what_looking_at_every_pair_finds():
    numbers = np.random.default_rng(0)
    samples, references = numbers.normal(size=(7, 5)), numbers.normal(size=(30, 5))
    distances, found = nearest(samples, references, 3)
    every = np.linalg.norm(samples[:, None] - references, axis=-1)
    np.testing.assert_array_equal(found, np.argsort(every, axis=1)[:, :3])
    np.testing.assert_allclose(distances, np.sort(every, axis=1)[:, :3], rtol=1e-9)


def test_copies_are_told_from_new_images():
    numbers = np.random.default_rng(1)
    training, validation, new = (numbers.normal(size=(n, 16)) for n in (800, 600, 600))
    copies = training[:600] + 0.01 * numbers.normal(size=(600, 16))
    known = References(training, validation)
    share = known.measure(new).near
    assert 0.02 < share < 0.09, f"new images of the same kind: {share:.1%}, expected 5 % or so"
    share = known.measure(np.concatenate([copies[:300], new[:300]])).near
    assert 0.5 < share < 0.57, f"half of them copies: {share:.1%}, expected half and 2.5 %"
    assert share_nearer(np.zeros(3), np.ones(3)) == 1, "all nearer: expected 1"


def test_the_training_images_themselves_are_at_no_distance():
    training = np.random.default_rng(2).normal(size=(50, 6))
    same = References(training, None).measure(training)
    assert same.frechet < 1e-9, f"Fréchet distance {same.frechet} of a set to itself"
    assert (same.precision, same.recall, same.coverage) == (1, 1, 1), f"of a set to itself: {same}"
    assert same.near is None, "there are no validation images, so none says what is near"
    told = heading(
        {**dict.fromkeys(("frechet", "kernel", "seed", "floor", "clip")), "training_images": 50}
    )
    assert "validation fewer than 6 images: no numbers to compare with, no near" in told


# --- The whole -----------------------------------------------------------------------------

DATA = DataConfig(validation_fraction=0.3)


def training_images(folder, tmp_path, limit=None):
    catalog = tmp_path / "catalog"
    return image_set(folder, catalog, SIZE, "training", limit, DATA)


@pytest.fixture(scope="module")
def extractor():
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Conv2D(12, 8, 8), keras.layers.GlobalAveragePooling2D()]
    return Extractor("tiny", keras.Sequential(layers))


@pytest.mark.slow
def test_a_sweep_is_measured_once_and_told_whole(model, extractor, emoji_folder, tmp_path):
    wide = next(emoji_folder.rglob("*.png"))
    with Image.open(wide) as image:
        image.resize((90, 40)).save(wide)
    training = training_images(emoji_folder, tmp_path)
    settings = settings_of(model, parse_sweep(["steps=1,2", "guidance=2,3"]))
    fewer = len(split_catalog(training.catalog, DATA)[1])
    count = 2 * (fewer // 2 + 2)  # more than there are validation images, in whole batches
    out, lines = tmp_path / "out", []

    def evaluate():
        lines.clear()
        options = {"num_images": count, "batch_size": 2, "quiet": True, "tell": lines.append}
        return evaluate_generator(model, settings, training, extractor, out, **options)

    report = evaluate()
    rows, floor = report["settings"], report["floor"]
    told = [(row["num_steps"], row["guidance_scale"], row["count"]) for row in rows]
    expected = [(s, scale, n) for scale in (2, 3) for s in (1, 2) for n in (count, fewer)]
    assert told == expected, f"the table has rows for {told}"
    assert floor["count"] == fewer, (
        f"the floor is of {floor['count']} of {fewer} validation images"
    )
    assert all(np.isfinite([row["frechet"], row["kernel"], row["coverage"]]).all() for row in rows)
    assert floor["frechet"] < min(row["frechet"] for row in rows), "noise beats validation images"
    assert "Fréchet distance (tiny)" in lines[0], f"the table does not name its extractor: {lines}"
    assert len(lines) == 1 + 1 + 8, f"expected a heading, the floor and eight rows: {lines}"
    assert json.loads(json.dumps(report)) == report, "the report is not made for JSON"

    with Image.open(out / "nearest.png") as picture:
        expected = (6 * 34 - 2, 8 * 34 - 2)
        assert picture.size == expected, f"nearest.png is {picture.size}, expected 8 rows of 6"
    with Image.open(out / "sweep.png") as picture:
        assert picture.width > 600, "sweep.png: expected a panel for each number of steps"

    drawn = {path: path.stat().st_mtime_ns for path in out.glob("[fg]*/**/*.[np]*")}
    assert len(drawn) == 4 * count + 6, "expected those images, and features of each set"
    again = evaluate()
    changed = [path for path, time in drawn.items() if path.stat().st_mtime_ns != time]
    assert not changed, f"made again without need: {changed}"
    assert again == report, "the same images, other numbers"


def test_what_cannot_be_measured_is_refused_before_any_is_drawn(
    model, extractor, emoji_folder, tmp_path
):
    settings, out = [model.settings()], tmp_path / "out"

    def evaluate(images, num_images):
        options = {"num_images": num_images, "quiet": True}
        evaluate_generator(model, settings, images, extractor, out, **options)

    with pytest.raises(UserError, match="--num-images: 5, expected at least 6"):
        evaluate(training_images(emoji_folder, tmp_path), 5)
    with pytest.raises(UserError, match=r"at least 6 images, not 4: .*--limit"):
        evaluate(training_images(emoji_folder, tmp_path, limit=4), 6)
    (emoji_folder / "metadata.jsonl").unlink()
    with pytest.raises(UserError, match="emoji: no image has a caption to draw"):
        evaluate(training_images(emoji_folder, tmp_path), 6)
    assert not (out / "generated").exists(), "images were drawn for nothing"


def test_clip_scores_are_a_column_of_their_own():
    """The mean and its standard error, of images with a caption; no column without a CLIP."""
    numbers = np.random.default_rng(0)
    training, features = numbers.normal(size=(2, 40, 4))
    scores = np.where(np.arange(40) < 10, np.nan, numbers.normal(25, 2, 40))
    measures = References(training, None).measure(features, scores)
    assert measures.clip == pytest.approx(scores[10:].mean())
    assert measures.clip_error == pytest.approx(scores[10:].std(ddof=1) / 30**0.5)
    bare = References(training, None).measure(features)
    assert (bare.clip, bare.clip_error) == (None, None)
    report = {"frechet": "F", "kernel": "K", "training_images": 40, "seed": 0}
    report = {**report, "floor": None, "clip": None}
    told = {**report, "clip": {"label": "tiny", "digest": "0" * 64}}
    for kind, row, words in ((report, bare, False), (told, measures, True)):
        head, line = heading(kind).splitlines(), table_row(None, row)
        assert ("CLIP" in head[-1]) == ("tiny" in head[0]) == ("±" in line) == words, (head, line)


# --- The command ---------------------------------------------------------------------------


def run(*arguments):
    return CliRunner().invoke(main, ["evaluate", *map(str, arguments)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--generator"], "--generator: needs --extractor, and --out"),
        (
            ["--lora=x"],
            "--lora: is for --generator or --nll or --denoise, which was not asked for",
        ),
        (["--nll", "--lora=x:0.5"], "--lora x:0.5: x: no such file"),
        (["--clip=."], "--clip: is for --generator, which was not asked for"),
        (["--generator", "--split", "validation"], "compares with the training images"),
    ],
)
def test_the_command_refuses_in_one_line(options, message, tmp_path):
    if options[1:] and options[0] == "--generator":
        options = [*options, "--out", tmp_path / "out", "--extractor", "hed"]
    answer = run("--model", "emoji-128", "--data", EMOJI, *options)
    assert answer.exit_code == 2, f"exit code {answer.exit_code}, expected 2: {answer.output}"
    assert message in answer.output, f"expected {message!r} in {answer.output!r}"
    assert answer.output.count("\n") == 1, f"expected one line, got {answer.output!r}"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", 0], "--steps: expected a whole number from 1 to 1000, got 0"),
        (["--sampler", "ddin"], "--sampler: 'ddin' is not known (did you mean 'ddim'?)"),
        (["--guidance-scale", 2], "--guidance-scale: 2.0, but this model is unconditional"),
        (["--sweep", "guidance=1,2"], "--guidance-scale: 2.0, but this model is unconditional"),
        (["--resolution", 20], "height 20 is not a multiple of 8"),
    ],
)
def test_settings_are_refused_before_a_model_is_read(
    options, message, unconditional, tmp_path, monkeypatch
):
    monkeypatch.setattr(LatentDiffusion, "load", lambda path: pytest.fail(f"{path} was read"))
    places = ["--data", EMOJI, "--out", tmp_path / "out", "--extractor", "hed"]
    answer = run("--model", unconditional, "--generator", *places, *options)
    assert answer.exit_code == 2, f"exit code {answer.exit_code}, expected 2: {answer.output}"
    assert message in answer.output, f"expected {message!r} in {answer.output!r}"
    assert answer.output.count("\n") == 1, f"expected one line, got {answer.output!r}"


@pytest.mark.slow
def test_the_command_from_model_folder_to_table(model, tmp_path):
    model.save(tmp_path / "model")
    colours = keras.Sequential([keras.Input((None, None, 3)), keras.layers.GlobalMaxPooling2D()])
    colours.save(tmp_path / "colours.keras")
    options = ["--validation-fraction", "0.3", "--num-images", 6, "--sweep", "guidance=2,3"]
    clip = ["--clip", TESTS / "golden" / "clip_towers" / "model"]
    lora = ["--lora", f"{tiny_lora(tmp_path / 'style.safetensors')}:0.5"]
    places = ["--extractor", tmp_path / "colours.keras", "--out", tmp_path / "out", "--quiet"]
    answer = run(
        "--model",
        tmp_path / "model",
        "--data",
        EMOJI,
        "--generator",
        *options,
        *places,
        *clip,
        *lora,
    )
    assert answer.exit_code == 0, answer.output
    lines = answer.stdout.splitlines()
    assert lines[1].startswith("with style.safetensors:0.5 (SHA-256 "), f"no LoRA in {lines}"
    assert "(split training) at 32×32" in lines[2], f"not told what it is compared with: {lines}"
    assert [line.split()[0] for line in lines[-3:]] == ["validation", "unipc", "unipc"], lines
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text("utf-8"))
    assert len(found["generator"]["settings"]) == 2, f"evaluation.json holds {found}"
    drawn = read_metadata(next((tmp_path / "out" / "generated").glob("*/*.png")))
    assert drawn["loras"] == found["loras"], f"drawn with {drawn['loras']}, told {found['loras']}"
    assert found["generator"]["clip"]["label"] == "model", "expected the CLIP to be named"
    rows = [found["generator"]["floor"], *found["generator"]["settings"]]
    assert all(row["clip"] >= 0 and row["clip_error"] >= 0 for row in rows), "scores of all rows"
    assert lines[-4].endswith("CLIP ± error"), f"expected a column for it: {lines[-4]}"
