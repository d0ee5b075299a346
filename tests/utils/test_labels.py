"""Sample grids bear their captions, at every size of the images."""

import numpy as np
import pytest

from latentddpm.utils.images.labels import NARROWEST, labelled_grid
from latentddpm.utils.pixels import grid

WORDS = "a very long caption of a mountain lake with many boats, drawn in the style of an etching"


RED = (200, 30, 30)


def rows(side, columns=2, count=2):
    """Rows of red images: letters are grey."""
    return [np.full((columns, side, side, 3), RED, np.uint8) for _ in range(count)]


@pytest.mark.parametrize("side", [8, 32, 64, 256])
def test_each_row_has_its_caption_above_it(side):
    found = labelled_grid(rows(side), ["red apple", "猫 Grüße"])
    red = (found == RED).all(axis=-1)
    assert red.sum() == 2 * 2 * side**2, "expected all images, and nothing written over them"
    assert found.shape[1] == max(2 * side + 2, NARROWEST), f"{found.shape}: another width"
    tops = np.flatnonzero(np.diff(red.any(axis=1).astype(int)) == 1)
    assert len(tops) == 2, f"expected two rows of images, found {len(tops)}"
    for start, stop in ((0, tops[0]), (tops[0] + side + 1, tops[1])):
        dark = (found[start:stop] < 90).any(axis=-1)
        assert dark.sum() > 20, "expected letters above the row"


def test_without_a_label_it_is_the_plain_grid():
    images = rows(200)
    assert (labelled_grid(images, ["", ""]) == grid(images)).all(), "expected no line of text"


@pytest.mark.parametrize("text", [WORDS, WORDS.replace(" ", ""), "x " * 300, " "])
def test_long_captions_stay_inside(text):
    found = labelled_grid(rows(32, count=1), [text])
    height = found.shape[0] - 32
    assert height < 40, f"{height} rows of text, expected two lines at most"


def test_rows_may_be_of_unlike_lengths():
    images = [*rows(32, 4, 1), *rows(32, 1, 1)]
    found = labelled_grid(images, ["a", ""])
    assert (found == RED).all(axis=-1).sum() == 5 * 32**2, "expected five images"
