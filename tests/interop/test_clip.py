"""CLIP from and to Hugging Face folders: exact round trips, other layouts, hostile files."""

import json
import unicodedata
from pathlib import Path

import keras
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from latentddpm.clip.text_encoder import TextEncoder, build_text_encoder
from latentddpm.clip.tokenizer import CLIPTokenizer, PromptTooLong
from latentddpm.clip.vocabulary import byte_tokens
from latentddpm.errors import UserError
from latentddpm.interop.clip import load_clip_folder, read_text_encoder, write_text_encoder
from latentddpm.models.archive import weights_digest

GOLDEN = Path(__file__).parents[1] / "golden"
SIZES = {
    "hidden_dim": 16,
    "num_layers": 2,
    "num_heads": 4,
    "intermediate_dim": 24,
    "context_length": 8,
    "vocabulary_size": 514,
}


@pytest.fixture(scope="module")
def tokenizer():
    """A vocabulary of bytes: it keeps the embedding of the tiny encoders small."""
    tokens = [*byte_tokens(), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(8, vocabulary={t: n for n, t in enumerate(tokens)}, merges=())


@pytest.fixture(scope="module")
def token_ids(tokenizer):
    return tokenizer(["a cat", "", "2 dog!"])


def call(encoder, token_ids):
    return keras.ops.convert_to_numpy(encoder({"token_ids": token_ids}))


def clip_weights(seed=0, dtype="float32"):
    """Random tensors under the names of `transformers.CLIPTextModel`."""
    rng = np.random.default_rng(seed)
    width, inner = SIZES["hidden_dim"], SIZES["intermediate_dim"]
    weights = {
        "embeddings.token_embedding.weight": rng.normal(size=(514, width)),
        "embeddings.position_embedding.weight": rng.normal(size=(8, width)),
    }
    shapes = {"mlp.fc1": (inner, width), "mlp.fc2": (width, inner)}
    shapes |= {f"self_attn.{n}_proj": (width, width) for n in ("q", "k", "v", "out")}
    for i in range(SIZES["num_layers"]):
        for part, shape in shapes.items():
            name = f"encoder.layers.{i}.{part}"
            weights[f"{name}.weight"] = rng.normal(size=shape) / np.sqrt(shape[1])
            weights[f"{name}.bias"] = rng.normal(size=shape[:1])
    norms = [
        f"encoder.layers.{i}.layer_norm{k}" for i in range(SIZES["num_layers"]) for k in (1, 2)
    ]
    for name in [*norms, "final_layer_norm"]:
        weights[f"{name}.weight"] = 1 + rng.normal(size=width) / 4
        weights[f"{name}.bias"] = rng.normal(size=width)
    return {f"text_model.{name}": value.astype(dtype) for name, value in weights.items()}


def clip_config(**changes):
    return {
        "model_type": "clip_text_model",
        "hidden_size": SIZES["hidden_dim"],
        "num_hidden_layers": SIZES["num_layers"],
        "num_attention_heads": SIZES["num_heads"],
        "intermediate_size": SIZES["intermediate_dim"],
        "max_position_embeddings": SIZES["context_length"],
        "vocab_size": SIZES["vocabulary_size"],
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
    } | changes


@pytest.fixture
def write_folder(tokenizer):
    def write(folder, config=None, weights=None, tokenizer_folder="."):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(config or clip_config()))
        save_file(clip_weights() if weights is None else weights, folder / "model.safetensors")
        tokenizer.save(folder / tokenizer_folder)
        return folder

    return write


