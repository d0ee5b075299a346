"""Graphs of a model's networks, channels last, in float32:

    encoder       images                              → moments
    decoder       raw_latents                         → images
    unet          noisy_latents, timesteps[, context] → prediction
    text_encoder  token_ids                           → context

Batch, sizes and the length of a context are free. A weight is named by its path in the `.keras`
archive of its network (`models.archive.weight_paths`), and has no values here.
"""

from __future__ import annotations

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
        network = parts.get(part)
        if network is None:
            continue
        names = dict(zip(map(id, network.weights), weight_paths(network), strict=True))
        network = getattr(network, name, network)  # a half of the autoencoder
        try:
            found[name] = _make_graph(name, network, names)
        except NoGraph:
            continue
    return found


def _make_graph(name: str, network: keras.Model, names: Mapping[int, str]) -> bytes:
    graph = GraphBuilder(names)
    inputs, values = [], []
    for tensor in network.inputs:
        if len(tensor.shape) > 2 and tensor.name != "context" and len(tensor.shape) != 4:
            raise NoGraph(f"{len(tensor.shape) - 2} dimensions")
        axes = ("batch", "height", "width") if len(tensor.shape) == 4 else ("batch", "length")
        shape = (*axes[: len(tensor.shape)], *tensor.shape[len(axes) :])
        inputs.append(Tensor(tensor.name, shape, tensor.dtype))
        is_map = len(tensor.shape) == 4
        values.append(graph.op("Transpose", tensor.name, perm=TO_MAP) if is_map else tensor.name)
    result = network._run_through_graph(
        values, operation_fn=lambda layer: partial(emit, graph, layer)
    )
    rank = len(network.outputs[0].shape)
    if rank == 4:
        result = graph.op("Transpose", result, perm=TO_LAST)
    axes = ("batch", "out_height", "out_width") if rank == 4 else ("batch", "out_length")
    output = Tensor(OUTPUTS[name], (*axes, network.outputs[0].shape[-1]))
    return graph.build(name, inputs, {result: output})
