"""Graphs of a model's networks, channels last, in float32:

    encoder       images                              → moments
    decoder       raw_latents                         → images
    unet          noisy_latents, timesteps[, context]
                  [, conditions by their names]       → prediction
    text_encoder  token_ids                           → context

Batch, sizes and the length of a context are free. A weight is named by its path in the `.keras`
archive of its network (`models.archive.weight_paths`), and has no values here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from functools import partial

import keras

from latentddpm.graphs.builder import GraphBuilder, NoGraph
from latentddpm.graphs.entries import PARTS
from latentddpm.graphs.layers import TO_LAST, TO_MAP, emit
from latentddpm.graphs.onnx_file import Tensor
from latentddpm.models.archive import weight_paths

OUTPUTS = {
    "encoder": "moments",
    "decoder": "images",
    "unet": "prediction",
    "text_encoder": "context",
}
MAPS = ("images", "raw_latents", "noisy_latents")
"""Inputs that are feature maps."""


def network_of(name: str, part: keras.Model) -> keras.Model:
    """Network that a graph is of: a half of the autoencoder, or the part itself.

    Args:
        name: a key of `entries.PARTS`.
        part: of the model.
    """
    return getattr(part, name) if PARTS[name] == "vae" else part


def make_graphs(parts: Mapping[str, keras.Model | None]) -> dict[str, bytes]:
    """Graphs of a model's networks, as ONNX files without weights.

    Args:
        parts: networks by the names of a model folder: "vae", "unet", "text_encoder".

    Returns:
        Name of a graph → file. Networks that have none are left out: those of signals, and those
        with layers that `graphs.layers` does not know.
    """
    found = {}
    for name, part in PARTS.items():
        if parts.get(part) is None:
            continue
        # A model is saved after days of training: whatever is wrong with a graph, it goes without.
        with contextlib.suppress(Exception):
            found[name] = make_graph(name, parts[part])
    return found


def make_graph(name: str, part: keras.Model) -> bytes:
    """Graph of a network, as an ONNX file without weights.

    Args:
        name: a key of `entries.PARTS`.
        part: of the model, whose archive has the weights.

    Raises:
        NoGraph: it is of signals or volumes, or has a layer that `graphs.layers` does not know.
    """
    network, paths = network_of(name, part), weight_paths(part)
    graph = GraphBuilder(dict(zip(map(id, part.weights), paths, strict=True)))
    inputs, values = [], []
    for tensor in network.inputs:
        rank = len(tensor.shape)
        if tensor.name in MAPS and rank != 4:
            raise NoGraph(f"{rank - 2} dimensions")
        axes = ("batch", "height", "width") if rank == 4 else ("batch", "length")
        inputs.append(_tensor(tensor.name, axes, tensor))
        values.append(
            graph.op("Transpose", tensor.name, perm=TO_MAP) if rank == 4 else tensor.name
        )
    result = network._run_through_graph(values, lambda layer: partial(emit, graph, layer))
    axes = ("batch", "length")
    if len(network.output.shape) == 4:
        result = graph.op("Transpose", result, perm=TO_LAST)
        # Names of their own: the runtime warns where an axis of one name has two sizes.
        axes = ("batch", "output_height", "output_width")
    return graph.build(name, inputs, {result: _tensor(OUTPUTS[name], axes, network.output)})


def _tensor(name: str, axes: tuple[str, ...], tensor: keras.KerasTensor) -> Tensor:
    """Tensor of the graph: its axes of no size are free, and have names."""
    shape = tensor.shape
    named = [*axes, *[""] * (len(shape) - len(axes))]
    sizes = (axis if size is None else size for axis, size in zip(named, shape, strict=False))
    return Tensor(name, tuple(sizes), tensor.dtype)
