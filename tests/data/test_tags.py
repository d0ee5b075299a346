"""Tags of captions: another order and another part for each use, the same for the same bits."""

import warnings

import numpy as np
import pytest
import tensorflow as tf

from latentddpm.clip.tokenizer import CLIPTokenizer
from latentddpm.config import DataConfig
from latentddpm.config.data import TagsConfig
from latentddpm.config_file import parse_config
from latentddpm.data.captioning.tags import DrawnTags, drawn, tags_of
from latentddpm.data.captions import CaptionTokens
from latentddpm.data.catalog.split import Selection
from latentddpm.data.examples import diffusion_examples
from latentddpm.data.latents.cache import LatentsCache
from latentddpm.data.random import RandomStream
from latentddpm.diffusion.schedule import NoiseSchedule
from latentddpm.errors import UserError
from latentddpm.models.autoencoder.latent_space import LatentSpace

CAPTION = "1girl, solo, hat, smile, blue sky, tree, (o_o), rain"
TAGS = tags_of(CAPTION)
BITS = range(400)


def texts(**settings):
    return [drawn(CAPTION, TagsConfig(**settings), bits) for bits in BITS]


def test_tags_are_stripped_and_empty_ones_go():
    assert tags_of(" a ,, b c , ") == ["a", "b c"], "tags"
    assert tags_of("a|b", "|") == ["a", "b"], "another separator"


def test_shuffle_keeps_every_tag_and_the_first_stay():
    found = texts(shuffle=True, keep=2)
    assert all(sorted(tags_of(text)) == sorted(TAGS) for text in found), "the same tags"
    assert all(tags_of(text)[:2] == TAGS[:2] for text in found), "the first two stay in front"
    places = np.array([tags_of(text).index("tree") for text in found])
    counts = np.bincount(places, minlength=8)[2:]
    assert counts.min() > 40, f"every other place about 67 times, got {counts}"


def test_dropout_leaves_out_the_share_and_never_the_first():
    found = [tags_of(text) for text in texts(dropout=0.25, keep=1)]
    assert all(tags[0] == "1girl" for tags in found), "the first is never dropped"
    share = 1 - np.mean([len(tags) - 1 for tags in found]) / (len(TAGS) - 1)
    assert abs(share - 0.25) < 0.03, f"a quarter of the others is left out, got {share:.3f}"
    for tags in found:
        assert tags == [tag for tag in TAGS if tag in tags], "in their order, without shuffle"


def test_the_same_bits_give_the_same_caption_and_others_another():
    settings = TagsConfig(shuffle=True, dropout=0.2)
    one, two = (drawn(CAPTION, settings, bits) for bits in (7, 7))
    assert one == two, "a function of the bits"
    assert len({drawn(CAPTION, settings, bits) for bits in range(50)}) > 45, "others for others"


def test_settings_are_named_where_they_are_wrong():
    with pytest.raises(UserError, match=r"unknown key tags.shufle .*'shuffle'"):
        parse_config(DataConfig, {"tags": {"shufle": True}})
    with pytest.raises(UserError, match=r"tags\.dropout"):
        parse_config(DataConfig, {"tags": {"dropout": 1.0}})


def test_token_ids_are_those_of_the_text_that_was_drawn():
    tokenizer = CLIPTokenizer(24)
    captions = [(CAPTION, "a, b, c"), (), ("one tag",)]
    tags = DrawnTags(captions, tokenizer, TagsConfig(shuffle=True))
    args = np.array([0, 0, 1, 2, 0]), np.array([0, 3, 9, 9, 0]), np.array([0, 0, 0, 0, 1]) > 0
    bits = np.array([1, 2, 3, 4, 5])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a caption that is too long was said before
        ids = tags.pick(*args, bits)
    found = tags.texts(*args, bits)
    assert sorted(tags_of(found[1])) == ["a", "b", "c"], "choice 3 of two captions is the second"
    assert found[2:] == ["", "one tag", ""], "no caption, one tag, dropped"
    np.testing.assert_array_equal(ids, tokenizer(found), "expected what generate would give")


def test_examples_draw_tags_by_position_alone():
    """A run that resumes at any step has the captions of one that was never stopped."""
    tokenizer, count = CLIPTokenizer(24), 3
    captions = [(f"first {i}, a, b, c, d, e",) for i in range(count)]
    ids = np.asarray(tokenizer([text for (text,) in captions] + [""]))
    drawn_tags = DrawnTags(captions, tokenizer, TagsConfig(shuffle=True, keep=1))
    moments = np.zeros((count, 2, 2, 4), np.float32)

    def examples(start, stop, tags=True):
        batches = diffusion_examples(
            LatentsCache(count, moments, mirrored=False),
            Selection(count),
            NoiseSchedule(),
            LatentSpace(1.0),
            batch_size=2,
            stream=RandomStream(0, "train-diffusion"),
            positions=tf.data.Dataset.range(start, stop),
            tokens=CaptionTokens(ids, np.arange(1, count + 1)),
            tags=drawn_tags if tags else None,
        )
        found = [inputs for inputs, _ in batches.as_numpy_iterator()]
        return {name: np.concatenate([one[name] for one in found]) for name in found[0]}

    whole, rest, plain = examples(0, 8), examples(4, 8), examples(0, 8, tags=False)
    np.testing.assert_array_equal(whole["token_ids"][4:], rest["token_ids"], "resumed at 4")
    np.testing.assert_array_equal(whole["noisy_latents"], plain["noisy_latents"], "noise stays")
    assert (whole["token_ids"] != plain["token_ids"]).any(), "tags in another order"
    np.testing.assert_array_equal(
        np.sort(whole["token_ids"]), np.sort(plain["token_ids"]), "the same tags"
    )
