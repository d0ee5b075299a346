"""Networks of a model folder, computed by an engine.

keras   networks of Keras layers, on its devices; `engines.traced` keeps their functions
onnx    the graphs of the folder, on the processor, by ONNX Runtime; Keras is not imported
auto    onnx where the folder has graphs, there is no accelerator, and memory enough; else keras
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from latentddpm.choices import AUTO, ENGINES, HALF
from latentddpm.engines.onnx import OnnxGraph
from latentddpm.engines.traced import TracedGraph
from latentddpm.errors import UserError, check_choice
from latentddpm.graphs.graph_file import read_graph_file
from latentddpm.models.autoencoder.pixel_space import PixelSpace
from latentddpm.models.graph_networks import (
    Graph,
    GraphAutoencoder,
    GraphDenoiser,
    GraphNetwork,
    GraphTextEncoder,
)
from latentddpm.utils.files import NETWORKS, read_arguments
from latentddpm.utils.machine.accelerators import has_accelerator
from latentddpm.utils.machine.cache import is_switched_off
from latentddpm.utils.machine.memory import free_memory
from latentddpm.utils.startup import import_keras

GRAPHS = {"vae": ("encoder", "decoder"), "unet": ("unet",), "text_encoder": ("text_encoder",)}
"""Part of a model folder → the graphs that compute it."""


COPIES_TO_OPEN = 4
"""Memory that ONNX Runtime takes at most while it opens a graph, in that of the weights: those it
is given, its own, transposed and packed ones (docs/benchmarks.md)."""


class Folder(Protocol):
    """Model folder, see `pipeline.model_folder.ModelFolder`."""

    path: Path
    parts: Mapping[str, Any]
    first_stage: str

    def file(self, part: str) -> Path: ...

    def graph(self, name: str) -> Path | None: ...


class Networks(NamedTuple):
    """Networks of a model; `autoencoder` is a `PixelSpace` where it diffuses pixels."""

    autoencoder: Any
    unet: Any
    text_encoder: Any


def choose_engine(engine: str, folder: Folder, precision: str = AUTO) -> str:
    """Engine for a model: "keras" or "onnx".

    Args:
        engine: one of `choices.ENGINES`.
        folder: of the model.
        precision: that was asked for, one of `choices.PRECISIONS` or "auto"; half precision is
            Keras's.

    Raises:
        UserError: another name, or "onnx" for a model without graphs or for half precision.
    """
    check_choice("engine", engine, ENGINES)
    if engine == "keras":
        return engine
    half = precision in HALF
    if engine == "onnx" and half:
        raise UserError(
            f"precision: the engine onnx computes in float32, not in {precision}; expected "
            "float32, or the engine keras"
        )
    missing = [name for part in folder.parts for name in GRAPHS[part] if not folder.graph(name)]
    installed = importlib.util.find_spec("onnxruntime") is not None
    if engine == "onnx":
        if missing:
            raise UserError(
                f"--engine onnx: {folder.path} has no graph of its {missing[0]} that fits; "
                "latentddpm export --format graphs writes them"
            )
        if not installed:
            raise UserError("--engine onnx: needs pip install onnxruntime")
        return engine
    other = os.environ.get("KERAS_BACKEND", "tensorflow") != "tensorflow"
    keras = half or missing or other or not installed or has_accelerator()
    return "keras" if keras or not _fits(folder) else "onnx"


def _fits(folder: Folder) -> bool:
    """True where the largest graph of a model can be opened in the memory that is free."""
    free = free_memory()
    graphs = (folder.graph(name) for part in folder.parts for name in GRAPHS[part])
    largest = max(read_graph_file(graph).weight_bytes for graph in graphs)
    return free is None or COPIES_TO_OPEN * largest < free


def load_networks(
    folder: Folder, engine: str, precision: str = "float32", cache: bool = False
) -> Networks:
    """Networks of a model that generates.

    Args:
        folder: of the model.
        engine: "keras" or "onnx", see `choose_engine`.
        precision: of Keras's networks, one of `choices.PRECISIONS`.
        cache: compute the networks of Keras by traced functions from the user's cache folder,
            where that can be; see `engines.traced`.

    Raises:
        UserError: the folder lacks a part, or a file of it cannot be loaded.
    """
    traced = cache and precision == "float32"
    if engine == "keras" and traced and _can_trace(folder):
        return _traced_networks(folder)
    return LOADERS[engine](folder, precision)


def _can_trace(folder: Folder) -> bool:
    """True where traced functions compute a model as its layers do: on a processor, in float32."""
    other = os.environ.get("KERAS_BACKEND", "tensorflow") != "tensorflow"
    if other or is_switched_off() or has_accelerator():
        return False
    arguments = [read_arguments(folder.file(part), *NETWORKS) for part in folder.parts]
    return all(_in_float32(each.get("dtype")) for each in arguments)


def _in_float32(dtype: Any) -> bool:
    """True for the dtype policy of a network that computes in float32."""
    if isinstance(dtype, Mapping):
        dtype = dtype.get("config", {}).get("name")
    return dtype in (None, "float32")


def _keras_networks(folder: Folder, precision: str) -> Networks:
    import_keras()
    from latentddpm.clip.text_encoder import TextEncoder
    from latentddpm.models.archive import load_archive
    from latentddpm.models.autoencoder.autoencoder import Autoencoder
    from latentddpm.models.denoisers.kinds import load_denoiser

    held = {"precision": precision}
    unet = load_denoiser(folder.file("unet"), **held)
    first_stage, text_encoder = PixelSpace(unet.latent_channels), None
    if folder.first_stage != "none":
        first_stage = load_archive(folder.file("vae"), Autoencoder, **held)
    if "text_encoder" in folder.parts:
        text_encoder = load_archive(folder.file("text_encoder"), TextEncoder, **held)
    return Networks(first_stage, unet, text_encoder)


def _onnx_networks(folder: Folder, precision: str) -> Networks:
    return _graph_networks(
        folder, lambda part, name: OnnxGraph(folder.graph(name), folder.file(part))
    )


def _traced_networks(folder: Folder) -> Networks:
    return _graph_networks(
        folder,
        lambda part, name: TracedGraph(folder.file(part), name if part == "vae" else ""),
    )


def _graph_networks(folder: Folder, graph: Callable[..., Graph]) -> Networks:
    """Networks of a folder, by `graph(part, name of the graph)` of each."""
    unet = GraphDenoiser(graph("unet", "unet"))
    first_stage, text_encoder = PixelSpace(unet.latent_channels), None
    if folder.first_stage != "none":
        halves = (GraphNetwork(graph("vae", name)) for name in GRAPHS["vae"])
        first_stage = GraphAutoencoder(*halves)
    if "text_encoder" in folder.parts:
        text_encoder = GraphTextEncoder(graph("text_encoder", "text_encoder"))
    return Networks(first_stage, unet, text_encoder)


LOADERS: Mapping[str, Callable[[Folder, str], Networks]] = {
    "keras": _keras_networks,
    "onnx": _onnx_networks,
}
"""Engine → the networks of a folder that it computes."""
