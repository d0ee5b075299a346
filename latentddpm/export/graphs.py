"""Graphs of a model, put into the model folder itself: for folders written by older versions.

A model is saved with its graphs (`graphs.networks`), so this is for folders that have none, or
none for their networks any more. Only `graphs/` and `pipeline.json` are written. Before that each
graph is run by ONNX Runtime on the model's weights and compared with its network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np

from latentddpm.engines.onnx import OnnxGraph
from latentddpm.errors import UserError
from latentddpm.export.endpoints import TOLERANCE
from latentddpm.graphs.entries import PARTS, describe_graphs, write_graphs
from latentddpm.graphs.networks import make_graphs, network_of
from latentddpm.pipeline.latent_diffusion import LatentDiffusion
from latentddpm.pipeline.model_folder import MANIFEST, read_model_folder
from latentddpm.utils.files import read_json, write_json


def add_graphs(
    model: LatentDiffusion, folder: Path, report: Callable[..., None]
) -> dict[str, float]:
    """Write the graphs of a model into its folder, and check them.

    Args:
        model: loaded from the folder.
        folder: of the model.
        report: called with the name of a graph, its largest difference and its size in words.

    Returns:
        Name of a graph → largest difference from its network.

    Raises:
        UserError: the folder holds another model, or its networks have no graphs.
        ArithmeticError: a graph computes something else than its network.
        OSError: the folder cannot be written.
    """
    found = read_model_folder(folder)
    if found.digest != model.digest:
        raise UserError(f"{folder}: expected the folder that the model was loaded from")
    files = make_graphs(model.networks)
    if not files:
        raise UserError(f"{folder}: its networks have no graphs; those of images have")
    differences = {}

    def check(name: str, file: Path) -> None:
        part = PARTS[name]
        graph = OnnxGraph(file, found.file(part))
        differences[name] = check_graph(name, graph, network_of(name, model.networks[part]))
        report(name, differences[name], f" ({file.name}, {len(files[name]) / 1e3:.0f} kB)")

    write_graphs(found.path, files, check)
    manifest = read_json(found.path / MANIFEST)
    manifest["graphs"] = describe_graphs(found.path, found.parts)
    write_json(found.path / MANIFEST, manifest)
    return differences


def check_graph(name: str, graph: OnnxGraph, network: keras.Model) -> float:
    """Check a graph against its network, for two batch sizes and two sizes of inputs.

    Args:
        name: a key of `graphs.entries.PARTS`.
        graph: with its archive.
        network: with the weights of that archive.

    Returns:
        The largest absolute difference of an output.

    Raises:
        ArithmeticError: it is above `endpoints.TOLERANCE`, or an output has another shape.
    """
    run, differences = graph.bind(graph.read()), []
    for inputs in _inputs(name, network):
        expected = keras.ops.convert_to_numpy(network(inputs, training=False))
        found = run(inputs)
        if found.shape != expected.shape:
            raise ArithmeticError(
                f"graph {name}: its output has the shape {found.shape}, the network's "
                f"{expected.shape}"
            )
        differences.append(np.abs(found - expected).max())
    difference = float(np.max(differences))  # NaN if one of them is
    if not difference <= TOLERANCE:
        raise ArithmeticError(
            f"graph {name} differs from the network by {difference:.2g}, allowed {TOLERANCE:.0e}"
        )
    return difference


def _inputs(name: str, network: keras.Model) -> Iterator[Any]:
    """Random inputs of a network: a small batch, then a larger one that strides do not divide."""
    numbers = np.random.default_rng(0)
    # An encoder halves its images up to this often; a UNet takes every size.
    factor = 16 if name == "encoder" else getattr(network, "downsample_factor", 2)
    for batch, length in ((1, 5), (2, 7)):
        odd = 0 if name == "encoder" else batch - 1
        given = {}
        for tensor in network.inputs:
            last = tensor.shape[-1:]
            sizes = {1: (), 2: (last[0] or length,), 3: (length, *last)}
            sizes[4] = (2 * factor, 3 * factor + odd, *last)
            values = numbers.standard_normal((batch, *sizes[len(tensor.shape)]))
            if tensor.name == "timesteps":
                values = np.abs(200 * values)
            elif tensor.name == "token_ids":
                values = numbers.integers(0, network.vocabulary_size, values.shape)
            given[tensor.name] = values.astype(tensor.dtype)
        yield given if isinstance(network.input, dict) else next(iter(given.values()))
