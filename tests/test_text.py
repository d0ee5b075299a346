"""CLIP's text transformer: shapes, causality, archives, Hugging Face folders, presets."""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest
from safetensors.numpy import save_file

from latentddpm.errors import UserError
from latentddpm.models.clip_folder import load_clip_folder
from latentddpm.models.text import TextEncoder, build_text_encoder, load_preset
from latentddpm.models.tokenizer import ClipTokenizer

SIZES = {
    "hidden_dim": 16,
    "num_layers": 2,
    "num_heads": 4,
    "intermediate_dim": 24,
    "context_length": 8,
    "vocabulary_size": 49_408,
}


@pytest.fixture(scope="module")
def encoder():
    keras.utils.set_random_seed(0)
    return build_text_encoder(**SIZES)


@pytest.fixture(scope="module")
def token_ids():
    return ClipTokenizer(8)(["a cat", "", "two dogs!"])


def call(encoder, token_ids):
    return keras.ops.convert_to_numpy(encoder({"token_ids": token_ids}))


def clip_weights(seed=0, dtype="float32"):
    """Random tensors under the names of `transformers.CLIPTextModel`."""
    rng = np.random.default_rng(seed)
    width, inner = SIZES["hidden_dim"], SIZES["intermediate_dim"]
    weights = {
        "embeddings.token_embedding.weight": rng.normal(size=(49_408, width)),
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


def write_folder(folder, config=None, weights=None, tokenizer="."):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config or clip_config()))
    save_file(clip_weights() if weights is None else weights, folder / "model.safetensors")
    ClipTokenizer(8).save(folder / tokenizer)
    return folder


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


def test_shapes_and_attributes(encoder, token_ids):
    context = call(encoder, token_ids)
    assert context.shape == (3, 8, 16), "one state of width 16 for each of 8 positions"
    assert context.dtype == np.float32, "float32 by default"
    assert call(encoder, token_ids[:, :5]).shape == (3, 5, 16), "fewer positions are allowed"
    assert (encoder.context_length, encoder.hidden_dim) == (8, 16), "the sizes are attributes"
    assert build_text_encoder(hidden_dim=8, num_layers=1, num_heads=1).context_length == 77, (
        "CLIP's context length is the default"
    )
    assert encoder.get_layer("layer_norm").epsilon == 1e-5, "CLIP's epsilon, not KerasHub's"


def test_causality(encoder, token_ids):
    changed = token_ids.copy()
    changed[:, 4:] = 1000
    before, after = call(encoder, token_ids), call(encoder, changed)
    np.testing.assert_array_equal(before[:, :4], after[:, :4], "later tokens changed the past")
    assert np.abs(before[:, 4:] - after[:, 4:]).min(axis=(0, 2)).max() > 0, "and not themselves"


def test_same_in_training_mode(encoder, token_ids):
    trained = encoder({"token_ids": token_ids}, training=True)
    np.testing.assert_array_equal(trained, call(encoder, token_ids), "there is no dropout")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 3}, "hidden_dim 16 is not divisible by num_heads 3"),
        ({"hidden_dim": None, "intermediate_dim": None}, "hidden_dim: expected a positive"),
        ({"num_layers": 0}, "num_layers: expected a positive whole number, got 0"),
        ({"activation": "quick-gelu"}, "did you mean 'quick_gelu'"),
    ],
)
def test_bad_sizes(changes, message):
    with pytest.raises(UserError, match=message):
        TextEncoder(**SIZES | changes)


def test_config_is_complete():
    arguments = SIZES | {"activation": "gelu", "dtype": "mixed_bfloat16", "name": "text"}
    first = TextEncoder(**arguments)
    first.trainable = False
    second = TextEncoder.from_config(first.get_config())
    assert second.get_config() == first.get_config(), "a config must rebuild its model"
    assert second.compute_dtype == "bfloat16", "the dtype policy is part of the config"
    assert first.get_layer("encoder_block_0").compute_dtype == "bfloat16", "for layers too"


def test_archive_loads_in_a_fresh_process(encoder, token_ids, tmp_path):
    encoder.save(tmp_path / "text_encoder.keras")
    np.save(tmp_path / "token_ids.npy", token_ids)
    program = """if True:
        import sys, numpy, keras
        import latentddpm.models.text
        assert "keras_hub" not in sys.modules, "importing the module must not import keras_hub"
        folder = sys.argv[1]
        encoder = keras.models.load_model(folder + "/text_encoder.keras", safe_mode=True)
        assert type(encoder) is latentddpm.models.text.TextEncoder, type(encoder)
        assert encoder.get_layer("layer_norm").epsilon == 1e-5
        token_ids = numpy.load(folder + "/token_ids.npy")
        numpy.save(folder + "/out.npy", encoder({"token_ids": token_ids}))
    """
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, f"the archive must load with safe_mode:\n{done.stderr}"
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), call(encoder, token_ids))


@pytest.mark.parametrize("activation", [quick_gelu, gelu])
def test_folder_matches_numpy(tmp_path, token_ids, activation):
    folder = write_folder(tmp_path, clip_config(hidden_act=activation.__name__))
    encoder, tokenizer = load_clip_folder(folder)
    assert tokenizer.context_length == encoder.context_length == 8, "lengths agree"
    expected = numpy_clip(clip_weights(), token_ids, 2, 4, activation)
    np.testing.assert_allclose(call(encoder, token_ids), expected, rtol=0, atol=1e-5)


