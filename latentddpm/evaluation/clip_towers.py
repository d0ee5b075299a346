"""Image and text towers of CLIP, from a Hugging Face folder.

    images ─► resize, crop, standardise ─► vision transformer ─► its class token ─► projection
    texts  ─► tokenizer ─► text transformer ─► the state at the end token        ─► projection

Both vectors have length one, so their dot product is the cosine that CLIP was trained on (Radford
et al. 2021). The text tower is that of `interop.clip`. The image tower is KerasHub's
`CLIPVisionEncoder`, with weights from the folder's `model.safetensors`.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from PIL import Image

from latentddpm.clip.text_encoder import TextEncoder
from latentddpm.clip.tokenizer import CLIPTokenizer
from latentddpm.errors import UserError
from latentddpm.interop.clip import (
    CONFIG,
    assign,
    check_tensors,
    load_clip_folder,
    read_clip_config,
    read_float32,
    read_tower_config,
)
from latentddpm.interop.clip_names import Shape, block_variables
from latentddpm.interop.tensors import TensorFiles
from latentddpm.models.archive import weights_digest
from latentddpm.models.inference import compiled
from latentddpm.utils.files import read_json

IMAGE_PREFIX = "vision_model."
BATCH = 32
# Per channel, of the 400 million images that CLIP was trained on; later CLIP models kept them.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
PREPROCESSOR = "preprocessor_config.json"

# As `interop.clip.SIZES`: Hugging Face's name of each size, and its default.
IMAGE_SIZES = {
    "hidden_dim": ("hidden_size", 768),
    "num_layers": ("num_hidden_layers", 12),
    "num_heads": ("num_attention_heads", 12),
    "intermediate_dim": ("intermediate_size", 3072),
    "image_size": ("image_size", 224),
    "patch_size": ("patch_size", 32),
    "image_channels": ("num_channels", 3),
}


@dataclass(frozen=True, eq=False)
class ClipTowers:
    """Towers of CLIP: images and texts as vectors of length one in one space.

    Attributes:
        label: name of the model's folder.
        image_encoder: `{"images": (B, side, side, 3)}`, standardised, → (B, 1 + patches, d).
        text_encoder: token ids → states (B, L, d).
        tokenizer: of the texts.
        image_projection: float32 (d, p), with the d of the image tower.
        text_projection: float32 (d, p), with the d of the text tower.
        side: of the square that images are scaled and cropped to, in pixels.
    """

    label: str
    image_encoder: keras.Model
    text_encoder: TextEncoder
    tokenizer: CLIPTokenizer
    image_projection: np.ndarray
    text_projection: np.ndarray
    side: int

    @property
    def digest(self) -> str:
        """Digest of the image tower's weights, in hexadecimal."""
        return weights_digest(self.image_encoder)

    def embed_images(self, pixels: np.ndarray) -> np.ndarray:
        """Embeddings of images.

        Args:
            pixels: uint8 (N, H, W, 3), N ≥ 1.

        Returns:
            float32 (N, p), each row of length one.
        """
        encode = compiled(self.image_encoder)
        states = [
            np.asarray(encode({"images": self.standardise(pixels[i : i + BATCH])}))[:, 0]
            for i in range(0, len(pixels), BATCH)
        ]
        return _unit(np.concatenate(states) @ self.image_projection)

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings of texts.

        Args:
            texts: N ≥ 1 texts; those too long for CLIP are cut with a warning.

        Returns:
            float32 (N, p), each row of length one.
        """
        encode = compiled(self.text_encoder)
        token_ids = self.tokenizer(list(texts))
        ends = np.argmax(token_ids == self.tokenizer.end_id, axis=1)  # the first; the rest pads
        states = []
        for i in range(0, len(token_ids), BATCH):
            batch = np.asarray(encode({"token_ids": token_ids[i : i + BATCH]}))
            states.append(batch[np.arange(len(batch)), ends[i : i + BATCH]])
        return _unit(np.concatenate(states) @ self.text_projection)

    def standardise(self, pixels: np.ndarray) -> np.ndarray:
        """Images as the image tower takes them: scaled (bicubic), cropped, standardised.

        Args:
            pixels: uint8 (N, H, W, 3).

        Returns:
            float32 (N, side, side, 3).
        """
        images = np.stack([_resize(image, self.side) for image in pixels])
        return (images.astype("float32") / 255 - np.float32(MEAN)) / np.float32(STD)


def load_clip_towers(folder: str | Path) -> ClipTowers:
    """Load both towers from a local Hugging Face folder of a `CLIPModel`.

    All shapes are checked before any weights are allocated.

    Args:
        folder: with `config.json`, `model.safetensors` and the tokenizer's files.

    Raises:
        UserError: a file is missing or malformed, the folder holds a text encoder alone, or the
            model is of a kind that is not supported.
    """
    folder = Path(folder)
    path = folder / CONFIG
    if not path.is_file():
        raise UserError(f"{path}: not found; expected the Hugging Face folder of a CLIPModel")
    source = str(path)
    config = read_json(path)
    if config.get("model_type") != "clip" or not isinstance(config.get("vision_config"), dict):
        raise UserError(
            f"{source}: model_type is {config.get('model_type')!r}; expected 'clip' with a "
            "vision_config: a CLIP score needs images and texts in one space"
        )
    _check_preprocessor(folder)
    sizes, activation = _read_image_config(config["vision_config"], source)
    text_sizes, _ = read_clip_config(config, source)
    width = config.get("projection_dim", 512)
    projections = {
        "visual_projection.weight": (width, sizes["hidden_dim"]),
        "text_projection.weight": (width, text_sizes["hidden_dim"]),
    }
    tensors = TensorFiles.folder(folder, "model")
    rows = ((IMAGE_PREFIX + name, shape) for name, shape, *_ in image_variables(sizes))
    check_tensors(tensors, itertools.chain(projections.items(), rows), source)
    text_encoder, tokenizer = load_clip_folder(folder)
    image_encoder = _build_image_encoder(sizes, activation)
    for name, _, layer, attribute in image_variables(sizes):
        variable = operator.attrgetter(attribute)(image_encoder.get_layer(layer))
        assign(variable, read_float32(tensors, IMAGE_PREFIX + name))
    image_projection, text_projection = (read_float32(tensors, name).T for name in projections)
    return ClipTowers(
        folder.resolve().name,
        image_encoder,
        text_encoder,
        tokenizer,
        image_projection,
        text_projection,
        sizes["image_size"],
    )


def image_variables(sizes: dict[str, int]) -> Iterator[tuple[str, Shape, str, str]]:
    """Tensors of the image tower in a Hugging Face file, and the variables that they belong to.

    Args:
        sizes: of the tower, by the keys of `IMAGE_SIZES`.

    Yields:
        (name of the tensor without its prefix, shape, name of the Keras layer, attribute).
    """
    width, patch = sizes["hidden_dim"], sizes["patch_size"]
    positions = (sizes["image_size"] // patch) ** 2 + 1
    for name, shape, attribute in (
        ("class_embedding", (width,), "class_embedding"),
        ("patch_embedding.weight", (width, 3, patch, patch), "patch_embedding.kernel"),
        ("position_embedding.weight", (positions, width), "position_embedding.embeddings"),
    ):
        yield f"embeddings.{name}", shape, "embedding", attribute
    yield from block_variables(sizes)
    for theirs, ours in (("pre_layrnorm", "pre_layer_norm"), ("post_layernorm", "layer_norm")):
        yield f"{theirs}.weight", (width,), ours, "gamma"
        yield f"{theirs}.bias", (width,), ours, "beta"


def _read_image_config(config: dict[str, Any], source: str) -> tuple[dict[str, int], str]:
    sizes, activation = read_tower_config(config, IMAGE_SIZES, f"{source}: vision_config")
    if sizes["image_channels"] != 3 or sizes["image_size"] < sizes["patch_size"]:
        raise UserError(
            f"{source}: vision_config: expected 3 channels and a patch within the image, got "
            f"{sizes['image_channels']} channels and {sizes['patch_size']} of "
            f"{sizes['image_size']} pixels"
        )
    return sizes, activation


def _build_image_encoder(sizes: dict[str, int], activation: str) -> keras.Model:
    from keras_hub.models import CLIPVisionEncoder

    names = ("hidden_dim", "num_layers", "num_heads", "intermediate_dim", "patch_size")
    encoder = CLIPVisionEncoder(
        **{name: sizes[name] for name in names},
        intermediate_activation=activation,
        image_shape=(sizes["image_size"], sizes["image_size"], 3),
        data_format="channels_last",
        dtype="float32",
    )
    # KerasHub reads these indices from its own weight files.
    positions = encoder.embedding.position_ids
    positions.assign(np.arange(positions.shape[1])[None])
    return encoder


def _check_preprocessor(folder: Path) -> None:
    """Refuse a CLIP model whose preprocessing differs from `ClipTowers.standardise`."""
    path = folder / PREPROCESSOR
    if not path.is_file():
        return
    stated = read_json(path)
    for key, ours in (("image_mean", MEAN), ("image_std", STD)):
        theirs = stated.get(key, list(ours))
        if theirs != list(ours):
            raise UserError(f"{path}: {key} is {theirs!r:.80}; only CLIP's {list(ours)} is known")


def _resize(pixels: np.ndarray, side: int) -> np.ndarray:
    """Scale uint8 (H, W, 3), bicubic, and crop the centre (side, side, 3), as CLIP's own code."""
    height, width = pixels.shape[:2]
    scale = side / min(height, width)
    size = max(side, int(width * scale)), max(side, int(height * scale))
    image = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    return np.asarray(image.crop((left, top, left + side, top + side)))


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
