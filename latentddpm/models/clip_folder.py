"""A local Hugging Face folder of CLIP → `TextEncoder` with its weights, and its tokenizer.

Hugging Face keeps PyTorch's names and layout: dense kernels are (out, in) there and (in, out)
in Keras. `_clip_variables` is the whole table of which tensor goes where.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError, safe_open

from latentddpm.errors import UserError, check_choice
from latentddpm.models.text import ACTIVATIONS, LAYER_NORM_EPSILON, TextEncoder, check_sizes
from latentddpm.models.tokenizer import ClipTokenizer
from latentddpm.models.vocabulary import read_json

Shape = tuple[int, ...]


def load_clip_folder(folder: str | Path) -> tuple[TextEncoder, ClipTokenizer]:
    """The text encoder and tokenizer of a local Hugging Face folder.

    Taken are a `CLIPTextModel` or a whole `CLIPModel` (`config.json`, `model.safetensors`) with
    the tokenizer files beside it or in `tokenizer/`; and a Stable Diffusion folder with
    `text_encoder/` and `tokenizer/`, or its `text_encoder/` itself. Weights are float32 or
    float16 and become float32. All shapes are checked before any memory is taken.

    Raises:
        UserError: a file is missing or not understood, or what it asks for is not supported
            (pickled weights, another activation or epsilon); the file is named.
    """
    folder = Path(folder)
    if (folder / "text_encoder").is_dir():
        folder = folder / "text_encoder"
    config_path = folder / "config.json"
    if not config_path.is_file():
        raise UserError(f"{config_path}: not found; expected a Hugging Face CLIP folder")
    sizes, activation = _read_clip_config(config_path)
    tokenizer = ClipTokenizer.load(
        _tokenizer_folder(folder), default_length=sizes["context_length"]
    )
    for name, asked in (
        ("context_length", tokenizer.context_length),
        ("vocabulary_size", tokenizer.vocabulary_size),
    ):
        if asked > sizes[name]:
            raise UserError(
                f"{folder}: {name} is {asked} in the tokenizer but {sizes[name]} in config.json"
            )
    path = _weights_file(folder)
    try:
        with safe_open(path, framework="numpy") as file:
            names = set(file.keys())
            prefix = "text_model." if "text_model.final_layer_norm.weight" in names else ""
            for name, shape, _ in _clip_variables(sizes):
                name = prefix + name
                if name not in names:
                    raise UserError(f"{path}: no tensor {name!r}; not the weights of config.json")
                tensor = file.get_slice(name)
                if tuple(tensor.get_shape()) != shape:
                    found = tuple(tensor.get_shape())
                    raise UserError(f"{path}: {name!r} is {found}, config.json makes it {shape}")
                check_choice(f"{path}: dtype of {name!r}", tensor.get_dtype(), ("F32", "F16"))
            encoder = TextEncoder(**sizes, activation=activation)
            for name, _, (layer, attribute) in _clip_variables(sizes):
                variable = operator.attrgetter(attribute)(encoder.get_layer(layer))
                value = file.get_tensor(prefix + name).astype("float32")
                if attribute.endswith("kernel"):
                    value = value.T  # PyTorch keeps (out, in), Keras (in, out)
                variable.assign(value.reshape(variable.shape))
    except SafetensorError as error:
        raise UserError(f"{path}: not a valid safetensors file ({error})") from None
    return encoder, tokenizer


def _read_clip_config(path: Path) -> tuple[dict[str, int], str]:
    """The sizes and the activation in a Hugging Face `config.json`."""
    config = read_json(path)
    check_choice(f"{path}: model_type", config.get("model_type"), ("clip", "clip_text_model"))
    config = config.get("text_config", config)
    if not isinstance(config, dict):
        raise UserError(f"{path}: text_config: expected an object, got {config!r:.40}")
    sizes = {  # what is left out has the default of `transformers.CLIPTextConfig`
        "hidden_dim": config.get("hidden_size", 512),
        "num_layers": config.get("num_hidden_layers", 12),
        "num_heads": config.get("num_attention_heads", 8),
        "intermediate_dim": config.get("intermediate_size", 2048),
        "context_length": config.get("max_position_embeddings", 77),
        "vocabulary_size": config.get("vocab_size", 49_408),
    }
    activation = config.get("hidden_act", "quick_gelu")
    check_choice(f"{path}: hidden_act", activation, ACTIVATIONS)
    epsilon = config.get("layer_norm_eps", LAYER_NORM_EPSILON)
    if epsilon != LAYER_NORM_EPSILON:
        raise UserError(f"{path}: layer_norm_eps: {epsilon!r}; only 1e-05 is supported")
    try:
        check_sizes(sizes)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return sizes, activation


def _tokenizer_folder(folder: Path) -> Path:
    candidates = (folder, folder / "tokenizer", folder.parent / "tokenizer")
    for candidate in candidates:
        if any((candidate / n).is_file() for n in ("tokenizer_config.json", "vocab.json")):
            return candidate
    places = ", ".join(map(str, candidates))
    raise UserError(f"{folder}: no tokenizer files (vocab.json, merges.txt) in any of {places}")


def _weights_file(folder: Path) -> Path:
    path = folder / "model.safetensors"
    if path.is_file():
        return path
    if pickles := sorted(folder.glob("*.bin")):
        raise UserError(
            f"{pickles[0]}: a pickle can run code and is not loaded; "
            f"save the model as {path.name} (save_pretrained of transformers does)"
        )
    raise UserError(f"{path}: not found")


def _clip_variables(sizes: dict[str, int]) -> Iterator[tuple[str, Shape, tuple[str, str]]]:
    """Hugging Face's name and shape of each tensor, and the layer and attribute it goes to."""
    width, inner = sizes["hidden_dim"], sizes["intermediate_dim"]
    tokens, positions = (sizes["vocabulary_size"], width), (sizes["context_length"], width)
    yield (
        "embeddings.token_embedding.weight",
        tokens,
        ("embedding", "token_embedding.embeddings"),
    )
    yield (
        "embeddings.position_embedding.weight",
        positions,
        ("embedding", "position_embedding.position_embeddings"),
    )
    for i in range(sizes["num_layers"]):
        block, ours = f"encoder.layers.{i}.", f"encoder_block_{i}"
        for part, attribute in (("layer_norm1", "layer_norm_1"), ("layer_norm2", "layer_norm_2")):
            yield f"{block}{part}.weight", (width,), (ours, f"{attribute}.gamma")
            yield f"{block}{part}.bias", (width,), (ours, f"{attribute}.beta")
        for part, shape, attribute in (
            ("self_attn.q_proj", (width, width), "attention.query_dense"),
            ("self_attn.k_proj", (width, width), "attention.key_dense"),
            ("self_attn.v_proj", (width, width), "attention.value_dense"),
            ("self_attn.out_proj", (width, width), "attention.output_dense"),
            ("mlp.fc1", (inner, width), "dense_1"),
            ("mlp.fc2", (width, inner), "dense_2"),
        ):
            yield f"{block}{part}.weight", shape, (ours, f"{attribute}.kernel")
            yield f"{block}{part}.bias", shape[:1], (ours, f"{attribute}.bias")
    yield "final_layer_norm.weight", (width,), ("layer_norm", "gamma")
    yield "final_layer_norm.bias", (width,), ("layer_norm", "beta")