def test_folder_layouts(tmp_path, token_ids):
    weights = clip_weights(dtype="float16")
    bare = {name.removeprefix("text_model."): value for name, value in weights.items()}
    vision = {"vision_model.post_layernorm.weight": np.ones(3, "float32")}
    whole = {"model_type": "clip", "text_config": clip_config()}
    write_folder(tmp_path / "clip", whole, weights | vision, tokenizer="tokenizer")
    write_folder(tmp_path / "sd" / "text_encoder", None, bare, tokenizer="../tokenizer")
    expected = numpy_clip(weights, token_ids, 2, 4, quick_gelu)
    for folder in ("clip", "sd", "sd/text_encoder"):
        encoder, _ = load_clip_folder(tmp_path / folder)
        np.testing.assert_allclose(
            call(encoder, token_ids), expected, rtol=0, atol=1e-5, err_msg=folder
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "relu"}, "hidden_act: 'relu' is not known"),
        ({"layer_norm_eps": 1e-6}, "layer_norm_eps: 1e-06"),
        ({"model_type": "bert"}, "model_type: 'bert'"),
        ({"hidden_size": 10**9}, r"config.json makes it \(49408, 1000000000\)"),
        ({"num_hidden_layers": 10**9}, r"no tensor 'text_model.encoder.layers.2"),
        ({"num_attention_heads": 5}, "not divisible by num_heads 5"),
        ({"vocab_size": 1000}, "vocabulary_size is 49408 in the tokenizer but 1000"),
        ({"max_position_embeddings": 4}, "context_length is 8 in the tokenizer but 4"),
        ({"text_config": []}, "text_config: expected an object"),
    ],
)
def test_bad_configs_are_refused(tmp_path, changes, message):
    with pytest.raises(UserError, match=message) as caught:
        load_clip_folder(write_folder(tmp_path, clip_config(**changes)))
    assert "config.json" in str(caught.value), "the file is named"
    assert "\n" not in str(caught.value), "an error is one line"


def test_bad_weights_are_refused(tmp_path):
    name = "text_model.final_layer_norm.bias"
    weights = clip_weights()
    for change, message in (
        ({name: np.zeros(7, "float32")}, r"is \(7,\), config.json makes it \(16,\)"),
        ({name: np.zeros(16, "int8")}, "'I8' is not known"),
    ):
        write_folder(tmp_path, weights=weights | change)
        with pytest.raises(UserError, match=message):
            load_clip_folder(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="not a valid safetensors file"):
        load_clip_folder(tmp_path)
    path.rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="a pickle can run code and is not loaded"):
        load_clip_folder(tmp_path)
    (tmp_path / "pytorch_model.bin").unlink()
    with pytest.raises(UserError, match="not found"):
        load_clip_folder(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(UserError, match="no tokenizer files"):
        load_clip_folder(tmp_path)
    with pytest.raises(UserError, match="not found; expected a Hugging Face CLIP folder"):
        load_clip_folder(tmp_path / "nowhere")


def test_preset(tmp_path, token_ids):
    import keras_hub

    sizes = {k: SIZES[k] for k in ("hidden_dim", "num_layers", "num_heads", "intermediate_dim")}
    text = keras_hub.models.CLIPTextEncoder(
        vocabulary_size=49_408, embedding_dim=16, max_sequence_length=8, **sizes
    )
    vision = keras_hub.models.CLIPVisionEncoder(
        patch_size=16, hidden_dim=16, num_layers=1, num_heads=2, intermediate_dim=16,
        image_shape=(32, 32, 3),
    )  # fmt: skip
    clip = keras_hub.models.CLIPBackbone(vision, text, projection_dim=8)
    text.layer_norm.epsilon = 1e-5
    for source in (text, clip):
        source.save_to_preset(tmp_path / source.name)
        encoder, tokenizer = load_preset(str(tmp_path / source.name))
        assert tokenizer.context_length == 8, "the tokenizer has the encoder's length"
        np.testing.assert_allclose(
            call(encoder, token_ids), call(text, token_ids), rtol=0, atol=1e-6
        )


def test_preset_errors(tmp_path):
    with pytest.raises(UserError, match="did you mean 'clip_vit_large_patch14'"):
        load_preset("clip_vit_large_patch_14")
    with pytest.raises(UserError, match="could not be loaded") as caught:
        load_preset(str(tmp_path))
    assert "\n" not in str(caught.value), "an error is one line"


@pytest.mark.reference
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_matches_transformers(tmp_path, token_ids, monkeypatch, activation):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.CLIPTextConfig(**clip_config(hidden_act=activation))
    reference = transformers.CLIPTextModel(config).eval()
    reference.save_pretrained(tmp_path)
    ClipTokenizer(8).save(tmp_path)
    encoder, _ = load_clip_folder(tmp_path)
    with torch.no_grad():
        expected = reference(torch.from_numpy(token_ids)).last_hidden_state.numpy()
    np.testing.assert_allclose(call(encoder, token_ids), expected, rtol=0, atol=1e-5)


@pytest.mark.reference
def test_tokenizer_matches_transformers(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    transformers = pytest.importorskip("transformers")
    ours = ClipTokenizer()
    ours.save(tmp_path, standalone=True)
    theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path, local_files_only=True)
    texts = ["a photo of a cat", "Ελλάδα, x² 42 it's 👩‍👩‍👧 ❤️", "", "cafe\u0301  a_b"]
    expected = theirs(texts, padding="max_length", return_tensors="np")["input_ids"]
    np.testing.assert_array_equal(ours(texts), expected, "transformers reads our files otherwise")
    theirs.save_pretrained(tmp_path / "theirs")
    loaded = ClipTokenizer.load(tmp_path / "theirs")
    np.testing.assert_array_equal(loaded(texts), expected, "we read their files otherwise")
