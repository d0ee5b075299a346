"""`evaluate --latents`: groups, what is counted of them, and the two pictures."""

import json
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import EMOJI
from PIL import Image
from tiny import SIZE, tiny_autoencoder

from latentddpm.cli import main
from latentddpm.config import DataConfig
from latentddpm.data.catalog.scan import open_catalog
from latentddpm.data.dataset import Dataset
from latentddpm.errors import UserError
from latentddpm.evaluation import projection
from latentddpm.evaluation.images import ImageSet
from latentddpm.evaluation.projection import NONE, agreement, image_groups, project_latents
from latentddpm.pipeline.latent_diffusion import LatentDiffusion


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    catalog = open_catalog(EMOJI, tmp_path_factory.mktemp("catalog"), quiet=True)
    return ImageSet(Dataset(catalog, DataConfig()), np.arange(len(catalog)), SIZE)


def test_groups_are_a_column_or_first_words(images):
    styles, by = image_groups(images, "style")
    assert by == "column 'style'"
    assert sorted(set(styles)) == ["fluent 3d", "fluent flat", "noto", "twemoji"]
    words, by = image_groups(images, None)
    assert by == "first word of the caption"
    row = images.catalog.row(7)
    assert words[7] == row.columns["text"].split()[0]
    lists, _ = image_groups(images, "keywords")
    assert lists[7] == row.columns["keywords"][0], "of a list the first entry"
    with pytest.raises(UserError, match=r"no column 'styl' \(did you mean 'style'\?\)"):
        image_groups(images, "styl")


def test_images_without_a_group_are_told(tmp_path):
    for number in range(14):
        Image.new("RGB", SIZE, (number, 0, 0)).save(tmp_path / f"{number:02}.png")
        if number < 11:
            (tmp_path / f"{number:02}.txt").write_text("red square")
    catalog = open_catalog(tmp_path, tmp_path / "catalog", quiet=True)
    groups, _ = image_groups(ImageSet(Dataset(catalog, DataConfig()), np.arange(14), SIZE), None)
    assert groups == 11 * ["red"] + 3 * [NONE]
    with pytest.raises(UserError, match="1 of 4 images have a first word of the caption; name"):
        image_groups(ImageSet(Dataset(catalog, DataConfig()), np.arange(10, 14), SIZE), None)


def test_neighbours_of_one_group_are_counted():
    """All of them in clusters of one group each; as many as by chance in one cloud."""
    numbers = np.random.default_rng(0)
    groups = ["a"] * 200 + ["b"] * 100
    chance = (200 * 199 + 100 * 99) / 300 / 299
    cloud = numbers.normal(size=(300, 8))
    apart = cloud + np.array([[9.0 if name == "a" else 0.0] for name in groups])
    assert agreement(apart, groups) == pytest.approx((1.0, chance))
    same, by_chance = agreement(cloud, groups)
    assert by_chance == pytest.approx(chance)
    assert same == pytest.approx(chance, abs=0.04), "expected chance where groups do not differ"


def test_images_lie_where_their_points_are(images, tmp_path):
    """Up is up, and of two in one cell the one nearer to its middle is shown."""
    side = projection.SIDE
    places = np.array([[0, 0], [10, 10], [9.88, 9.88]], "float32")
    three = ImageSet(images.dataset, np.array([0, 9, 20]), SIZE)
    projection._draw_images(tmp_path / "images.png", places, three)
    canvas = np.asarray(Image.open(tmp_path / "images.png"))
    assert canvas.shape == (projection.CELLS * side, projection.CELLS * side, 3)
    for name, part, number in (
        ("bottom left", canvas[-side:, :side], 0),
        ("top right", canvas[:side, -side:], 2),
    ):
        small = Image.fromarray(three.read([number])[0]).resize((side, side), 1)
        np.testing.assert_array_equal(part, np.asarray(small), f"{name}: another image")
    canvas = canvas.copy()
    canvas[-side:, :side] = canvas[:side, -side:] = 255
    assert (canvas == 255).all(), "expected white where there is no image"


def run(*arguments):
    return CliRunner().invoke(main, ["evaluate", *map(str, arguments), "--latents", "--quiet"])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model"
    LatentDiffusion(tiny_autoencoder(), None, None, image_size=SIZE).save(path)
    return path


def test_the_command_leaves_two_pictures(model, tmp_path):
    result = run("--model", model, "--data", EMOJI, "--out", tmp_path, "--group-by", "style")
    assert result.exit_code == 0, result.stderr
    values = json.loads((tmp_path / "evaluation.json").read_text())["latents"]
    assert values["groups"] == {"fluent 3d": 10, "fluent flat": 10, "noto": 10, "twemoji": 10}
    assert values["same_group_by_chance"] == pytest.approx(9 / 39)
    assert 0 < values["same_group"] < 1
    for name in ("latents.png", "latents-images.png"):
        assert np.asarray(Image.open(tmp_path / name)).std() > 5, f"{name} is blank"
        assert name in result.stdout
    assert "4 groups by column 'style'" in result.stdout


def test_what_does_not_fit_is_refused_before_anything_is_encoded(images, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    few = ImageSet(images.dataset, np.arange(11), SIZE)
    for which, options, message in (
        (few, {}, "a picture of latents needs at least 12 images, not 11"),
        (images, {"projection": "pca"}, "--projection: 'pca' is not known"),
        (images, {"projection": "umap"}, r"--projection umap needs .*pip install umap-learn"),
        (images, {"group_by": "colour"}, "no column 'colour'"),
    ):
        with pytest.raises(UserError, match=message):
            project_latents(None, which, tmp_path, **options)
    result = run("--model", "emoji-128", "--data", EMOJI)
    assert result.exit_code == 2
    assert "--latents: leaves pictures; name a folder with --out" in result.stderr


def test_umap_where_it_is_installed(images, tmp_path):
    pytest.importorskip("umap")
    report = project_latents(tiny_autoencoder(), images, tmp_path, projection="umap", quiet=True)
    assert report.values["projection"] == "umap"
    assert (tmp_path / "latents.png").is_file()
