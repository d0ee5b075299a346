"""CLIP of Hugging Face: its text encoder and tokenizer, read from and written to folders.

    text_encoder/   config.json, model.safetensors     `CLIPTextModel` of transformers
    tokenizer/      vocab.json, merges.txt, …          `CLIPTokenizer`

The tensors have the layout of PyTorch: dense kernels are (out, in) there and (in, out) in Keras.
`clip_names` maps tensors to variables, for reading and for writing. transformers up to version
4, and every Stable Diffusion checkpoint, have the prefix `text_model.` before all names; version 5
does not. Both are read. Files are written with the prefix, because all versions read it.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
from safetensors.numpy import save_file

from latentddpm.clip.text_encoder import ACTIVATIONS, TextEncoder, check_sizes
from latentddpm.clip.tokenizer import CLIPTokenizer
from latentddpm.clip.transformer import LAYER_NORM_EPSILON
from latentddpm.errors import UserError, check_choice
from latentddpm.interop.clip_names import Shape, clip_variables
from latentddpm.interop.tensors import TensorFiles, Tensors, check_dtype
from latentddpm.utils.files import atomic_path, read_json, write_json

CONFIG = "config.json"
PREFIX = "text_model."
MODEL_TYPES = ("clip_text_model", "clip")

SIZES = {
    "hidden_dim": ("hidden_size", 512),
    "num_layers": ("num_hidden_layers", 12),
    "num_heads": ("num_attention_heads", 8),
    "intermediate_dim": ("intermediate_size", 2048),
    "context_length": ("max_position_embeddings", 77),
    "vocabulary_size": ("vocab_size", 49_408),
}
"""Size of a `TextEncoder` → its key in `config.json`, and the default in `CLIPTextConfig`."""


def load_clip_folder(folder: str | Path) -> tuple[TextEncoder, CLIPTokenizer]:
    """Text encoder and tokenizer of a local Hugging Face folder.

    Args:
        folder: a `CLIPTextModel` or a whole `CLIPModel` (`config.json`, `model.safetensors`) with
            the files of the tokenizer beside it or in `tokenizer/`; or a Stable Diffusion folder
            with `text_encoder/` and `tokenizer/`; or its `text_encoder/`.

    Raises:
        UserError: see `read_text_encoder`.
    """
    folder = Path(folder)
    if (folder / "text_encoder").is_dir():
        folder = folder / "text_encoder"
    _config_file(folder)
    return read_text_encoder(folder, _tokenizer_folder(folder))


def read_text_encoder(
    text_encoder_folder: str | Path, tokenizer_folder: str | Path, variant: str | None = None
) -> tuple[TextEncoder, CLIPTokenizer]:
    """Text encoder and tokenizer in the folders of a `CLIPTextModel` and a `CLIPTokenizer`.

    Weights are float32, float16 or bfloat16, in one file or in shards, and become float32. All
    shapes are checked before memory is allocated.

    Args:
        text_encoder_folder: with `config.json` and the weights.
        tokenizer_folder: with the files of the tokenizer.
        variant: of the weight files, see `TensorFiles.folder`.

    Raises:
        UserError: a file is missing, malformed or not supported (pickled weights, another
            activation or epsilon); the message names it.
    """
    folder = Path(text_encoder_folder)
    source = str(_config_file(folder))
    config = read_json(folder / CONFIG)
    sizes, _ = read_clip_config(config, source)
    length = sizes["context_length"]
    tokenizer = CLIPTokenizer.load(tokenizer_folder, default_length=length)
    for name, asked in (
        ("context_length", tokenizer.context_length),
        ("vocabulary_size", tokenizer.vocabulary_size),
    ):
        if asked > sizes[name]:
            raise UserError(
                f"{folder}: {name} is {asked} in the tokenizer but {sizes[name]} in {CONFIG}"
            )
    return build_clip(config, TensorFiles.folder(folder, "model", variant), source), tokenizer


def build_clip(config: dict[str, Any], tensors: Tensors, source: str) -> TextEncoder:
    """Text encoder of a configuration and of tensors with transformers' names.

    Other tensors than those of the configuration (`position_ids`, a vision model, further layers)
    are ignored, as in transformers.

    Args:
        config: of a `CLIPTextModel` or a `CLIPModel`.
        tensors: the weights.
        source: of the configuration, for messages.

    Raises:
        UserError: the configuration is not supported, or a tensor is missing or of another
            shape or type.
    """
    sizes, activation = read_clip_config(config, source)
    prefix = PREFIX if f"{PREFIX}final_layer_norm.weight" in set(tensors.keys()) else ""
    check_tensors(tensors, ((prefix + name, s) for name, s, *_ in clip_variables(sizes)), source)
    encoder = TextEncoder(**sizes, activation=activation)
    for name, _, variable in _pairs(encoder):
        assign(variable, read_float32(tensors, prefix + name))
    return encoder


def check_tensors(tensors: Tensors, rows: Iterable[tuple[str, Shape]], source: str) -> None:
    """Check that tensors exist and have the right shapes and types, without reading them.

    Args:
        tensors: the weights.
        rows: name and shape of each tensor.
        source: of these rows, for messages.

    Raises:
        UserError: a tensor is missing, or has another shape or an unsupported type.
    """
    names = set(tensors.keys())
    for name, shape in rows:
        if name not in names:
            raise UserError(f"{tensors.name}: no tensor {name!r}; not the weights of {source}")
        if (found := tensors.shape(name)) != shape:
            raise UserError(f"{tensors.name}: {name!r} is {found}, {source} makes it {shape}")
        check_dtype(tensors, name)


def read_float32(tensors: Tensors, name: str) -> np.ndarray:
    """Tensor `name` of `tensors`, of any type, as float32."""
    return tensors.read(name).astype("float32", copy=False)


def assign(variable: keras.Variable, value: np.ndarray) -> None:
    """Assign a tensor of transformers to a variable of Keras, with its layout.

    Args:
        variable: of a text or image encoder.
        value: the tensor; a kernel is (out, in) or (out, in, h, w).
    """
    if variable.name == "kernel":  # (out, in[, h, w]) there, ([h, w,] in, out) here
        value = value.T if value.ndim == 2 else value.transpose(2, 3, 1, 0)
    variable.assign(value.reshape(variable.shape))  # attention kernels are split into heads


def write_text_encoder(
    text_encoder: TextEncoder,
    tokenizer: CLIPTokenizer,
    text_encoder_folder: str | Path,
    tokenizer_folder: str | Path,
) -> None:
    """Write folders that `CLIPTextModel` and `CLIPTokenizer` open with `from_pretrained`.

    Weights are float32. The folders are made when missing; `config.json` is written last.

    Args:
        text_encoder, tokenizer: to write.
        text_encoder_folder, tokenizer_folder: to write into.

    Raises:
        UserError: the tokenizer has more tokens or positions than the encoder.
    """
    for name in ("context_length", "vocabulary_size"):
        most, asked = getattr(text_encoder, name), getattr(tokenizer, name)
        if asked > most:
            raise UserError(f"{name} is {asked} in the tokenizer but {most} in the text encoder")
    folder = Path(text_encoder_folder)
    tokenizer.save(tokenizer_folder, standalone=True)
    weights = {}
    for name, shape, variable in _pairs(text_encoder):
        value = keras.ops.convert_to_numpy(variable).astype("float32", copy=False)
        if variable.name == "kernel":
            value = value.reshape(shape[::-1]).T
        weights[PREFIX + name] = np.ascontiguousarray(value.reshape(shape))
    with atomic_path(folder / "model.safetensors") as path:
        # transformers before 4.47 refuses a file without this metadata.
        save_file(weights, path, metadata={"format": "pt"})
    write_json(folder / CONFIG, clip_config(text_encoder, tokenizer))


def clip_config(text_encoder: TextEncoder, tokenizer: CLIPTokenizer) -> dict[str, Any]:
    """Content of the `config.json` of a text encoder, with the keys of `CLIPTextConfig`."""
    return {
        "architectures": ["CLIPTextModel"],
        "attention_dropout": 0.0,
        "bos_token_id": tokenizer.start_id,
        "eos_token_id": tokenizer.end_id,
        "pad_token_id": tokenizer.pad_id,
        "hidden_act": text_encoder.activation,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "layer_norm_eps": LAYER_NORM_EPSILON,
        "model_type": MODEL_TYPES[0],
        "projection_dim": text_encoder.hidden_dim,
        "torch_dtype": "float32",
        **{theirs: getattr(text_encoder, ours) for ours, (theirs, _) in SIZES.items()},
    }


def read_clip_config(config: dict[str, Any], source: str) -> tuple[dict[str, int], str]:
    """Sizes and activation of a text encoder, from a configuration of Hugging Face.

    Args:
        config: of a `CLIPTextModel` or a `CLIPModel`.
        source: of the configuration, for messages.

    Returns:
        The sizes, by the names of `SIZES`, and the activation.

    Raises:
        UserError: it is malformed or not supported.
    """
    check_choice(f"{source}: model_type", config.get("model_type"), MODEL_TYPES)
    config = config.get("text_config", config)
    if not isinstance(config, dict):
        raise UserError(f"{source}: text_config: expected an object, got {config!r:.40}")
    return read_tower_config(config, SIZES, source)


def read_tower_config(
    config: dict[str, Any], names: dict[str, tuple[str, int]], source: str
) -> tuple[dict[str, int], str]:
    """Sizes and activation of an encoder of text or of images.

    Args:
        config: of the encoder.
        names: size → its key in `config`, and the default; such as `SIZES`.
        source: of the configuration, for messages.

    Returns:
        The sizes, by their names, and the activation.

    Raises:
        UserError: it is malformed or not supported.
    """
    sizes = {ours: config.get(theirs, default) for ours, (theirs, default) in names.items()}
    activation = config.get("hidden_act", ACTIVATIONS[0])
    check_choice(f"{source}: hidden_act", activation, ACTIVATIONS)
    epsilon = config.get("layer_norm_eps", LAYER_NORM_EPSILON)
    if epsilon != LAYER_NORM_EPSILON:
        raise UserError(f"{source}: layer_norm_eps: {epsilon!r}; only 1e-05 is supported")
    try:
        check_sizes(sizes)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    return sizes, activation


def _pairs(encoder: TextEncoder) -> Iterator[tuple[str, Shape, keras.Variable]]:
    """Variables of an encoder, each with transformers' name and shape."""
    sizes = {name: getattr(encoder, name) for name in SIZES}
    for name, shape, layer, attribute in clip_variables(sizes):
        yield name, shape, operator.attrgetter(attribute)(encoder.get_layer(layer))


def _config_file(folder: Path) -> Path:
    path = folder / CONFIG
    if not path.is_file():
        raise UserError(f"{path}: not found; expected a Hugging Face CLIP folder")
    return path


def _tokenizer_folder(folder: Path) -> Path:
    candidates = (folder, folder / "tokenizer", folder.parent / "tokenizer")
    for candidate in candidates:
        if any((candidate / n).is_file() for n in ("tokenizer_config.json", "vocab.json")):
            return candidate
    places = ", ".join(map(str, candidates))
    raise UserError(f"{folder}: no tokenizer files (vocab.json, merges.txt) in any of {places}")
