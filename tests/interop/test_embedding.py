"""Files of textual inversions: those of other programs, and what is none."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from latentddpm.errors import UserError
from latentddpm.interop.embedding import MOST_VECTORS, check_width, read_embedding, save_embedding

VECTORS = np.random.default_rng(0).normal(size=(3, 8)).astype("float32")


def stored(path, **tensors):
    save_file(tensors, path)
    return path


@pytest.mark.parametrize(
    ("key", "word"),
    [("<cat-toy>", "<cat-toy>"), ("emb_params", "my-style"), ("*", "my-style")],
)
def test_the_word_is_that_of_the_file_or_its_name(tmp_path, key, word):
    path = stored(tmp_path / "my-style.safetensors", **{key: VECTORS})
    found = read_embedding(path)
    assert found.word == word, f"word {found.word!r}, expected {word!r}"
    np.testing.assert_array_equal(found.vectors, VECTORS)
    assert read_embedding(path, "<mine>").word == "<mine>", "expected the word that was given"


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_other_types_and_a_single_vector(tmp_path, dtype):
    path = stored(tmp_path / "a.safetensors", emb_params=VECTORS[0].astype(dtype))
    found = read_embedding(path).vectors
    assert found.shape == (1, 8), f"a vector became {found.shape}"
    assert found.dtype == np.float32, "expected float32"
    np.testing.assert_array_equal(found[0], VECTORS[0].astype(dtype).astype("float32"))


def test_what_is_written_is_read_and_is_the_same_file_again(tmp_path):
    for name in ("a", "b"):
        path = tmp_path / f"{name}.safetensors"
        save_embedding(path, "<cat-toy>", VECTORS, {"z": 1, "first": "toy", "base": "x"})
    found = read_embedding(path)
    assert found.word == "<cat-toy>", f"word {found.word!r}"
    np.testing.assert_array_equal(found.vectors, VECTORS)
    assert path.read_bytes() == (tmp_path / "a.safetensors").read_bytes(), "other bytes"


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"clip_l": VECTORS, "clip_g": VECTORS}, ("Stable Diffusion XL",)),
        ({"a": VECTORS, "b": VECTORS}, ("2 tensors", "expected an embedding")),
        ({"conv": np.ones((3, 3, 3, 3), "float32")}, ("conv", "expected an embedding")),
        ({"a": np.ones((MOST_VECTORS + 1, 8), "float32")}, ("expected an embedding",)),
        ({"a": np.ones((2, 8), "int64")}, ("I64",)),
        ({"a": np.full((2, 8), np.nan, "float32")}, ("finite",)),
    ],
)
def test_other_files_are_refused(tmp_path, tensors, words):
    path = stored(tmp_path / "a.safetensors", **tensors)
    with pytest.raises(UserError) as caught:
        read_embedding(path)
    text = str(caught.value)
    assert all(word in text for word in (*words, str(path))), f"{text!r}: expected {words}"


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".safetensors"])
def test_pickles_are_not_opened(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(UserError, match="pickle"):
        read_embedding(path)


def test_the_width_has_to_be_the_models(tmp_path):
    path = stored(tmp_path / "a.safetensors", emb_params=np.ones((1, 1024), "float32"))
    with pytest.raises(UserError, match=r"1024 numbers \(Stable Diffusion 2.x\).*have 768"):
        check_width(path, read_embedding(path), 768)
