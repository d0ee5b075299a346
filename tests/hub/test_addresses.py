"""Addresses, and which files of a repository are read, by their names alone."""

import pytest

from latentddpm.errors import UserError
from latentddpm.hub.address import Address, address_of, is_address, parse_address, shown
from latentddpm.hub.choice import choose_files
from latentddpm.hub.dataset import choose_data

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hf://me/ldm", Address("me", "ldm")),
        ("hf://me/ldm@v1.2", Address("me", "ldm", "v1.2")),
        ("hf://me/ldm/style/lora.safetensors", Address("me", "ldm", "", "style/lora.safetensors")),
        ("hf://me/l.d-m_1@main/vae", Address("me", "l.d-m_1", "main", "vae")),
        ("hf://me/ldm@refs/pr/3/vae", Address("me", "ldm", "refs/pr/3", "vae")),
        ("hf://datasets/me/set/test", Address("me", "set", "", "test", "dataset")),
        (
            "hf://datasets/me/set@refs/convert/parquet",
            Address("me", "set", "refs/convert/parquet", "", "dataset"),
        ),
        ("hf:/me/ldm@v1", Address("me", "ldm", "v1")),  # as a `Path` has it
    ],
)
def test_an_address_is_read_and_written(text, expected):
    found = parse_address(text)
    assert found == expected, f"{text}: expected {expected}, got {found}"
    assert parse_address(str(found)) == found, f"{found} does not come back"


@pytest.mark.parametrize(
    "text",
    [
        *("hf://ldm", "hf://", "hf://me/", "hf:///ldm", "hf://me/ldm@", "hf://me/../other"),
        *("hf://me/ldm/../../x", "hf://datasets/set", "hf://me/l dm", "hf://me/ldm@a@b"),
    ],
)
def test_what_is_no_address_is_refused(text):
    assert is_address(text), f"{text} begins as an address"
    with pytest.raises(UserError, match=r"expected hf://owner/name\[@revision\]"):
        parse_address(text)


def test_other_places_are_no_addresses():
    for place in ("runs/ldm", "gs://bucket/x", "hf", "hf/x", "emoji-128", "./hf:x"):
        assert not is_address(place), f"{place} is no address"


def test_a_copy_knows_its_address():
    path = f"/home/x/hub/models--me--ldm/snapshots/{COMMIT}/control"
    assert address_of(path) == f"hf://me/ldm@{COMMIT}/control", "expected its address"
    assert shown(path) == "hf://me/ldm@0123456/control", "expected a short commit in messages"
    data = f"hub/datasets--me--set/snapshots/{COMMIT}"
    assert address_of(data) == f"hf://datasets/me/set@{COMMIT}", "expected a data set"
    assert address_of("/runs/ldm/model") is None, "no copy"
    assert shown("runs/ldm") == "runs/ldm", "expected the path itself"


# --- Models --------------------------------------------------------------------------------