def numpy_clip(weights, token_ids, num_layers, num_heads, activation):
    """CLIP's text transformer in float64, written from its definition."""
    weights = {k.removeprefix("text_model."): v.astype("float64") for k, v in weights.items()}

    def dense(name, x):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(name, x):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt(np.square(x).mean(-1, keepdims=True) + 1e-5)
        return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def heads(x):  # (B, L, d) -> (B, heads, L, d / heads)
        return x.reshape(*x.shape[:2], num_heads, -1).transpose(0, 2, 1, 3)

    length = token_ids.shape[1]
    future = np.triu(np.full((length, length), -np.inf), 1)
    x = weights["embeddings.token_embedding.weight"][token_ids]
    x = x + weights["embeddings.position_embedding.weight"][:length]
    for i in range(num_layers):
        block = f"encoder.layers.{i}"
        hidden = norm(f"{block}.layer_norm1", x)
        q, k, v = (heads(dense(f"{block}.self_attn.{n}_proj", hidden)) for n in "qkv")
        scores = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1]) + future
        probabilities = np.exp(scores - scores.max(-1, keepdims=True))
        probabilities /= probabilities.sum(-1, keepdims=True)
        mixed = (probabilities @ v).transpose(0, 2, 1, 3).reshape(x.shape)
        x = x + dense(f"{block}.self_attn.out_proj", mixed)
        hidden = dense(f"{block}.mlp.fc1", norm(f"{block}.layer_norm2", x))
        x = x + dense(f"{block}.mlp.fc2", activation(hidden))
    return norm("final_layer_norm", x)


def quick_gelu(x):
    return x / (1 + np.exp(-1.702 * x))


def gelu(x):
    from math import erf

    return x * (1 + np.vectorize(erf)(x / np.sqrt(2))) / 2


# --- Import --------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", [quick_gelu, gelu])
def test_folder_matches_numpy(tmp_path, token_ids, write_folder, activation):
    folder = write_folder(tmp_path, clip_config(hidden_act=activation.__name__))
    encoder, tokenizer = load_clip_folder(folder)
    assert tokenizer.context_length == encoder.context_length == 8, "lengths agree"
    expected = numpy_clip(clip_weights(), token_ids, 2, 4, activation)
    np.testing.assert_allclose(call(encoder, token_ids), expected, rtol=0, atol=1e-5)


def test_folder_layouts(tmp_path, token_ids, write_folder):
    """A whole CLIP, the two folders of diffusers, names without prefix, buffers, float16."""
    weights = clip_weights(dtype="float16")
    bare = {name.removeprefix("text_model."): value for name, value in weights.items()}
    others = {
        "vision_model.post_layernorm.weight": np.ones(3, "float32"),
        "text_model.embeddings.position_ids": np.arange(8)[None],
    }
    whole = {"model_type": "clip", "text_config": clip_config()}
    write_folder(tmp_path / "clip", whole, weights | others, "tokenizer")
    write_folder(tmp_path / "sd" / "text_encoder", None, bare, "../tokenizer")
    expected = numpy_clip(weights, token_ids, 2, 4, quick_gelu)
    for folder in ("clip", "sd", "sd/text_encoder"):
        encoder, _ = load_clip_folder(tmp_path / folder)
        np.testing.assert_allclose(
            call(encoder, token_ids), expected, rtol=0, atol=1e-5, err_msg=folder
        )


def test_shards_and_fewer_layers(tmp_path, token_ids, write_folder):
    folder = write_folder(tmp_path, clip_config(num_hidden_layers=1))
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    files = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    names = {name: files[number % 2] for number, name in enumerate(weights)}
    for file in files:
        save_file({name: weights[name] for name in names if names[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    encoder, _ = load_clip_folder(folder)
    expected = numpy_clip(weights, token_ids, 1, 4, quick_gelu)
    np.testing.assert_allclose(call(encoder, token_ids), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "relu"}, "hidden_act: 'relu' is not known"),
        ({"hidden_act": ["gelu"]}, r"hidden_act: \['gelu'\] is not known"),
        ({"layer_norm_eps": 1e-6}, "layer_norm_eps: 1e-06"),
        ({"model_type": "bert"}, "model_type: 'bert'"),
        ({"hidden_size": 10**9}, r"config.json makes it \(514, 1000000000\)"),
        ({"num_hidden_layers": 10**9}, r"no tensor 'text_model.encoder.layers.2"),
        ({"num_attention_heads": 5}, "not divisible by num_heads 5"),
        ({"vocab_size": 100}, "vocabulary_size is 514 in the tokenizer but 100"),
        ({"max_position_embeddings": 4}, "context_length is 8 in the tokenizer but 4"),
        ({"text_config": []}, "text_config: expected an object"),
        ({"vocab_size": None}, "vocabulary_size: expected a positive whole number"),
    ],
)
def test_bad_configs_are_refused(tmp_path, write_folder, changes, message):
    with pytest.raises(UserError, match=message) as caught:
        load_clip_folder(write_folder(tmp_path, clip_config(**changes)))
    assert "config.json" in str(caught.value), "the file is named"
    assert "\n" not in str(caught.value), "an error is one line"


