"""CLIP's text transformer: token ids to the context that conditions the UNet.

    token_ids (B, L) → token + position embeddings (B, L, d)
                     → num_layers × [x + attention(norm(x)); x + mlp(norm(x))], causal
                     → final norm → context (B, L, d)

Attention is causal and rows end in padding, so nothing is masked: position k sees positions
0..k, exactly as in the text encoder of Stable Diffusion.

The layers are KerasHub's `CLIPTextEncoder`, with CLIP's epsilon of 1e-5 in the final norm
(KerasHub has 1e-6). KerasHub takes seconds to import, so it is imported when the first encoder
is built.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
from safetensors import SafetensorError, safe_open

from latentddpm.errors import UserError, check_choice
from latentddpm.models.tokenizer import ClipTokenizer, read_json

ACTIVATIONS = ("quick_gelu", "gelu")  # CLIP and SD 1.x; OpenCLIP and SD 2.x (exact, by erf)
LAYER_NORM_EPSILON = 1e-5

Shape = tuple[int, ...]


@keras.saving.register_keras_serializable(package="latentddpm")
class TextEncoder(keras.Model):
    """CLIP's text transformer.

    Called with `{"token_ids": int32 (B, L)}`, L ≤ `context_length`; returns the final states,
    (B, L, hidden_dim), normalised.

    Args:
        hidden_dim: width d, divisible by `num_heads`.
        num_layers: transformer blocks.
        num_heads: attention heads of each block.
        intermediate_dim: hidden width of the feed-forward part; None for 4 × `hidden_dim`.
        activation: "quick_gelu" (CLIP) or "gelu" (OpenCLIP).
        context_length: number of positions.
        vocabulary_size: number of tokens.
        dtype: dtype or dtype policy of the layers.

    Raises:
        UserError: a size is not a positive whole number, the heads do not divide the width,
            or the activation is not known.

    Example:
        encoder = TextEncoder(hidden_dim=64, num_layers=2, num_heads=4, context_length=16)
        encoder({"token_ids": ClipTokenizer(16)("a cat")}).shape  # (1, 16, 64)
    """

    def __init__(
        self,
        *,
        hidden_dim: int,
        num_layers: int,
        num_heads: int,
        intermediate_dim: int | None = None,
        activation: str = "quick_gelu",
        context_length: int = 77,
        vocabulary_size: int = 49_408,
        dtype: Any = None,
        **kwargs: Any,
    ) -> None:
        sizes = {
            "hidden_dim": hidden_dim,
            "num_layers": num_layers,
            "num_heads": num_heads,
            "context_length": context_length,
            "vocabulary_size": vocabulary_size,
        }
        if intermediate_dim is not None:
            sizes["intermediate_dim"] = intermediate_dim
        _check_sizes(sizes)
        intermediate_dim = sizes.setdefault("intermediate_dim", 4 * hidden_dim)
        check_choice("activation", activation, ACTIVATIONS)
        from keras_hub.models import CLIPTextEncoder

        # === Layers ===
        backbone = CLIPTextEncoder(
            vocabulary_size=vocabulary_size,
            embedding_dim=hidden_dim,
            hidden_dim=hidden_dim,
            num_layers=num_layers,
            num_heads=num_heads,
            intermediate_dim=intermediate_dim,
            intermediate_activation=activation,
            max_sequence_length=context_length,
            dtype=dtype,
        )
        backbone.layer_norm.epsilon = LAYER_NORM_EPSILON

        # === Functional Model ===
        super().__init__(inputs=backbone.input, outputs=backbone.output, **kwargs)
        self.dtype_policy = backbone.dtype_policy

        # === Config ===
        self.hidden_dim = hidden_dim
        self.num_layers = num_layers
        self.num_heads = num_heads
        self.intermediate_dim = intermediate_dim
        self.activation = activation
        self.context_length = context_length
        self.vocabulary_size = vocabulary_size

    def get_config(self) -> dict[str, Any]:
        # Not chained: the config of a functional model is its graph, not these arguments.
        return {
            "hidden_dim": self.hidden_dim,
            "num_layers": self.num_layers,
            "num_heads": self.num_heads,
            "intermediate_dim": self.intermediate_dim,
            "activation": self.activation,
            "context_length": self.context_length,
            "vocabulary_size": self.vocabulary_size,
            "name": self.name,
            "trainable": self.trainable,
            "dtype": keras.dtype_policies.serialize(self.dtype_policy),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> TextEncoder:
        dtype = config.get("dtype")
        policy = keras.dtype_policies.get(dtype) if isinstance(dtype, dict) else dtype
        return cls(**{**config, "dtype": policy})


def build_text_encoder(
    *,
    hidden_dim: int,
    num_layers: int,
    num_heads: int,
    intermediate_dim: int | None = None,
    context_length: int = 77,
    vocabulary_size: int = 49_408,
) -> TextEncoder:
    """A fresh CLIP text transformer, to be trained together with the UNet; see `TextEncoder`."""
    return TextEncoder(
        hidden_dim=hidden_dim,
        num_layers=num_layers,
        num_heads=num_heads,
        intermediate_dim=intermediate_dim,
        context_length=context_length,
        vocabulary_size=vocabulary_size,
    )


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


def load_preset(name: str) -> tuple[TextEncoder, ClipTokenizer]:
    """The text encoder of a KerasHub preset of CLIP, with CLIP's own tokenizer.

    Args:
        name: a built-in preset ("clip_vit_large_patch14" has Stable Diffusion 1.x's encoder),
            a `kaggle://` or `hf://` handle, or a folder written by `save_to_preset`. All but
            the folder need the network.

    Raises:
        UserError: the preset cannot be had, or holds no CLIP text encoder.
    """
    from keras_hub.models import Backbone, CLIPBackbone, CLIPTextEncoder

    if "/" not in name and not Path(name).is_dir():
        check_choice("preset", name, (*CLIPBackbone.presets, *CLIPTextEncoder.presets))
    try:
        source = Backbone.from_preset(name)
    except Exception as error:  # each of the download clients has exceptions of its own
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"preset {name!r} could not be loaded: {reason}") from error
    source = getattr(source, "text_encoder", source)
    if not isinstance(source, CLIPTextEncoder):
        raise UserError(f"preset {name!r} is a {type(source).__name__}; expected CLIP")
    tokenizer = ClipTokenizer(source.max_sequence_length)
    if source.vocabulary_size != tokenizer.vocabulary_size:
        raise UserError(
            f"preset {name!r} has {source.vocabulary_size} tokens; "
            f"CLIP's tokenizer has {tokenizer.vocabulary_size}"
        )
    encoder = TextEncoder(
        hidden_dim=source.hidden_dim,
        num_layers=source.num_layers,
        num_heads=source.num_heads,
        intermediate_dim=source.intermediate_dim,
        activation=source.intermediate_activation,
        context_length=source.max_sequence_length,
        vocabulary_size=source.vocabulary_size,
    )
    blocks = [encoder.get_layer(f"encoder_block_{i}") for i in range(encoder.num_layers)]
    ours = [encoder.get_layer("embedding"), *blocks, encoder.get_layer("layer_norm")]
    theirs = [source.embedding, *source.encoder_layers, source.layer_norm]
    for mine, other in zip(ours, theirs, strict=True):
        mine.set_weights(other.get_weights())
    return encoder, tokenizer


def _check_sizes(sizes: dict[str, Any]) -> None:
    for name, size in sizes.items():
        if type(size) is not int or size < 1:
            raise UserError(f"{name}: expected a positive whole number, got {size!r}")
    if sizes["hidden_dim"] % sizes["num_heads"]:
        raise UserError(
            f"hidden_dim {sizes['hidden_dim']} is not divisible by num_heads {sizes['num_heads']}"
        )


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
        _check_sizes(sizes)
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