MODEL = [
    *("pipeline.json", "vae.keras", "unet.keras", "lcm.safetensors", "graphs/unet.onnx"),
    *("tokenizer/vocab.json", "tokenizer/merges.txt"),
]
JUNK = ["README.md", "samples.png", "train.py", "unet.bin", "optimizer.pt", ".gitattributes"]
DIFFUSERS = [
    *("model_index.json", "vae/config.json", "unet/config.json", "scheduler/config.json"),
    *("vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"),
    "text_encoder/config.json",
    "tokenizer/merges.txt",
    *(f"unet/diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)),
    "unet/diffusion_pytorch_model.safetensors.index.json",
]
NOT_READ = [
    *("v1-5-pruned.ckpt", "v1-5-pruned.safetensors", "safety_checker/model.safetensors"),
    *("unet/diffusion_pytorch_model.fp16.safetensors", "vae/diffusion_pytorch_model.bin"),
    "text_encoder/pytorch_model.bin",
]


@pytest.mark.parametrize("below", ["", "model/"])
def test_of_a_model_folder_its_parts_are_read(below):
    names = [below + name for name in MODEL]
    found = choose_files([*names, *JUNK], "", "hf://me/x")
    assert sorted(found) == sorted(names), f"expected the parts of a model, got {found}"


def test_of_a_control_net_its_folder_is_read():
    names = ["control/control.json", "control/control.keras"]
    assert choose_files([*names, *JUNK], "", "x") == names, "expected the ControlNet"


def test_of_diffusers_the_plain_weights_are_read():
    found = choose_files([*DIFFUSERS, *NOT_READ, *JUNK], "", "hf://me/sd")
    assert sorted(found) == sorted(DIFFUSERS), f"expected one variant, got {sorted(found)}"
    found = choose_files([*DIFFUSERS, *NOT_READ], "", "hf://me/sd", "fp16")
    half = "unet/diffusion_pytorch_model.fp16.safetensors"
    assert half in found, f"expected the variant that was asked for in {found}"
    assert "unet/diffusion_pytorch_model-00001-of-00002.safetensors" not in found, "expected one"
    assert "vae/diffusion_pytorch_model.safetensors" in found, "expected the plain one elsewhere"
    found = choose_files([*DIFFUSERS, *NOT_READ], "vae", "hf://me/sd")
    expected = ["vae/config.json", "vae/diffusion_pytorch_model.safetensors"]
    assert sorted(found) == expected, f"expected that folder alone, got {found}"


def test_a_single_file_of_weights_is_the_repository():
    assert choose_files(["pixel.safetensors", *JUNK], "", "x") == ["pixel.safetensors"]
    lora = ["adapter_config.json", "adapter_model.safetensors", "README.md"]
    assert choose_files(lora, "", "x") == ["adapter_model.safetensors", "adapter_config.json"]
    with pytest.raises(UserError, match="holds several files of weights"):
        choose_files(["a.safetensors", "b.safetensors"], "", "hf://me/x")


@pytest.mark.parametrize(
    ("names", "path", "words"),
    [
        (["v1.ckpt"], "", "v1.ckpt is a pickle, which can run code and is never fetched"),
        (["v1.ckpt"], "v1.ckpt", "v1.ckpt is a pickle, which can run code and is never fetched"),
        (["modeling.py", "README.md"], "", "modeling.py is code and is never fetched"),
        (["modeling.py"], "modeling.py", "modeling.py is code, which is never fetched"),
        (
            ["model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.bin"],
            "",
            "unet/diffusion_pytorch_model.bin is a pickle",
        ),
        (["config.json", "pytorch_model.bin"], "", "pytorch_model.bin is a pickle"),
        (["x.gguf", "README.md"], "", r"nothing in it that is read .it holds README.md, x.gguf."),
        (["x.gguf"], "x.gguf", "x.gguf is not read; expected a file .safetensors"),
        (MODEL, "unit.keras", r"no 'unit.keras' in it .did you mean 'unet.keras'"),
    ],
)
def test_what_is_not_read_is_refused_by_name(names, path, words):
    with pytest.raises(UserError, match=words):
        choose_files(names, path, "hf://me/x")


# --- Data sets -----------------------------------------------------------------------------

SHARDED = [
    *(f"data/train-0000{i}-of-00002.parquet" for i in (0, 1)),
    *("data/test-00000-of-00001.parquet", "data/held_out-00000-of-00001.parquet"),
]
TRAIN = SHARDED[:2]


@pytest.mark.parametrize(
    ("names", "path", "expected"),
    [
        (SHARDED, "", TRAIN),
        (SHARDED, "train", TRAIN),
        (SHARDED, "test", SHARDED[2:3]),
        (SHARDED, "held_out", SHARDED[3:]),
        (SHARDED, "data", SHARDED),
        (SHARDED, SHARDED[3], SHARDED[3:]),
        (["default/train/0000.parquet", "default/test/0000.parquet"], "", None),
        (["en/train/0.parquet", "de/train/0.parquet"], "en", ["en/train/0.parquet"]),
        (["en/train/0.parquet", "en/test/0.parquet"], "en/test", ["en/test/0.parquet"]),
        (["00000.tar", "00001.tar", "00000.parquet"], "", ["00000.tar", "00001.tar"]),
        (["a.parquet", "b.parquet"], "", ["a.parquet", "b.parquet"]),
    ],
)
def test_the_shards_of_a_split_are_read(names, path, expected):
    found = choose_data([*names, "README.md", "set.py", ".gitattributes"], path, "x")
    expected = [names[0]] if expected is None else sorted(expected)
    assert found == expected, f"{path!r}: expected {expected}, got {found}"


def test_pictures_are_read_with_their_tables():
    names = ["train/a.png", "train/b.jpg", "train/metadata.csv", "test/c.png", "a.txt"]
    found = choose_data([*names, "README.md"], "", "x")
    assert found == ["a.txt", "train/a.png", "train/b.jpg", "train/metadata.csv"], f"got {found}"


def test_the_name_of_a_picture_is_a_caption_and_tells_no_split():
    names = ["red apple.png", "bullet train.png", "dog.png", "metadata.jsonl"]
    assert choose_data(names, "", "x") == sorted(names)
    table = ["a.png", "b.png", "metadata.parquet"]
    assert choose_data(table, "", "x") == ["a.png", "b.png"], "a table beside pictures is no shard"


@pytest.mark.parametrize(
    ("names", "path", "words"),
    [
        (SHARDED, "tset", r"no split or folder 'tset' .did you mean 'test'"),
        (["en/train/0.parquet", "de/train/0.parquet"], "", r"several subsets .de, en."),
        (["set.py", "README.md"], "", r"set.py, a script .* never run; try @refs/convert/parquet"),
        (["README.md"], "", r"no shards and no pictures in it .it holds README.md."),
        (["set.py", "a.parquet"], "set.py", "set.py is code, which is never fetched"),
        (["a.pkl", "a.parquet"], "a.pkl", "a.pkl is a pickle, which can run code"),
        (["a.csv", "a.parquet"], "a.csv", "a.csv is no shard and no picture"),
    ],
)
def test_what_is_no_data_is_said(names, path, words):
    with pytest.raises(UserError, match=words):
        choose_data(names, path, "hf://datasets/me/x")
