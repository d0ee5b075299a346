"""Features that are kept: computed once, and never taken for those of something else."""

import copy
import os
import signal

import numpy as np
import pytest
from conftest import EMOJI
from metric_sets import image_set
from PIL import Image

import latentddpm
from latentddpm.evaluation import features
from latentddpm.evaluation.features import kept_features
from latentddpm.evaluation.images import ImageSet
from latentddpm.utils import signals

SIZE = (16, 16)


class Colours:
    """The mean of each channel; counts the images it is shown."""

    label, digest = "colours", "0"

    def __init__(self):
        self.shown = 0

    def features(self, images):
        self.shown += len(images)
        return images.mean(axis=(1, 2)).astype("float32")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(features, "BLOCK", 6)


def emoji(tmp_path, folder=EMOJI, limit=20, size=SIZE):
    return image_set(folder, tmp_path / "catalog", size, limit=limit)


def kept(images, tmp_path, network=None):
    """Features, and of how many images they had to be computed."""
    network = network or Colours()
    network.shown = 0
    found = kept_features(network, images, tmp_path / "features", "features", quiet=True)
    expected = images.read(np.arange(len(images))).mean(axis=(1, 2))
    np.testing.assert_allclose(found, expected, rtol=1e-6, err_msg="features of other images")
    return network.shown


def test_they_are_computed_once(tmp_path):
    images = emoji(tmp_path)
    assert kept(images, tmp_path) == 20
    assert kept(images, tmp_path) == 0, "computed again without need"


def test_more_images_come_on_top_in_whole_blocks(tmp_path):
    images = emoji(tmp_path, limit=40)
    fewer = ImageSet(images.dataset, images.rows[:20], SIZE)
    kept(fewer, tmp_path)
    assert kept(images, tmp_path) == 40 - 18, "expected three blocks of six to be found"


def test_an_image_that_changed_is_seen_whatever_it_is_called(emoji_folder, tmp_path):
    images = emoji(tmp_path, emoji_folder)
    kept(images, tmp_path)
    changed = emoji_folder / images.catalog.name(int(images.rows[7]))
    Image.new("RGB", (20, 20), (9, 99, 199)).save(changed)
    assert kept(emoji(tmp_path, emoji_folder), tmp_path) == 6, "expected its block alone"


def test_the_order_of_images_counts(tmp_path):
    images = emoji(tmp_path)
    kept(images, tmp_path)
    assert kept(ImageSet(images.dataset, images.rows[::-1], SIZE), tmp_path) == 20


@pytest.mark.parametrize("change", [{"label": "colors"}, {"digest": "1"}], ids=str)
def test_another_network_computes_its_own(tmp_path, change):
    images, other = emoji(tmp_path), Colours()
    vars(other).update(change)
    kept(images, tmp_path)
    assert kept(images, tmp_path, other) == 20, f"{change}: took the other network's features"


def test_another_size_or_release_computes_its_own(tmp_path, monkeypatch):
    images = emoji(tmp_path)
    kept(images, tmp_path)
    larger = copy.copy(images)
    larger.size = (16, 24)
    assert kept(larger, tmp_path) == 20, "took the features of another size"
    monkeypatch.setattr(latentddpm, "__version__", "9.9")
    assert kept(images, tmp_path) == 20, "took the features of another release"


def test_what_was_interrupted_goes_on_from_its_last_block(tmp_path):
    class Interrupted(Colours):
        def features(self, images):
            if self.shown >= 12:
                os.kill(os.getpid(), signal.SIGINT)
            return super().features(images)

    images = emoji(tmp_path)
    told = "12 of 20 features done; the same command goes on from there"
    with signals.listening(), pytest.raises(signals.Stopped, match=told):
        kept(images, tmp_path, Interrupted())
    assert kept(images, tmp_path) == 20 - 12, "expected two blocks of six to be kept"


def test_a_damaged_file_is_computed_again(tmp_path):
    images = emoji(tmp_path)
    kept(images, tmp_path)
    first, second, *_ = sorted((tmp_path / "features").iterdir())
    first.write_bytes(first.read_bytes()[:-8])
    second.write_bytes(b"")
    assert 0 < kept(images, tmp_path) <= 12, "expected the two damaged blocks"
    assert kept(images, tmp_path) == 0