def test_bad_weights_are_refused(tmp_path, write_folder):
    name = "text_model.final_layer_norm.bias"
    weights = clip_weights()
    for change, message in (
        ({name: np.zeros(7, "float32")}, r"is \(7,\), .*config.json makes it \(16,\)"),
        ({name: np.zeros(16, "int8")}, "is I8, 8-bit integers"),
    ):
        write_folder(tmp_path, weights=weights | change)
        with pytest.raises(UserError, match=message):
            load_clip_folder(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="not a valid safetensors file"):
        load_clip_folder(tmp_path)
    path.rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="a pickle can run code and is never opened; convert it"):
        load_clip_folder(tmp_path)
    (tmp_path / "pytorch_model.bin").unlink()
    with pytest.raises(UserError, match="not found"):
        load_clip_folder(tmp_path)
    for file in ("tokenizer_config.json", "vocab.json"):
        (tmp_path / file).unlink()
    with pytest.raises(UserError, match="no tokenizer files"):
        load_clip_folder(tmp_path)
    with pytest.raises(UserError, match="not found; expected a Hugging Face CLIP folder"):
        load_clip_folder(tmp_path / "nowhere")
    with pytest.raises(UserError, match="not found; expected a Hugging Face CLIP folder"):
        read_text_encoder(tmp_path / "nowhere", tmp_path)


# --- Export --------------------------------------------------------------------------------


def test_import_export_import_is_exact(tmp_path, token_ids, write_folder):
    encoder, tokenizer = load_clip_folder(write_folder(tmp_path / "in"))
    folders = (tmp_path / "out" / "text_encoder", tmp_path / "out" / "tokenizer")
    write_text_encoder(encoder, tokenizer, *folders)
    again, same = read_text_encoder(*folders)
    assert weights_digest(again) == weights_digest(encoder), "every bit of the weights survives"
    assert again.get_config() == encoder.get_config() | {"name": again.name}, "and the sizes"
    np.testing.assert_array_equal(same(["a cat", ""]), tokenizer(["a cat", ""]))
    written = load_file(folders[0] / "model.safetensors")
    for name, value in clip_weights().items():
        np.testing.assert_array_equal(written[name], value, f"{name} is not what was read")
    assert written.keys() == clip_weights().keys(), "the names are those of transformers"
    with safe_open(folders[0] / "model.safetensors", "numpy") as file:
        assert file.metadata() == {"format": "pt"}, "older transformers refuse it without"


