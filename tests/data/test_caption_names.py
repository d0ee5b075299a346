"""Captions from names: names that say something do, and names by chance do not."""

import nasty
import numpy as np
import pytest

from latentddpm.config import DataConfig
from latentddpm.data.captioning.rules import rule_lines, settled, suggestion, uncaptioned
from latentddpm.data.captioning.words import repeats_of, words_of_folder, words_of_name
from latentddpm.data.dataset import open_dataset
from latentddpm.errors import UserError

PIXEL = nasty.encoded(nasty.solid("RGB", nasty.RED, 1), "PNG")


def open_folder(folder, names, **settings):
    """A data set of pictures with these names; of a pair the second is the caption."""
    for name in names:
        name, text = name if isinstance(name, tuple) else (name, None)
        path = folder / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(PIXEL)
        if text:
            path.with_suffix(".txt").write_text(text)
    return open_dataset(folder / "set", folder / "catalog", DataConfig(**settings), quiet=True)


def captions_of(dataset):
    return {dataset.catalog.name(i): dataset.captions[i] for i in range(len(dataset))}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("red_apple_01.png", "red apple"),
        ("red-apple.png", "red apple"),
        ("redApple2.png", "red apple"),
        ("deep/er/cat.001.jpg", "cat"),
        ("Golden Retriever.jpg", "golden retriever"),
        ("00001-3245234-a cat on a mat.png", "a cat on a mat"),
        ("photo of a dog (3).jpg", "photo of a dog"),
        ("IMG_red_apple.jpg", "red apple"),
        ("3d_chair-2.png", "3d chair"),
        ("1girl_solo.png", "1girl solo"),
        ("sks dog.jpg", "sks dog"),
        ("りんご_01.png", "りんご"),
        ("facade.png", "facade"),
    ],
)
def test_a_name_with_words_is_a_caption(name, words):
    assert words_of_name(name) == words, f"words of {name}"


@pytest.mark.parametrize(
    "name",
    [
        *("IMG_1234.jpg", "DSC0001.JPG", "DSC_0001.NEF.png", "PXL_20240102_101112.jpg"),
        *("0001.png", "12.png", "a.png", "image.png", "u1f600.png", "n02085620_10074.JPEG"),
        "550e8400-e29b-41d4-a716-446655440000.png",
        "d41d8cd98f00b204e9800998ecf8427e.jpg",
        "deadbeefdeadbeefdeadbeef.png",
        *("F4kq9XbX0AA3hTz.jpg", "FqkZxWmTtL.png", "tumblr_n9xq2uTsJL1st5lhmo1_1280.jpg"),
        *("Screenshot 2024-01-02 at 10.11.12.png", "WhatsApp Image 2024-01-02.jpeg"),
        *("train_000012.png", "untitled.png"),
    ],
)
def test_a_name_by_chance_or_of_a_camera_is_none(name):
    assert words_of_name(name) == "", f"{name} says nothing"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("10_sks dog/a.png", "sks dog"),
        ("1_golden_retriever/a.png", "golden retriever"),
        ("dogs/images/a.png", "dogs"),
        ("train/corgi/a.png", "corgi"),
        ("n02085620-Chihuahua/1.jpg", "chihuahua"),
        *(("images/a.png", ""), ("train/a.png", ""), ("data/a.png", ""), ("a.png", "")),
        *(("100/a.png", ""), ("2020_01_02/a.png", "")),
    ],
)
def test_the_nearest_folder_that_says_something_is_a_caption(name, words):
    assert words_of_folder(name) == words, f"words of the folders of {name}"


def test_repeats_are_those_of_kohya():
    assert repeats_of("10_sks dog") == (10, "sks dog"), "repeats and words"
    for name in ("sks dog", "10", "0_dog", "2020_01_02", "a10_dog"):
        assert repeats_of(name) is None, f"{name} names no repeats"


def test_files_is_what_it_always_was(tmp_path):
    dataset = open_folder(tmp_path, ["red_apple.png", ("green_pear.png", "a pear")])
    assert dataset.config.captions == "files", "the default"
    assert captions_of(dataset) == {"red_apple.png": (), "green_pear.png": ("a pear",)}


@pytest.mark.parametrize(
    ("names", "rule"),
    [
        (["red_apple_01.png", "green_pear_02.png", "IMG_1.png"], "name"),
        (["10_sks dog/IMG_1.png", "10_sks dog/IMG_2.png"], "folder"),
        (["images/0001.png", "images/0002.png"], "files"),
        ([("red_apple.png", "one"), ("green_pear.png", "two")], "files"),
    ],
)
def test_auto_is_settled_by_the_names_of_images_without_captions(tmp_path, names, rule):
    dataset = open_folder(tmp_path, names, captions="auto")
    assert dataset.config.captions == rule, f"auto of {names}"
    assert settled("auto", dataset.catalog) == rule, "the same from the catalog alone"


def test_an_image_with_a_caption_keeps_it_and_templates_apply(tmp_path):
    names = [("red_apple.png", "my own"), "green_pear_07.png", "0001.png"]
    dataset = open_folder(
        tmp_path, names, captions="name", caption_templates=["{text}", "a photo of {text}"]
    )
    assert captions_of(dataset) == {
        "red_apple.png": ("my own", "a photo of my own"),
        "green_pear_07.png": ("green pear", "a photo of green pear"),
        "0001.png": (),
    }, "own captions first, words of names else, nothing where they say nothing"


def test_lines_for_people_have_the_rule_and_examples(tmp_path):
    names = ["10_sks dog/1.png", "1_dog/2.png", "1_dog/3.png"]
    dataset = open_folder(tmp_path, names, captions="auto")
    first, second = rule_lines("folder", dataset.catalog, repeats=False)
    assert "data.captions=folder: 3 of 3 images" in first, "the settled rule and its number"
    assert "10_sks dog/1.png: 'sks dog'" in first, "an example"
    assert "data.repeats=true" in second, "repeats that are not used are said"
    assert len([*rule_lines("folder", dataset.catalog, repeats=True)]) == 1, "used: nothing to say"
    assert "data.captions=auto" in suggestion(dataset.catalog), "advice"
    assert "data.captions=auto" in dataset.captions.remedy() or dataset.captions.rule != "files"


def test_without_words_there_is_no_advice(tmp_path):
    dataset = open_folder(tmp_path, ["0001.png", "0002.png"])
    assert suggestion(dataset.catalog) == "", "names that say nothing"
    assert len(uncaptioned(dataset.catalog).names) == 2, "images without a caption"


def test_a_split_by_caption_goes_by_the_words_of_names(tmp_path):
    names = [f"{word}_{k}.png" for word in ("apple", "pear", "plum", "fig") for k in range(3)]
    settings = {"validation_by": "caption", "validation_fraction": 0.4}
    with pytest.raises(UserError, match="no image has a caption"):
        open_folder(tmp_path, names, **settings).training  # noqa: B018
    dataset = open_folder(tmp_path, names, captions="name", **settings)
    words, others = (
        {dataset.captions[int(row)] for row in part.rows(np.arange(len(part)))}
        for part in (dataset.training, dataset.validation)
    )
    assert words, "images to train on"
    assert others, "images to validate on"
    assert not words & others, "all pictures of a thing are in one set"
