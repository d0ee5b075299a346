"""CLIP's tokenizer: known ids, words, hostile text, files, and a second implementation."""

import hashlib
import itertools
import json
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

from latentddpm.clip import tokenizer as module
from latentddpm.clip import vocabulary
from latentddpm.clip.tokenizer import CLIPTokenizer, PromptTooLong
from latentddpm.errors import UserError

CAPTIONS = [
    "a photo of a cat",
    "keycap: 10",
    "woman’s “free of charge” button, it's WE'LL '' 's",
    "naïve café — Ελλάδα, İstanbul, 日本語一二三",
    "x²y ⅔ Ⅳ a_b__c 1234 !!! ...",
    "👩‍👩‍👧 ❤️ 🇳🇱",
]


@pytest.fixture(scope="module")
def tokenizer():
    return CLIPTokenizer()


def write_hugging_face(folder, tokenizer, **config):
    """The files as Hugging Face writes them, without `CLIPTokenizer.save`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(tokenizer.vocabulary), "utf-8")
    merges = "\n".join(f"{a} {b}" for a, b in tokenizer.merges)
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", "utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")


def test_packaged_vocabulary(tokenizer):
    digest = hashlib.sha256(vocabulary.PACKAGED_PATH.read_bytes()).hexdigest()
    assert digest.startswith("924691ac288e5440"), "the vocabulary file is not OpenAI's"
    license_text = vocabulary.PACKAGED_PATH.with_name("LICENSE").read_text("utf-8")
    assert "OpenAI" in license_text, "the vocabulary must travel with its MIT notice"
    assert tokenizer.vocabulary_size == 49_408, "CLIP has 49,408 tokens"
    assert len(tokenizer.merges) == 48_894, "CLIP has 48,894 merges"
    vocabulary.packaged_vocabulary.cache_clear()
    start = time.process_time()
    CLIPTokenizer()
    assert time.process_time() - start < 5, "loading is expected to take about 0.1 s"


def test_needs_no_framework():
    for home in (module, vocabulary):
        source = Path(home.__file__).read_text("utf-8")
        for name in ("keras", "tensorflow", "torch"):
            assert f"import {name}" not in source, f"the tokenizer must not import {name}"


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("a photo of a cat", [320, 1125, 539, 320, 2368]),
        ("Hi there", [1883, 997]),
        ("", []),
    ],
)
def test_known_ids(tokenizer, text, ids):
    row = tokenizer(text)
    assert row.shape == (1, 77), "one prompt gives one row of 77 positions"
    assert row.dtype == np.int32, "ids are int32"
    expected = [49406, *ids] + [49407] * (76 - len(ids))
    assert row[0].tolist() == expected, "expected start, CLIP's ids, end, then end as padding"
    assert tokenizer.encode(text) == ids, "encode leaves the special tokens out"


def test_batch_and_lengths():
    rows = CLIPTokenizer(5)(["a cat", ""])
    assert rows.tolist() == [
        [49406, 320, 2368, 49407, 49407],
        [49406, 49407, 49407, 49407, 49407],
    ], "each prompt fills its own row"
    assert CLIPTokenizer(16)([]).shape == (0, 16), "no prompts give no rows"
    for bad in (2, 0, -1, 7.5, "77", True, None):
        with pytest.raises(UserError, match="context_length"):
            CLIPTokenizer(bad)


@pytest.mark.parametrize("bad", [b"bytes", [None], [1], ["ok", b"no"]])
def test_only_text_is_taken(tokenizer, bad):
    with pytest.raises(UserError, match="expected text, got"):
        tokenizer(bad)


def test_words(tokenizer):
    words = [token.removesuffix("</w>") for token in tokenizer.tokenize("It's a DOG_ 42!!")]
    assert words == ["it", "'s", "a", "dog", "_", "4", "2", "!!"], "CLIP's rules for words"


def test_words_equal_those_of_unicode_classes():
    regex = pytest.importorskip("regex")
    clip = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    # Blocks with letters, marks, numbers and symbols that `re` and \p{..} class differently.
    for block in (range(0x20, 0x600), range(0x2000, 0x2800), range(0x3000, 0x3400)):
        text = "".join(f"a{chr(n)}b{chr(n)}{chr(n)} " for n in block if chr(n).isprintable())
        assert list(module._words(text)) == clip.findall(text), f"words differ in {block}"


@pytest.mark.parametrize("text", CAPTIONS)
def test_decode_keeps_spaces(tokenizer, text):
    decoded = tokenizer.decode(tokenizer(text)[0])
    assert decoded == " ".join(module._words(module._clean(text))), "words, spaces between them"
    assert tokenizer.encode(decoded) == tokenizer.encode(text), "decoded text has the same ids"


def test_decode_refuses_unknown_ids(tokenizer):
    for bad in (-1, 49_408):
        with pytest.raises(UserError, match=f"token id {bad}: expected 0 to 49407"):
            tokenizer.decode([bad])


def test_too_long_is_cut_and_said():
    tokenizer = CLIPTokenizer(6)
    with pytest.warns(PromptTooLong) as caught:
        row = tokenizer("a photo of a cat on a mat")[0]
    assert row.tolist() == [49406, 320, 1125, 539, 320, 49407], "the end token is kept"
    message = str(caught[0].message)
    assert "has 8 tokens, 4 fit" in message, "the warning counts"
    assert "left out: 'cat on a mat'" in message, "the warning names what is cut off"
    with pytest.warns(PromptTooLong, match="'one two three four five' has 5 tokens") as caught:
        tokenizer(["fits", "one two three four five"])
    assert len(caught) == 1, "one warning per call"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenizer("exactly four words here")


@pytest.mark.parametrize(
    ("text", "same_as"),
    [
        ("\ufeffa cat", "a cat"),
        ("a\x00 ca\x00t\x1f", "a cat"),
        ("  a\t\r\n\u3000cat \x85", "a cat"),
        ("Fish &amp; Chips &amp;lt;3", "fish & chips <3"),
        ("cafe\u0301", "café"),
        ("bad \udce9", "bad \ufffd"),
        ("\x00\ufeff \n", ""),
    ],
)
def test_cleaning(tokenizer, text, same_as):
    assert tokenizer.encode(text) == tokenizer.encode(same_as), f"{text!r} reads {same_as!r}"


def test_any_characters_encode(tokenizer):
    mojibake = "café ❤️".encode().decode("latin-1")
    every = "".join(map(chr, range(0x110000)))[::97]
    for text in (mojibake, every, "😀🏳️‍🌈", "<|endoftext|>", "</w>"):
        ids = tokenizer.encode(text)
        assert all(0 <= n < 49_408 for n in ids), f"ids out of range for {text[:20]!r}"
        assert isinstance(tokenizer.decode(ids), str), "ids decode to text"
    assert tokenizer.decode(tokenizer.encode(mojibake)).startswith("cafã"), "taken as it is"


@pytest.mark.parametrize(
    "text", [" ".join(["caption"] * 10_000), "a" * 30_000, "ab!" * 10_000, "&" * 30_000]
)
def test_long_text_is_fast(tokenizer, text):
    start = time.process_time()
    with pytest.warns(PromptTooLong) as caught:
        tokenizer(text)
    assert time.process_time() - start < 10, "30,000 characters are expected well under 1 s"
    assert len(str(caught[0].message)) < 400, "the warning stays readable"


def test_merges_in_the_order_of_the_rules(tokenizer):
    ranks = {pair: n for n, pair in enumerate(tokenizer.merges)}

    def plain(word):  # CLIP's own loop: all places of the best pair, again and again
        symbols = [*word[:-1], word[-1] + "</w>"]
        while pairs := ranks.keys() & set(itertools.pairwise(symbols)):
            best, merged, i = min(pairs, key=ranks.__getitem__), [], 0
            while i < len(symbols):
                hit = tuple(symbols[i : i + 2]) == best
                merged.append("".join(symbols[i : i + 1 + hit]))
                i += 1 + hit
            symbols = merged
        return tuple(symbols)

    rng = np.random.default_rng(0)
    words = ["a" * n for n in range(1, 40)] + ["!" * n for n in range(1, 40)]
    words += ["".join(rng.choice(list("etaoinshr"), rng.integers(1, 30))) for _ in range(300)]
    for word in words:
        assert tokenizer._symbols(word) == plain(word), f"{word!r} is merged otherwise"


def test_save_is_small_and_loads(tmp_path):
    CLIPTokenizer(16).save(tmp_path)
    names = [path.name for path in tmp_path.iterdir()]
    assert names == ["tokenizer_config.json"], "the packaged vocabulary is named, not copied"
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["model_max_length"] == 16, "the context length is saved"
    loaded = CLIPTokenizer.load(tmp_path)
    np.testing.assert_array_equal(loaded("a cat"), CLIPTokenizer(16)("a cat"))


def test_save_standalone_is_read_without_the_package(tmp_path, tokenizer):
    tokenizer.save(tmp_path, standalone=True)
    vocabulary = json.loads((tmp_path / "vocab.json").read_text("utf-8"))
    assert vocabulary["cat</w>"] == 2368, "vocab.json maps tokens to ids"
    lines = (tmp_path / "merges.txt").read_text("utf-8").split("\n")
    assert lines[0] == "#version: 0.2", "merges.txt starts as Hugging Face's"
    assert lines[1] == "i n", "the best merge comes first"
    np.testing.assert_array_equal(CLIPTokenizer.load(tmp_path)(CAPTIONS), tokenizer(CAPTIONS))


def test_load_hugging_face_folder(tmp_path, tokenizer):
    write_hugging_face(tmp_path, tokenizer, model_max_length=32, pad_token={"content": "!"})
    loaded = CLIPTokenizer.load(tmp_path)
    assert loaded("a cat")[0, :6].tolist() == [49406, 320, 2368, 49407, 0, 0], "padded with '!'"
    assert loaded.context_length == 32, "model_max_length is the context length"
    write_hugging_face(tmp_path, tokenizer, model_max_length=10**30)
    assert CLIPTokenizer.load(tmp_path, default_length=20).context_length == 20, "not set there"


def test_load_tokenizer_json(tmp_path, tokenizer):
    model = {"type": "BPE", "vocab": tokenizer.vocabulary, "merges": tokenizer.merges}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": model}), "utf-8")
    loaded = CLIPTokenizer.load(tmp_path)
    assert loaded.encode(CAPTIONS[3]) == tokenizer.encode(CAPTIONS[3]), "the same ids"
    loaded.save(tmp_path / "copy")
    assert not (tmp_path / "copy" / "vocab.json").exists(), "recognised as the packaged one"


def test_other_vocabulary_is_saved_whole(tmp_path, tokenizer):
    merges = tokenizer.merges[:1000]
    tokens = [*vocabulary.byte_tokens(), *map("".join, merges), *tokenizer.tokens[-2:]]
    small = CLIPTokenizer(8, vocabulary={t: n for n, t in enumerate(tokens)}, merges=merges)
    small.save(tmp_path)
    loaded = CLIPTokenizer.load(tmp_path)
    assert loaded.vocabulary_size == 1514, "512 bytes, 1000 merges, 2 special tokens"
    np.testing.assert_array_equal(loaded("a cat"), small("a cat"))
    assert loaded.decode(loaded.encode("a zebra")) == "a zebra", "decodes with its own tokens"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("vocab.json", None, "vocab.json not found"),
        ("merges.txt", None, "merges.txt not found"),
        ("vocab.json", "{", "not valid JSON"),
        ("vocab.json", "[" * 100_000, "not valid JSON"),
        ("vocab.json", "[]", "expected a JSON object"),
        ("vocab.json", '{"a": "b"}', "expected a mapping from token to id"),
        ("vocab.json", '{"a": 0, "b": 0}', "ids are not 0 to 1"),
        ("vocab.json", '{"a": 0}', "not a CLIP vocabulary"),
        ("merges.txt", "a b c\n", "is not two symbols"),
        ("merges.txt", b"\xff\xfe", "not UTF-8"),
        ("merges.txt", "a qqqq\n", "no token 'aqqqq'"),
        ("tokenizer_config.json", '{"model_max_length": 1}', "context_length"),
        ("tokenizer_config.json", '{"pad_token": "nope!"}', "pad_token: 'nope!'"),
        ("tokenizer_config.json", '{"latentddpm_vocabulary": "bpe"}', "is not known"),
        ("tokenizer_config.json", '{"pad_token": ["!"]}', r"pad_token: \['!'\] is not"),
        ("tokenizer_config.json", '{"pad_token": {"content": {}}}', "pad_token: {} is not"),
        ("tokenizer_config.json", '{"model_max_length": NaN}', "context_length: expected"),
        ("tokenizer_config.json", '{"model_max_length": "77"}', "context_length: expected"),
        ("tokenizer_config.json", '{"model_max_length": 1' + "0" * 5000 + "}", "not valid JSON"),
        ("added_tokens.json", '{"<cat-toy>": 49408}', "added token '<cat-toy>'"),
        (
            "tokenizer_config.json",
            '{"added_tokens_decoder": {"49408": {"content": "<cat-toy>"}}}',
            "added token '<cat-toy>': these are not supported",
        ),
        ("vocab.json", " " * (17 << 20), "over 16 MiB"),
        ("vocab.json", '{"a": true, "b": 0}', "expected a mapping from token to id"),
        ("merges.txt", "i n\ni n\n", "a merge rule is there twice"),
    ],
)
def test_bad_folders_are_refused(tmp_path, tokenizer, name, text, message):
    write_hugging_face(tmp_path, tokenizer)
    if text is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message) as caught:
        CLIPTokenizer.load(tmp_path)
    assert "\n" not in str(caught.value), "an error is one line"


def test_agrees_with_instant_clip_tokenizer(tokenizer):
    instant = pytest.importorskip("instant_clip_tokenizer").Tokenizer()
    for text in CAPTIONS:
        assert tokenizer.encode(text) == instant.encode(text), f"ids of {text!r}"