def test_config_of_an_encoder_trained_here(tmp_path):
    encoder = build_text_encoder(hidden_dim=8, num_layers=1, num_heads=2, context_length=16)
    folders = (tmp_path / "text_encoder", tmp_path / "tokenizer")
    write_text_encoder(encoder, CLIPTokenizer(16), *folders)
    config = json.loads((folders[0] / "config.json").read_text())
    expected = {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "bos_token_id": 49406,
        "eos_token_id": 49407,
        "pad_token_id": 49407,
        "hidden_act": "quick_gelu",
        "hidden_size": 8,
        "intermediate_size": 32,
        "projection_dim": 8,
        "max_position_embeddings": 16,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "vocab_size": 49_408,
        "torch_dtype": "float32",
        "layer_norm_eps": 1e-5,
    }
    wrong = {k: config.get(k) for k, v in expected.items() if config.get(k) != v}
    assert not wrong, f"config.json has {wrong}, expected { ({k: expected[k] for k in wrong}) }"
    names = {path.name for path in folders[1].iterdir()}
    assert names == {
        "vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"
    }, f"the files of a CLIPTokenizer are expected, not {names}"  # fmt: skip
    special = json.loads((folders[1] / "special_tokens_map.json").read_text())
    assert special["pad_token"] == "<|endoftext|>", "padded with the end token, as SD 1.x"
    again, tokenizer = read_text_encoder(*folders)
    assert again.context_length == tokenizer.context_length == 16, "the length survives"
    assert weights_digest(again) == weights_digest(encoder), "and the weights"


def test_a_tokenizer_that_does_not_fit_is_not_written(tmp_path, tokenizer):
    encoder = TextEncoder(**SIZES | {"context_length": 7})
    with pytest.raises(UserError, match="context_length is 8 in the tokenizer but 7"):
        write_text_encoder(encoder, tokenizer, tmp_path / "t", tmp_path / "k")
    assert not any(tmp_path.iterdir()), "nothing is written on an error"


# --- What transformers answered, frozen ----------------------------------------------------


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_golden_outputs_of_transformers(activation):
    folder = GOLDEN / f"clip_{activation}"
    encoder, tokenizer = read_text_encoder(folder / "text_encoder", folder / "tokenizer")
    golden = load_file(folder / "outputs.safetensors")
    texts = json.loads((folder / "prompts.json").read_text("utf-8"))
    with pytest.warns(
        PromptTooLong, match="prompt too long"
    ):  # the cut is part of what is compared
        token_ids = tokenizer(texts)
    np.testing.assert_array_equal(token_ids, golden["token_ids"], "transformers has other ids")
    np.testing.assert_allclose(
        call(encoder, golden["token_ids"]), golden["last_hidden_state"], rtol=0, atol=1e-5
    )


def test_golden_tokens_of_transformers():
    golden = json.loads((GOLDEN / "clip_tokens.json").read_text("utf-8"))
    assert len(golden) > 200, "a large set of prompts"
    ours = CLIPTokenizer()
    for text, ids in golden.items():
        assert ours.encode(text) == ids, f"{text!r}: transformers has {ids}"


# --- transformers itself -------------------------------------------------------------------


@pytest.fixture
def transformers():
    pytest.importorskip("torch")
    return pytest.importorskip("transformers")


def reference_model(transformers, **changes):
    import torch

    torch.manual_seed(0)
    ids = {"bos_token_id": 512, "eos_token_id": 513, "pad_token_id": 513}
    config = transformers.CLIPTextConfig(**clip_config(initializer_factor=8.0, **ids) | changes)
    return transformers.CLIPTextModel(config).eval()


def reference_states(model, token_ids):
    import torch

    with torch.no_grad():
        return model(torch.from_numpy(token_ids).long()).last_hidden_state.numpy()


@pytest.mark.reference
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"hidden_act": "gelu"},
        {"intermediate_size": 64, "num_attention_heads": 1},
        {"num_hidden_layers": 5, "hidden_size": 32, "num_attention_heads": 8},
    ],
)
@pytest.mark.parametrize("save", [{}, {"max_shard_size": "20KB"}])
def test_imports_what_transformers_writes(
    tmp_path, token_ids, tokenizer, transformers, changes, save
):
    reference = reference_model(transformers, **changes)
    reference.save_pretrained(tmp_path, **save)
    assert (tmp_path / "model.safetensors").exists() is not bool(save), "expected shards"
    tokenizer.save(tmp_path)
    encoder, _ = load_clip_folder(tmp_path)
    np.testing.assert_allclose(
        call(encoder, token_ids), reference_states(reference, token_ids), rtol=0, atol=1e-4
    )


