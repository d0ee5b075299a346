"""Engine of ONNX Runtime: a graph without weights, and the weights of a `.keras` archive.

    MODEL/graphs/unet.onnx ──┐
                             ├─► session of ONNX Runtime ─► inputs by name → output
    MODEL/unet.keras       ──┘

The session gets the arrays that were read from the archive; nothing is copied into the graph, so a
model folder has one set of weights for Keras and for ONNX Runtime. Opening it takes ONNX Runtime
alone: TensorFlow and Keras are not imported.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from latentddpm.errors import UserError
from latentddpm.graphs.graph_file import PATHS, read_graph_file
from latentddpm.models.graph_networks import Run, Weights
from latentddpm.utils.files import NETWORKS, read_network
from latentddpm.utils.stored_weights import check_finite, read_weights

TYPES = {"tensor(float)": np.float32, "tensor(int32)": np.int32, "tensor(int64)": np.int64}
ERRORS_ONLY = 3  # of ONNX Runtime's log; warnings are about its own optimisations


class OnnxGraph:
    """Graph file and the archive whose weights it wants; a `models.graph_networks.Graph`.

    Args:
        graph: the `.onnx` file.
        archive: the `.keras` file.

    Raises:
        UserError: the graph is damaged.
    """

    engine = "onnx"

    def __init__(self, graph: Path, archive: Path) -> None:
        try:
            self.file = read_graph_file(graph)
        except (OSError, ValueError) as error:
            raise UserError(f"{graph}: cannot be read: {error}") from None
        name, self.arguments = read_network(archive, *NETWORKS)
        self.kind = name.rpartition(">")[2]
        self.path, self.archive = graph, archive
        self.paths = json.loads(self.file.properties.get(PATHS, "{}"))

    def read(self) -> Weights:
        """Weights of the graph, from the archive, in float32.

        Raises:
            UserError: the archive lacks one, has one of another shape, or one with numbers that
                are not finite.
        """
        wanted = self.file.weights
        found = read_weights(self.archive, list(wanted))
        for name, shape in wanted.items():
            values = found[name]
            if values.shape != shape:
                raise UserError(
                    f"{self.archive}: {name} has the shape {values.shape}, the graph "
                    f"{self.path} wants {shape}"
                )
            check_finite(values, self.archive, name)
            found[name] = np.ascontiguousarray(values, np.float32)
        return found

    def bind(self, weights: Weights) -> Run:
        """Function of the graph with these weights.

        Args:
            weights: by name, float32, in any order of memory.

        Raises:
            UserError: ONNX Runtime cannot open the graph.
        """
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = ERRORS_ONLY
        arrays = list(map(np.ascontiguousarray, weights.values()))  # kept while it copies them
        values = map(onnxruntime.OrtValue.ortvalue_from_numpy, arrays)
        options.add_external_initializers(list(weights), list(values))
        try:
            session = onnxruntime.InferenceSession(
                self.file.content, options, ["CPUExecutionProvider"]
            )
        except Exception as error:  # its errors have no common class
            raise UserError(f"{self.path}: ONNX Runtime cannot open it: {error}") from None
        types = {each.name: TYPES[each.type] for each in session.get_inputs()}
        return partial(_run, session, types)


def _run(session: Any, types: Mapping[str, Any], inputs: Any) -> np.ndarray:
    """Output of a session, which has copied the weights."""
    if not isinstance(inputs, Mapping):
        (name,) = types
        inputs = {name: inputs}
    given = {name: np.asarray(inputs[name], dtype) for name, dtype in types.items()}
    return session.run(None, given)[0]
