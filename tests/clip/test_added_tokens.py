"""Added tokens: words with token ids of their own, and their rows in a text encoder."""

import numpy as np
import pytest
from tiny import CONTEXT_LENGTH, perturb

from latentddpm.clip.added_embeddings import with_embeddings
from latentddpm.clip.added_tokens import add_tokens
from latentddpm.clip.text_encoder import build_text_encoder
from latentddpm.clip.tokenizer import CLIPTokenizer
from latentddpm.errors import UserError
from latentddpm.training.subject.token import AddedEmbeddings

TOKENIZER = CLIPTokenizer(CONTEXT_LENGTH)
SIZE = TOKENIZER.vocabulary_size
ROWS = np.random.default_rng(0).normal(size=(3, 16)).astype("float32")


@pytest.mark.parametrize(
    ("text", "around"),
    [
        ("a <cat-toy> here", ("a", "here")),
        ("a <CAT-Toy> here", ("a", "here")),
        ("a <cat-toy>, here", ("a", ", here")),
        ("a<cat-toy>here", ("a", "here")),
        ("<cat-toy>", ("", "")),
        ("&lt;b&gt; <cat-toy>", ("<b>", "")),
    ],
)
def test_a_word_is_its_ids_wherever_it_stands(text, around):
    tokenizer = add_tokens(TOKENIZER, "<cat-toy>", 2)
    before, after = map(TOKENIZER.encode, around)
    expected = [*before, SIZE, SIZE + 1, *after]
    assert tokenizer.encode(text) == expected, f"{text!r} is {tokenizer.encode(text)}"


def test_a_part_of_a_longer_word_is_not_it():
    tokenizer = add_tokens(TOKENIZER, "zqx9")
    assert tokenizer.encode("a zqx9.")[1] == SIZE, "expected the new word before a full stop"
    for text in ("azqx9", "zqx95", "zq x9"):
        assert tokenizer.encode(text) == TOKENIZER.encode(text), f"{text!r} became the new word"


def test_words_add_up_and_texts_without_them_stay():
    first = add_tokens(TOKENIZER, "<a>", 2)
    tokenizer = add_tokens(first, "<a>b")
    assert tokenizer.vocabulary_size == SIZE + 3, "expected three more tokens"
    assert tokenizer.encode("<a> <a>b") == [SIZE, SIZE + 1, SIZE + 2], "the longer word counts"
    np.testing.assert_array_equal(tokenizer(["red apple"]), TOKENIZER(["red apple"]))
    assert first.vocabulary_size == SIZE + 2, "the first tokenizer was changed"
    assert not hasattr(TOKENIZER, "added"), "the model's own tokenizer was changed"
    assert tokenizer.tokens[SIZE:] == ["<a> 1", "<a> 2", "<a>b 1"], "names, for the captions' ids"


@pytest.mark.parametrize(
    ("word", "why"),
    [("cat", "CLIP knows"), ("", "one word"), ("two words", "one word"), ("<OLD>", "before")],
)
def test_what_is_no_new_word_is_refused(word, why):
    with pytest.raises(UserError, match=why):
        add_tokens(add_tokens(TOKENIZER, "<old>"), word)


def test_a_model_with_added_words_is_not_saved(tmp_path):
    with pytest.raises(UserError, match="<a>"):
        add_tokens(TOKENIZER, "<a>").save(tmp_path)


@pytest.fixture(scope="module")
def encoder():
    encoder = build_text_encoder(
        hidden_dim=16, num_layers=1, num_heads=2, context_length=CONTEXT_LENGTH
    )
    perturb(encoder)
    return encoder


def test_rows_are_what_the_ids_mean(encoder):
    """A vector of the vocabulary under a new word says what its own word says."""
    cat = TOKENIZER.encode("cat")[0]
    table = np.asarray(encoder.get_layer("embedding").token_embedding.embeddings)
    larger = with_embeddings(encoder, np.stack([ROWS[0], table[cat]]))
    texts = TOKENIZER(["a cat here", "red apple"])
    expected = np.asarray(encoder({"token_ids": texts}))
    ids = np.where(texts == cat, SIZE + 1, texts)
    assert (ids >= SIZE).any(), "expected the new word in the text"
    np.testing.assert_array_equal(larger({"token_ids": ids}), expected, "another vector")
    np.testing.assert_array_equal(larger({"token_ids": texts}), expected, "changed other words")


def test_trained_rows_and_the_larger_table_are_the_same_function(encoder):
    added, larger = AddedEmbeddings(encoder, ROWS), with_embeddings(encoder, ROWS)
    texts = TOKENIZER(["a cat here", "red apple"])
    ids = np.where(texts == TOKENIZER.encode("cat")[0], SIZE + 2, texts)
    found = [np.asarray(one({"token_ids": ids})) for one in (added, larger)]
    np.testing.assert_allclose(found[0], found[1], atol=1e-6, err_msg="other states")
    trained = [variable.path for variable in added.trainable_variables]
    assert len(trained) == 1, f"expected the rows alone to be trained, got {trained}"
