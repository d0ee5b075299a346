"""Merging of LoRA files: the change A B of each linear map is added to its weight, once.

    W' = W + scale · α/r · A B

A merged model is as fast as before. The same code changes networks of Keras layers, and graphs
whose weights are not bound yet (`models.graph_networks`); it needs no Keras itself.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentddpm.choices import HALF
from latentddpm.errors import UserError
from latentddpm.hub.address import address_of
from latentddpm.interop.clip_names import linear_maps
from latentddpm.interop.compvis.names import unet_names
from latentddpm.interop.diffusers.weight_map import (
    LINEAR,
    TensorMapping,
    rows_of_class,
    to_ours,
)
from latentddpm.interop.lora_file import OF_TEXT, OF_UNET, LoraFile, lora_settings
from latentddpm.models.graph_networks import GraphNetwork, add_to_weight
from latentddpm.utils.files import file_digest

if TYPE_CHECKING:
    from latentddpm.pipeline.latent_diffusion import LatentDiffusion

Shape = tuple[int, ...]


@dataclass(frozen=True)
class LinearMap:
    """Linear map of a model: a dense layer or a convolution.

    Attributes:
        stem: its name in kohya's files.
        shape: in PyTorch, (out, in) or (out, in, h, w).
        layout: of the kernel, see `interop.diffusers.weight_map`.
        network: that it belongs to.
        path: of the kernel's variable.
    """

    stem: str
    shape: Shape
    layout: str
    network: Any
    path: str


def merge_lora(model: LatentDiffusion, path: str | Path, scale: float = 1.0) -> None:
    """Add scale · strength · A B of a LoRA file to the weights of a model.

    A file that was trained on another model with the same shapes is used with a warning, because
    LoRAs of Stable Diffusion are meant for fine-tuned versions of it too. All of the file is
    checked before any weight is changed. Settings that it asks for, such as the sampler and the
    few steps of a distilled one, become the model's defaults.

    Args:
        model: whose weights are changed; `model.loras` gets an entry for the file.
        path: of the LoRA file (`.safetensors`).
        scale: of the change; 0 is none, 1 that of the training.

    Raises:
        UserError: see `interop.lora_file.LoraFile`; a model of another engine than Keras that has
            drawn already; or weights in half precision, in which a small change would be lost.
    """
    if (held := model.precision) in HALF:
        raise UserError(
            f"{path}: is added to weights in float32, and this model holds them in {held}; "
            f"load it in float32, merge, then model.hold_in({held!r})"
        )
    maps = {one.stem: one for one in _linear_maps(model)}
    file = LoraFile(path, {stem: one.shape for stem, one in maps.items()}, _aliases(model.unet))
    file.check_scale(scale)
    made_for = file.metadata.get("base_digest")
    if made_for and model.digest and made_for != model.digest:
        name = file.metadata.get("base_model", "?")
        warnings.warn(
            f"{path}: was trained on another model, {name} ({made_for}), than this one "
            f"({model.digest})",
            stacklevel=2,
        )
    for stem in file.changes:
        one = maps[stem]
        add_to_weight(one.network, one.path, to_ours(scale * file.change(stem), one.layout))
    model.defaults = {**model.defaults, **lora_settings(path)}
    name = address_of(path) or Path(path).name
    model.loras.append({"file": name, "sha256": file_digest(path), "scale": scale})


def stem_of(key: str) -> str:
    """Name in kohya's files of a linear map of the UNet, from that of its weight.

    Args:
        key: name of the weight in diffusers.
    """
    return OF_UNET + key.removesuffix(".weight").replace(".", "_")


def _rows(unet: Any) -> Iterator[TensorMapping]:
    kind = unet.graph.kind if isinstance(unet, GraphNetwork) else type(unet).__name__
    return (row for row in rows_of_class(kind, unet.get_config()) if row.layout in LINEAR)


def _linear_maps(model: LatentDiffusion) -> Iterator[LinearMap]:
    """Linear maps of a model that a LoRA file can change."""
    for row in _rows(model.unet):
        yield LinearMap(stem_of(row.key), row.shape, row.layout, model.unet, row.path)
    if model.text_encoder is not None:
        for name, shape, path in linear_maps(model.text_encoder.get_config()):
            stem = OF_TEXT + f"text_model.{name}".replace(".", "_")
            yield LinearMap(stem, shape, "dense", model.text_encoder, path)


def _aliases(unet: Any) -> dict[str, str]:
    """CompVis's names of a UNet's linear maps → kohya's."""
    config = unet.get_config()
    keys = [row.key for row in _rows(unet)]
    sizes = config["num_res_blocks"], config["attention_levels"]
    names = unet_names(keys, len(config["channel_multipliers"]), *sizes)
    return {stem_of(theirs): stem_of(key) for key, theirs in names.items()}
