"""Builder of a graph: operators are called one by one, and equal calls are made once.

Feature maps are (B, C, H, W) inside a graph, as ONNX has them; networks are channels last, so
their inputs and outputs are transposed. Everything else, (B, L, C) and (B, C), is as in Keras.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from latentddpm.graphs.graph_file import PATHS
from latentddpm.graphs.onnx_file import Node, Tensor, model_bytes

MICROSOFT = "com.microsoft"
"""Domain of ONNX Runtime's own operators."""
CONTRIBUTED = ("MultiHeadAttention", "QuickGelu")
"""Those of them that are used."""


class NoGraph(Exception):
    """Network that has no graph: a layer or a setting of it has no operators here."""


class GraphBuilder:
    """Builder of a graph.

    Args:
        paths: name of each weight, by the `id` of its variable.
    """

    def __init__(self, paths: Mapping[int, str]) -> None:
        self.paths = paths
        self.nodes: list[Node] = []
        self.constants: dict[str, np.ndarray] = {}
        self.weights: dict[str, tuple[int, ...]] = {}
        self.variables: dict[str, str] = {}
        self._made: dict[Any, str] = {}

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Output of an operator.

        Args:
            kind: of the operator, such as "Conv".
            inputs: names of tensors.
            attributes: of the operator, by name.
        """
        key = kind, inputs, repr(sorted(attributes.items()))
        if key not in self._made:
            self._made[key] = f"t{len(self._made)}"
            domain = MICROSOFT if kind in CONTRIBUTED else ""
            self.nodes.append(Node(kind, inputs, (self._made[key],), attributes, domain))
        return self._made[key]

    def constant(self, value: Any, dtype: str = "float32") -> str:
        """Tensor of known values.

        Args:
            value: numbers, as NumPy takes them.
            dtype: "float32" or "int64".
        """
        array = np.asarray(value, dtype)
        key = dtype, array.shape, array.tobytes()
        if key not in self._made:
            self._made[key] = f"c{len(self.constants)}"
            self.constants[self._made[key]] = array
        return self._made[key]

    def sizes(self, *values: int) -> str:
        """Tensor of whole numbers, such as the sizes of a shape."""
        return self.constant(values, "int64")

    def weight(self, variable: keras.Variable) -> str:
        """Tensor with the values of a variable.

        Raises:
            NoGraph: it is not a weight of the archive, as the product of a LoRA is not.
        """
        name = self.paths.get(id(variable))
        if name is None:
            raise NoGraph(f"{variable} is no weight of the archive")
        self.weights[name] = tuple(variable.shape)
        self.variables[variable.path] = name
        return name

    def build(self, name: str, inputs: list[Tensor], outputs: dict[str, Tensor]) -> bytes:
        """Bytes of the graph, as an ONNX file.

        Args:
            name: of the graph.
            inputs: of the graph.
            outputs: tensor here → output of the graph.
        """
        nodes = [
            *self.nodes,
            *(Node("Identity", (own,), (each.name,)) for own, each in outputs.items()),
        ]
        parts = inputs, outputs.values(), self.constants, self.weights
        return model_bytes(name, nodes, *parts, {PATHS: json.dumps(self.variables)})
