"""`open_dataset`: images, their split and their captions."""

import numpy as np
import pytest
from conftest import EMOJI

import latentddpm

BY_CAPTION = {"validation_fraction": 0.3, "validation_by": "caption"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("catalog")


def opened(folder, config=None):
    return latentddpm.open_dataset(EMOJI, folder, config, quiet=True)


def rows(selection):
    return set(selection.rows(np.arange(len(selection))).tolist())


def test_the_split_is_of_all_images_and_does_not_overlap(folder):
    dataset = opened(folder, BY_CAPTION)
    training, validation = rows(dataset.training), rows(dataset.validation)
    assert training | validation == set(range(len(dataset))), "an image is in neither part"
    assert not training & validation, "an image is in both parts"
    assert rows(dataset.split("all")) == set(range(len(dataset)))
    assert rows(dataset.split("validation")) == validation


def test_pictures_of_the_same_caption_are_on_one_side(folder):
    dataset = opened(folder, BY_CAPTION)
    first = {dataset.captions[row][0] for row in rows(dataset.validation)}
    other = {dataset.captions[row][0] for row in rows(dataset.training)}
    assert first, "expected validation images"
    assert not first & other, f"captions on both sides: {first & other}"


def test_captions_follow_the_templates(folder):
    dataset = opened(folder, {"caption_templates": ["{text}, {style} style"]})
    assert all(" style" in dataset.captions[row][0] for row in range(len(dataset)))


@pytest.mark.parametrize(
    ("name", "message"),
    [("valid", r"'valid' .*did you mean 'validation'"), ("validation", "leaves it none of 40")],
)
def test_a_split_that_is_not_there_is_refused(folder, name, message):
    dataset = opened(folder, {"validation_fraction": 0.0})
    with pytest.raises(latentddpm.UserError, match=message):
        dataset.split(name)


def test_an_unknown_setting_names_the_nearest(folder):
    with pytest.raises(latentddpm.UserError, match=r"validation_b.*did you mean 'validation_by'"):
        opened(folder, {"validation_b": "caption"})


def test_images_in_order_are_the_images(folder):
    dataset = opened(folder)
    (batch,) = dataset.image_batches("all", 16, 64)
    images = batch["images"].numpy()
    assert images.shape == (len(dataset), 16, 16, 3), f"got {images.shape}"
    assert images.min() >= -1, "expected the range [-1, 1]"
    assert images.max() == 1, "expected white to be 1"


def test_a_seed_gives_every_image_once_an_epoch_in_an_order_of_its_own(folder):
    dataset = opened(folder)
    steps = 2 * len(dataset) // 8

    def drawn(seed):
        batches = dataset.image_batches("all", 8, 8, seed=seed, steps=steps)
        return np.concatenate([batch["images"] for batch in batches]).reshape(2, len(dataset), -1)

    first, again, other = drawn(0), drawn(0), drawn(1)
    np.testing.assert_array_equal(first, again, err_msg="the same seed gave another order")
    assert np.any(first != other), "another seed gave the same order"
    assert np.any(first[0] != first[1]), "the second epoch has the order of the first"
    for epoch in first:
        found = {image.tobytes() for image in epoch}
        (batch,) = dataset.image_batches("all", 8, len(dataset))
        assert found == {image.tobytes() for image in batch["images"].numpy().reshape(40, -1)}
