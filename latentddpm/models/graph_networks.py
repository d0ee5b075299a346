"""Graph networks: networks as graphs with their weights, in place of those of Keras layers.

    layers     a `keras.Model`: trains, saves, exports, computes
    graph      the same function, computed by an engine (`engines`), without Keras

A graph network is called as the network of layers is, with the same inputs by name, and has the
facts of it that others ask for. It takes and gives NumPy arrays. Its weights are bound when it
computes for the first time; until then they can be changed, as a LoRA does.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from latentddpm.errors import UserError
from latentddpm.models.autoencoder.facts import AutoencoderFacts
from latentddpm.models.denoisers.facts import DenoiserFacts
from latentddpm.utils.machine.memory import give_memory_back

Run = Callable[[Any], np.ndarray]
"""Function of a graph: its inputs by name, or its only input → its output."""
Weights = Mapping[str, np.ndarray]
"""Weights of a graph, by their names in the archive; float32."""


class Graph(Protocol):
    """Graph of a network, as an engine has it.

    Attributes:
        engine: that computes it, "onnx" or "keras".
        kind: name of the class of the network of layers, such as "UNet".
        arguments: of its constructor.
        archive: the `.keras` file that the weights are from.
        paths: path of a variable of the network of layers → name of its weight.
    """

    engine: str
    kind: str
    arguments: Mapping[str, Any]
    archive: Path
    paths: Mapping[str, str]

    def read(self) -> Weights:
        """Weights of the graph."""

    def bind(self, weights: Weights) -> Run:
        """Function of the graph with these weights."""


class GraphNetwork:
    """Network as a graph with its weights.

    Args:
        graph: of an engine.

    Attributes:
        graph: as given.
        compute_dtype: "float32".
        distribute_strategy: None; it computes on a single device.

    Call arguments:
        inputs: as of the network of layers, NumPy arrays.

    Returns:
        Its output, a NumPy array.
    """

    compute_dtype = "float32"
    distribute_strategy = None

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._arguments = dict(graph.arguments)
        self._run: Run | None = None

    def __call__(self, inputs: Any, training: bool = False) -> np.ndarray:
        if self._run is None:
            self._run = self.graph.bind(self.weights)
            del self.weights  # the engine has copied them
            give_memory_back()
        return self._run(inputs)

    @functools.cached_property
    def weights(self) -> Weights:
        """Weights by their names in the archive; until the first call they may be changed.

        The first call lets go of them. Later they are those of the archive again.
        """
        return self.graph.read()

    @property
    def is_bound(self) -> bool:
        """True from the first call on, when changes of `weights` have no effect any more."""
        return self._run is not None

    def count_params(self) -> int:
        """Number of weights."""
        return sum(weight.size for weight in self.weights.values())

    def get_config(self) -> dict[str, Any]:
        """Arguments of the network of layers."""
        return dict(self._arguments)


class GraphDenoiser(DenoiserFacts, GraphNetwork):
    """Denoiser as a graph; see `GraphNetwork` and `models.denoisers.base.Denoiser`."""


class GraphTextEncoder(GraphNetwork):
    """Text encoder as a graph; see `GraphNetwork` and `clip.text_encoder.TextEncoder`."""

    @property
    def context_length(self) -> int:
        """Number of positions."""
        return self._arguments["context_length"]


class GraphAutoencoder(AutoencoderFacts):
    """Autoencoder as two graphs; see `models.autoencoder.autoencoder.Autoencoder`.

    Args:
        encoder: images → moments.
        decoder: raw latents → images.

    Attributes:
        encoder, decoder: as given; and the arguments of the autoencoder of layers.
    """

    compute_dtype = "float32"

    def __init__(self, encoder: GraphNetwork, decoder: GraphNetwork) -> None:
        self.encoder, self.decoder = encoder, decoder
        arguments = encoder.get_config()
        self.channels = arguments["channels"]
        self.channel_multipliers = tuple(arguments["channel_multipliers"])
        self.latent_channels = arguments["latent_channels"]
        self.image_channels = arguments.get("image_channels", 3)
        self.scaling_factor = arguments["scaling_factor"]
        self.shift_factor = arguments.get("shift_factor", 0.0)

    def count_params(self) -> int:
        """Number of weights."""
        return self.encoder.count_params() + self.decoder.count_params()


def add_to_weight(network: Any, path: str, change: np.ndarray) -> None:
    """Add a change to a weight of a network, of layers or a graph.

    Args:
        network: whose weight it is.
        path: of its variable, such as "down_0_block_0/conv1/conv/kernel".
        change: as many numbers as the weight has, in its order.

    Raises:
        UserError: a graph that has computed already, and keeps the weights of that time.
    """
    if isinstance(network, GraphNetwork):
        if network.is_bound:
            raise UserError("this model has computed already; load it again to change its weights")
        name = network.graph.paths[path]
        weight = network.weights[name]
        network.weights[name] = weight + np.reshape(change, weight.shape).astype(weight.dtype)
        return
    (variable,) = (one for one in network.weights if one.path == path)
    variable.assign_add(np.reshape(change, variable.shape))


def is_graph(network: Any) -> bool:
    """True for a network that is a graph, or an autoencoder of two."""
    return isinstance(network, GraphNetwork | GraphAutoencoder)
