"""Captions of Tux Paint's stamps: the English text before its translations."""

import pytest

from latentddpm.data.dataset import open_dataset
from latentddpm.data.sources.metadata import without_translations


@pytest.mark.parametrize(
    ("text", "caption"),
    [
        ("A pyramid.\nach.utf8=Piramid.\naf.utf8='n Piramide.\n", "A pyramid."),
        ("An owl.\r\npt_br.utf8=Uma coruja.\r\nsr@latin.utf8=Sova.\r\n", "An owl."),
        ("two lines\nof one caption\n", "two lines\nof one caption"),
        ("a sign that says de.utf8=ja", "a sign that says de.utf8=ja"),
        ("", ""),
    ],
)
def test_only_lines_that_begin_as_a_translation_are_left_out(text, caption):
    assert without_translations(text) == caption


def test_a_folder_of_stamps_has_the_english_captions(emoji_folder):
    image = next(emoji_folder.rglob("*.png"))
    (emoji_folder / "metadata.jsonl").unlink()
    image.with_suffix(".txt").write_text("A kite.\nde.utf8=Ein Drachen.\n", "utf-8")
    dataset = open_dataset(emoji_folder, emoji_folder.parent / "catalog", quiet=True)
    found = [dataset.captions[row] for row in range(len(dataset))]
    assert ("A kite.",) in [tuple(texts) for texts in found], "expected the text before them"
    assert sum(map(len, found)) == 1