@pytest.mark.reference
@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_imports_half_precision_of_transformers(
    tmp_path, token_ids, tokenizer, transformers, kind
):
    import torch

    reference = reference_model(transformers).to(getattr(torch, kind))
    reference.save_pretrained(tmp_path)
    tokenizer.save(tmp_path)
    encoder, _ = load_clip_folder(tmp_path)
    expected = reference_states(reference.float(), token_ids)
    np.testing.assert_allclose(call(encoder, token_ids), expected, rtol=0, atol=1e-4)


@pytest.mark.reference
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_transformers_opens_what_is_written(tmp_path, transformers, activation):
    keras.utils.set_random_seed(0)
    sizes = SIZES | {"context_length": 16, "vocabulary_size": 49_408}
    encoder, ours = TextEncoder(**sizes, activation=activation), CLIPTokenizer(16)
    for variable in encoder.weights:
        variable.assign(variable + keras.random.normal(variable.shape, stddev=0.3, seed=1))
    write_text_encoder(encoder, ours, tmp_path / "text_encoder", tmp_path / "tokenizer")
    theirs = transformers.CLIPTokenizer.from_pretrained(
        tmp_path / "tokenizer", local_files_only=True
    )
    model, report = transformers.CLIPTextModel.from_pretrained(
        tmp_path / "text_encoder", local_files_only=True, output_loading_info=True
    )
    assert not any(report.values()), f"transformers misses or does not know: {report}"
    assert theirs.model_max_length == 16, "the tokenizer keeps the encoder's length"
    assert model.config.eos_token_id == theirs.eos_token_id == 49407, "pools at the end token"
    texts = ["a photo of a cat", "", "words " * 30]
    with pytest.warns(PromptTooLong):
        token_ids = ours(texts)
    expected = theirs(texts, padding="max_length", truncation=True, return_tensors="np")
    np.testing.assert_array_equal(token_ids, expected["input_ids"], "other ids")
    np.testing.assert_allclose(
        call(encoder, token_ids), reference_states(model, token_ids), rtol=0, atol=1e-4
    )


@pytest.mark.reference
def test_tokenizer_matches_transformers(tmp_path, transformers):
    ours = CLIPTokenizer()
    ours.save(tmp_path, standalone=True)
    theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path, local_files_only=True)
    every = [chr(n) for n in range(0x20, 0x1_0000, 7) if unicodedata.category(chr(n))[0] != "C"]
    texts = [*json.loads((GOLDEN / "clip_tokens.json").read_text("utf-8"))]
    texts += [f"a{c}b {c}1{c}" for c in every]
    for text, ids in zip(texts, theirs(texts)["input_ids"], strict=True):
        assert ours.encode(text) == ids[1:-1], f"{text!r}: transformers has {ids[1:-1]}"
    theirs.save_pretrained(tmp_path / "theirs")
    loaded = CLIPTokenizer.load(tmp_path / "theirs")
    assert loaded.vocabulary == ours.vocabulary, "we read their files otherwise"
    assert loaded.merges == ours.merges, "we read their files otherwise"


@pytest.mark.reference
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("ΟΔΟΣ", "str.lower knows the final sigma"),
        ("&amp;", "HTML is unescaped"),
        ("a\x00b\ufeff", "control characters are left out"),
        ("<|ENDOFTEXT|>", "special tokens are found after lowercasing"),
    ],
)
def test_where_the_tokenizer_follows_openai_instead(tmp_path, transformers, text, reason):
    CLIPTokenizer().save(tmp_path, standalone=True)
    theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path, local_files_only=True)
    assert CLIPTokenizer().encode(text) != theirs(text)["input_ids"][1:-1], (
        f"transformers changed: as OpenAI's, {reason}; move this text to the golden prompts"
    )
