"""`latentddpm evaluate`: images, reconstructions, tables, files, refusals."""

import json
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
from click.testing import CliRunner
from conftest import EMOJI
from metric_sets import image_set
from PIL import Image
from tiny import SIZE, tiny_autoencoder

from latentddpm.cli import main
from latentddpm.config import DataConfig, DiffusionRun
from latentddpm.config_file import dump_config, parse_config
from latentddpm.data.dataset import open_dataset
from latentddpm.data.images import read_image
from latentddpm.errors import UserError
from latentddpm.evaluation.autoencoder import GRID, evaluate_autoencoder, reconstruct
from latentddpm.evaluation.extractors import load_extractor
from latentddpm.evaluation.metrics.frechet import Statistics, frechet_distance
from latentddpm.evaluation.metrics.kernel import paired_kernel_distance
from latentddpm.evaluation.metrics.similarity import psnr, rmse, ssim
from latentddpm.evaluation.report import aligned, plain, shown
from latentddpm.models.perceptual import PerceptualDistance
from latentddpm.pipeline.latent_diffusion import LatentDiffusion
from latentddpm.utils.pixels import from_pixels, read_metadata


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny autoencoder's model folder, an extractor's file, and a catalog."""
    path = tmp_path_factory.mktemp("evaluate")
    LatentDiffusion(tiny_autoencoder(), None, None, image_size=SIZE).save(path / "model")
    LatentDiffusion(tiny_autoencoder(), None, None).save(path / "sizeless")
    colours = keras.Sequential([keras.Input((None, None, 3)), keras.layers.GlobalMaxPooling2D()])
    colours.save(path / "colours.keras")
    return path


@pytest.fixture(scope="module")
def autoencoder():
    return tiny_autoencoder()


@pytest.fixture(scope="module")
def distance():
    keras.utils.set_random_seed(0)
    return PerceptualDistance("perceptual (random)", (0, 0, 0), (1, 1, 1))


def emoji(folder, **options):
    return image_set(EMOJI, folder / "catalog", SIZE, **options)


# --- Images --------------------------------------------------------------------------------


def test_images_are_those_of_the_place(folder):
    images = emoji(folder)
    assert len(images) == 40
    names = [images.where(number) for number in (3, 0)]
    expected = np.stack([read_image(name, SIZE) for name in names])
    np.testing.assert_array_equal(images.read([3, 0]), expected)
    batches = list(images.batches(16, "read", quiet=True))
    assert [len(batch) for batch in batches] == [16, 16, 8]
    np.testing.assert_array_equal(np.concatenate(batches)[[3, 0]], expected)


def test_a_limit_spreads_over_all(folder):
    rows = emoji(folder, limit=5).rows
    np.testing.assert_array_equal(rows, [0, 10, 20, 29, 39])
    assert len(emoji(folder, limit=100)) == 40


def test_splits_are_those_of_training(folder):
    data = DataConfig(validation_fraction=0.3)
    training, validation = (
        set(emoji(folder, split=split, data=data).rows) for split in ("training", "validation")
    )
    assert validation, "expected some of forty images to be validation images"
    assert training | validation == set(range(40)), "expected the splits to cover all"
    assert not training & validation, "expected no image in both"
    with pytest.raises(
        UserError, match="validation_fraction 0 by path leaves it none of 40 images"
    ):
        emoji(folder, split="validation", data=DataConfig(validation_fraction=0.0))
    with pytest.raises(UserError, match="did you mean 'validation'"):
        emoji(folder, split="valid")


def test_a_file_that_breaks_is_named(folder, tmp_path):
    for name in "ab":
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    images = image_set(tmp_path, folder / "breaks", SIZE)
    (tmp_path / "b.png").write_bytes((tmp_path / "b.png").read_bytes()[:40])
    with pytest.raises(UserError, match=r"b\.png"):
        images.read([0, 1])


# --- The autoencoder -----------------------------------------------------------------------


def test_an_autoencoder_is_measured_on_its_reconstructions(
    folder, autoencoder, distance, tmp_path
):
    """Every number again, from all images at once."""
    images = emoji(folder, limit=18)
    extractor = load_extractor(str(folder / "colours.keras"))
    report = evaluate_autoencoder(
        autoencoder, images, perceptual=distance, extractor=extractor, out=tmp_path, quiet=True
    )
    originals = images.read(range(18))
    latents, rebuilt = reconstruct(autoencoder, originals)
    apart = keras.ops.convert_to_numpy(distance(from_pixels(rebuilt), from_pixels(originals)))
    for name, each, worst in (
        ("psnr", psnr(rebuilt, originals), np.min),
        ("ssim", ssim(rebuilt, originals), np.min),
        ("rmse", rmse(rebuilt, originals), np.max),
        ("perceptual", apart, np.max),
    ):
        expected = {"mean": each.mean(), "median": np.median(each), "worst": worst(each)}
        assert report.values[name] == pytest.approx(expected, rel=1e-2), name
    features = [extractor.features(pixels) for pixels in (originals, rebuilt)]
    statistics = [Statistics().add(one) for one in features]
    found = report.values["frechet_distance"]
    assert found == pytest.approx(frechet_distance(*statistics), rel=1e-2)
    kernel = paired_kernel_distance(*features)
    assert report.values["kernel_distance"] == pytest.approx(
        {"value": kernel.value, "standard_error": kernel.standard_error}, rel=1e-2
    )
    values = report.values["latents"]
    np.testing.assert_allclose(values["means"], latents.mean(axis=(0, 1, 2)), rtol=1e-3)
    np.testing.assert_allclose(values["stds"], latents.std(axis=(0, 1, 2)), rtol=1e-2)
    assert values["std"] == pytest.approx(latents.std(), rel=1e-2)
    for label in (
        "perceptual (random)",
        "Fréchet distance (colours)",
        "kernel distance (colours)",
    ):
        assert label in report.text, f"expected {label!r} in\n{report.text}"
    assert "LPIPS" not in report.text
    # The picture: three groups of six originals above their reconstructions, best first.
    height, width = SIZE
    picture = np.asarray(Image.open(tmp_path / GRID))
    assert picture.shape == (3 * (2 * height + 2) + 2 * 12, 6 * (width + 2) - 2, 3)
    order = np.argsort(apart)
    shown_first = [images.where(number) for number in order[:6]]
    assert read_metadata(tmp_path / GRID)["best"] == shown_first
    assert report.values["shown"]["worst"][-1] == images.where(order[-1])
    np.testing.assert_array_equal(picture[:height, :width], originals[order[0]])


def test_too_little_is_refused_before_anything_is_computed(folder, autoencoder, distance):
    extractor = load_extractor(str(folder / "colours.keras"))
    with pytest.raises(UserError, match=r"kernel distance \(colours\) needs at least 3 images"):
        evaluate_autoencoder(autoencoder, emoji(folder, limit=2), extractor=extractor)
    small = image_set(EMOJI, folder / "catalog", (8, 8), limit=3)
    with pytest.raises(UserError, match=r"perceptual \(random\) needs images of at least 16×16"):
        evaluate_autoencoder(autoencoder, small, perceptual=distance)


def test_numbers_for_people_and_for_programs():
    assert [shown(x) for x in (27.3, 0.93104, 1e-5, np.inf)] == [
        "27.30",
        "0.9310",
        "1.000e-05",
        "inf",
    ]
    assert [plain(x) for x in (np.float32(1.5), np.inf, np.nan)] == [1.5, None, None]
    assert aligned([["", "mean"], ["SSIM", "0.5"], [], ["a"]]) == "      mean\nSSIM   0.5\n\na"


# --- The command ---------------------------------------------------------------------------


def run(*arguments):
    result = CliRunner().invoke(main, ["evaluate", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_the_command_prints_a_table_and_leaves_its_numbers(folder, tmp_path):
    out = tmp_path / "out"
    options = ("--model", folder / "model", "--data", EMOJI, "--limit", 4, "--quiet")
    extractor = folder / "colours.keras"
    result = run(*options, "--extractor", extractor, "--out", out)
    assert result.exit_code == 0, result.stderr
    values = json.loads((out / "evaluation.json").read_text())
    assert values["images"] == 4
    assert (values["height"], values["width"]) == SIZE
    assert values["extractor"]["label"] == "colours"
    assert values["perceptual"] is None
    for part in (values["model_digest"], "on 4 images", "extractor: colours", "PSNR (dB)", GRID):
        assert part in result.stdout, f"expected {part!r} in\n{result.stdout}"
    machine = json.loads(run(*options, "--json").stdout)
    assert machine["autoencoder"]["psnr"] == values["autoencoder"]["psnr"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--extractor", "incepton"), "did you mean 'inception'?"),
        (("--perceptual", "vgg"), "neither 'imagenet' nor 'hed', and no such file"),
        (("--split", "test"), "--split: 'test' is not known"),
        (("--validation-fraction", 2), "--validation-fraction: input should be less than 1"),
        (("--validation-by", "name"), "--validation-by: input should be"),
        (("--resolution", 30), "30"),
        (("--resolution", 0), "--resolution"),
        (("--limit", 0), "--limit"),
        (("--out", EMOJI / "metadata.jsonl"), "metadata.jsonl: is a file; name a folder"),
        (("--sweep", "steps=1,2"), "--sweep: is for --generator, which was not asked for"),
        (("--nll", "--extractor", "hed"), "--extractor: is for --autoencoder or --generator"),
        (("--denoise", "--clip", "."), "--clip: is for --generator, which was not asked for"),
        (("--denoise",), "holds an autoencoder alone, and no network"),
    ],
)
def test_what_does_not_fit_is_one_line(folder, options, message):
    given = ("--model", folder / "model", "--data", EMOJI, "--quiet", *options)
    result = run(*given)
    assert result.exit_code == 2
    assert message in result.stderr, result.stderr
    assert result.stderr.count("\n") == 1, f"expected one line: {result.stderr}"


def test_a_model_without_a_size_wants_one(folder):
    result = run("--model", folder / "sizeless", "--data", EMOJI)
    assert result.exit_code == 2
    assert "names no image size; give --resolution" in result.stderr
    assert not Path("catalog").exists()


# --- The model of one's own run ------------------------------------------------------------

OWN = {
    "validation_fraction": 0.3,
    "validation_by": "caption",
    "caption_templates": ["a drawing of {text}"],
}


@pytest.fixture(scope="module")
def own_run(folder):
    """A finished run: its model and its settings."""
    path = folder / "run"
    path.mkdir()
    shutil.copytree(folder / "model", path / "model")
    config = parse_config(DiffusionRun, {"data": {"resolution": SIZE[0], **OWN}})
    (path / "config.yaml").write_text(dump_config(config), "utf-8")
    return path


@pytest.mark.parametrize("place", [".", "model"])
@pytest.mark.parametrize(
    ("given", "changed"),
    [
        ((), {}),
        (("--validation-fraction", 0.5), {"validation_fraction": 0.5}),
        (("--validation-by", "path"), {"validation_by": "path"}),
        (("--split", "validation"), {}),
    ],
)
def test_split_and_templates_are_those_of_the_run(own_run, place, given, changed):
    result = run("--model", own_run / place, "--data", EMOJI, "--limit", 3, "--json", *given)
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    expected = {**OWN, **changed}
    assert found.items() >= expected.items(), f"{found}, expected {expected}"


def test_which_images_validate_is_said_and_is_that_of_the_run(own_run, tmp_path):
    result = run("--model", own_run, "--data", EMOJI, "--split", "validation", "--out", tmp_path)
    assert result.exit_code == 0, result.stderr
    dataset = open_dataset(EMOJI, tmp_path / "catalog", OWN, quiet=True)
    found = json.loads((tmp_path / "evaluation.json").read_text("utf-8"))["images"]
    assert found == len(dataset.validation), f"{found} images, expected those of the run"
    for words in ("0.3 of all, by caption", str(own_run / "config.yaml")):
        assert words in result.stdout, f"expected {words!r} in {result.stdout}"


def test_of_a_model_of_no_run_the_defaults_are_said(folder):
    result = run("--model", folder / "model", "--data", EMOJI, "--split", "training", "--limit", 3)
    assert "0.05 of all, by path (from the defaults: this model names no run)" in result.stdout


def test_a_damaged_configuration_of_the_run_is_named(own_run, tmp_path):
    shutil.copytree(own_run, tmp_path / "run")
    (tmp_path / "run" / "config.yaml").write_text("data: {colour: 3}\n", "utf-8")
    result = run("--model", tmp_path / "run", "--data", EMOJI)
    assert result.exit_code == 2
    assert "config.yaml: unknown key data.colour" in result.stderr, result.stderr
    ways = ("--validation-fraction", 0.3, "--validation-by", "path")
    result = run("--model", tmp_path / "run", "--data", EMOJI, "--limit", 3, *ways)
    assert result.exit_code == 0, f"expected the options to be enough: {result.stderr}"
