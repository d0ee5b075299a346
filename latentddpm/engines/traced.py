"""Traced functions: a network as TensorFlow optimised it once, kept for the next start.

    first start   archive ─► layers of Keras ─► trace ─► optimise ─► function ─► cache
    later         archive ─► weights,  cache ─► function(inputs, weights) ─► output

Building layers, tracing them and optimising the graph take most of the time to a first image. All
three depend on the arguments of the network, on the shapes of its inputs and on the software, and
none on the weights. So the function has the weights as inputs, and is kept under the digest of all
that it depends on. A later start reads it and the weights, and needs TensorFlow alone.

The operations are those that TensorFlow runs for `models.inference.compiled`, to the last bit.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import hashlib
import importlib.metadata
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import latentddpm
from latentddpm.errors import one_line
from latentddpm.models.graph_networks import Run, Weights
from latentddpm.models.inference import compiled
from latentddpm.utils.console import say, speaks
from latentddpm.utils.files import NETWORKS, read_network
from latentddpm.utils.machine.cache import Cache
from latentddpm.utils.machine.kernels import processor_flags, processor_name
from latentddpm.utils.startup import import_keras, import_tensorflow
from latentddpm.utils.stored_weights import check_finite, open_weights

if TYPE_CHECKING:
    import keras

CACHE = Cache("traced", 512 << 20)
FORMAT = 1
PACKAGES = ("tensorflow", "tensorflow-cpu", "keras", "keras-hub")
VARIABLES = ("TF_ENABLE_ONEDNN_OPTS", "ONEDNN_MAX_CPU_ISA", "ONEDNN_DEFAULT_FPMATH_MODE")
DEVICE = "/job:localhost/replica:0/task:0/device:CPU:0"
ALIGNMENT = 64  # bytes
NARROW = {np.dtype("float64"): np.float32, np.dtype("int64"): np.int32}

Signature = tuple[tuple[str, str, tuple[int, ...]], ...]
"""Name, type and shape of each input, by name; a single input has the name ""."""


class TracedGraph:
    """Network of an archive as traced functions, one for each shape of its inputs.

    It is a `models.graph_networks.Graph`.

    Args:
        archive: the `.keras` file.
        half: "encoder" or "decoder" of an autoencoder; "" for a network that is one whole.
    """

    engine = "keras"
    paths: Mapping[str, str] = {}
    """None are known: LoRA files are merged into layers."""

    def __init__(self, archive: Path, half: str = "") -> None:
        self.archive, self.half = archive, half
        name, self.arguments = read_network(archive, *NETWORKS)
        self.kind = name.rpartition(">")[2]
        sizes = {key: value for key, value in self.arguments.items() if key != "name"}
        self._facts = [FORMAT, name, sizes, half, *_surroundings()]

    def read(self) -> Weights:
        """Weights of the network, which are read when one of them is asked for.

        So the layers that are traced at a first start are gone before.
        """
        return _Lazily(self._read)

    def _read(self) -> dict[str, np.ndarray]:
        """Weights in float32, each where TensorFlow can use it without a copy.

        Raises:
            UserError: the archive is damaged, or one has numbers that are not finite.
        """
        found = {}
        with open_weights(self.archive) as weights:
            for name in weights:
                if name.startswith(self.half):
                    values = weights[name]
                    check_finite(values, self.archive, name)
                    found[name] = _aligned(values)
        return found

    def bind(self, weights: Weights) -> Run:
        """Function of the network with these weights.

        Args:
            weights: by name, float32, as `read` gives them.
        """
        as_tensor = import_tensorflow().experimental.dlpack.from_dlpack
        tensor = functools.cache(lambda name: as_tensor(_aligned(weights[name]).__dlpack__()))
        functions: dict[Signature, Callable] = {}

        def run(inputs: Any) -> np.ndarray:
            given = inputs if isinstance(inputs, Mapping) else {"": inputs}
            arrays = {name: _narrow(given[name]) for name in sorted(given)}
            signature = tuple((name, str(a.dtype), a.shape) for name, a in arrays.items())
            if signature not in functions:
                functions[signature] = self._function(signature, weights, tensor)
            return functions[signature](arrays)

        return run

    def _function(
        self, signature: Signature, weights: Weights, tensor: Callable[[str], Any]
    ) -> Callable[[Mapping[str, np.ndarray]], np.ndarray]:
        """Function for inputs of a signature, from the cache or else traced and kept there."""
        key = hashlib.sha256(json.dumps([*self._facts, signature]).encode()).hexdigest()
        content = CACHE.read(key)
        if content is None or not _fits(content, weights):
            try:
                content = _trace(*self._of_layers, signature)
            except Exception as error:  # of a TensorFlow that has not the names that this needs
                say(f"not kept for the next start: {one_line(error, 200)}", quiet=not speaks())
                return self._by_layers(weights)
            CACHE.write(key, content)
            del self._of_layers
            gc.collect()
        return _restore(content, tensor)

    def _by_layers(self, weights: Weights) -> Callable[[Mapping[str, np.ndarray]], np.ndarray]:
        """Function of arrays by name, computed by the network of layers."""
        network, variables = self._of_layers
        for name, variable in variables.items():
            variable.assign(weights[name])
        predict = compiled(network)
        return lambda arrays: np.asarray(predict(arrays.get("", arrays)))

    @functools.cached_property
    def _of_layers(self) -> tuple[keras.Model, dict[str, keras.Variable]]:
        """Network of layers, and its variables by their names in the archive."""
        from latentddpm.models import networks
        from latentddpm.models.archive import load_archive, weight_paths

        import_keras()
        classes = [getattr(networks, name.rpartition(">")[2]) for name in NETWORKS]
        whole = load_archive(self.archive, *classes)
        network = getattr(whole, self.half) if self.half else whole
        own = set(map(id, network.weights))
        pairs = zip(weight_paths(whole), whole.weights, strict=True)
        return network, {name: variable for name, variable in pairs if id(variable) in own}


class _Lazily(Mapping):
    """Mapping that is read when it is first looked at."""

    def __init__(self, read: Callable[[], Mapping[str, Any]]) -> None:
        self._read = functools.cache(read)

    def __getitem__(self, key: str) -> Any:
        return self._read()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._read())

    def __len__(self) -> int:
        return len(self._read())


def _trace(
    network: keras.Model, variables: Mapping[str, keras.Variable], signature: Signature
) -> bytes:
    """Function of (inputs, weights), traced and optimised, as `_restore` reads it.

    Args:
        network: of layers.
        variables: of the network, by their names in the archive.
        signature: of its inputs.
    """
    import keras
    import tensorflow as tf
    from tensorflow.python.grappler import tf_optimizer

    def call(inputs: Any, weights: Sequence[Any]) -> Any:
        mapping = list(zip(variables.values(), weights, strict=True))
        with keras.StatelessScope(state_mapping=mapping):
            return network(inputs, training=False)

    inputs = {name: tf.TensorSpec(shape, dtype) for name, dtype, shape in signature}
    weights = [tf.TensorSpec(one.shape, one.dtype) for one in variables.values()]
    function = tf.function(call, autograph=False)
    traced = function.get_concrete_function(inputs.get("", inputs), weights)
    graph = tf.compat.v1.MetaGraphDef(graph_def=traced.graph.as_graph_def())
    for node in graph.graph_def.node:  # the optimiser fuses only what has a place
        node.device = DEVICE
    outputs = [one.name for one in traced.outputs]
    graph.collection_def["train_op"].node_list.value.extend(outputs)  # what it has to keep
    optimised = tf_optimizer.OptimizeGraph(tf.compat.v1.ConfigProto(), graph)
    places = {
        one.op.name: name for name, one in zip([*inputs, *variables], traced.inputs, strict=True)
    }
    used = [node.name for node in optimised.node if node.name in places]
    nodes = [node for node in optimised.node if node.name not in places]
    operations = tf.compat.v1.GraphDef(
        node=nodes, library=optimised.library, versions=optimised.versions
    )
    types = {one.op.name: tf.TensorSpec(one.shape, one.dtype) for one in traced.inputs}
    whole = tf.compat.v1.wrap_function(
        lambda *given: tf.graph_util.import_graph_def(
            operations, dict(zip(used, given, strict=True)), outputs, name=""
        ),
        [types[place] for place in used],
    )
    library = whole.graph.as_graph_def().library
    library.function.insert(0, whole.function_def)
    names = [places[place] for place in used]
    arguments = [
        [name, list(variables[name].shape) if name in variables else None] for name in names
    ]
    stored = tf.compat.v1.GraphDef(library=library)
    return json.dumps(arguments).encode() + b"\n" + stored.SerializeToString()


def _arguments(content: bytes) -> tuple[list[tuple[str, list[int] | None]], bytes]:
    """Arguments of a stored function, (name, shape of a weight or None), and its definition."""
    head, _, body = content.partition(b"\n")
    return json.loads(head), body


def _fits(content: bytes, weights: Weights) -> bool:
    """True where the weights have the names and shapes that a stored function takes."""
    wanted = [(name, shape) for name, shape in _arguments(content)[0] if shape is not None]
    return all(name in weights and list(weights[name].shape) == shape for name, shape in wanted)


def _restore(
    content: bytes, tensor: Callable[[str], Any]
) -> Callable[[Mapping[str, np.ndarray]], np.ndarray]:
    """Function of arrays by name.

    Args:
        content: as `_trace` returns it.
        tensor: weight by its name.
    """
    import tensorflow as tf
    from tensorflow.python.eager import context

    arguments, body = _arguments(content)
    library = tf.compat.v1.GraphDef.FromString(body).library
    name = _register(library.function, hashlib.sha256(body).hexdigest(), context.context())
    types = [tf.as_dtype(one.type) for one in library.function[0].signature.output_arg]
    inputs = [one for one, shape in arguments if shape is None]
    weights = [tensor(one) for one, shape in arguments if shape is not None]
    config = tf.compat.v1.ConfigProto()
    config.graph_options.rewrite_options.disable_meta_optimizer = True  # it is optimised
    settings = {"Tout": types, "f": name, "config_proto": config.SerializeToString()}

    def call(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        given = [tf.constant(arrays[one]) for one in inputs]
        return tf.raw_ops.StatefulPartitionedCall(args=given + weights, **settings)[0].numpy()

    return call


def _register(functions: Sequence[Any], digest: str, context: Any) -> str:
    """Make functions known to TensorFlow, under names that are theirs alone; that of the first."""
    names = {one.signature.name: f"{one.signature.name}_{digest}" for one in functions}
    for function in functions:
        function.signature.name = names[function.signature.name]
        for node in function.node_def:
            for value in node.attr.values():
                for called in (value.func, *value.list.func):
                    if called.name in names:
                        called.name = names[called.name]
    for function in functions:
        if not context.has_function(function.signature.name):
            context.add_function_def(function)
    return functions[0].signature.name


def _aligned(values: np.ndarray) -> np.ndarray:
    """Array in float32 whose memory begins where TensorFlow wants it to."""
    if values.dtype == np.float32 and values.ctypes.data % ALIGNMENT == 0:
        return values
    memory = np.empty(values.size * 4 + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    aligned = memory[start : start + values.size * 4].view(np.float32).reshape(values.shape)
    aligned[...] = values
    return aligned


def _narrow(values: Any) -> np.ndarray:
    """Array as networks take it: numbers of 64 bits as those of 32."""
    array = np.asarray(values)
    return array.astype(NARROW.get(array.dtype, array.dtype), copy=False)


@functools.cache
def _surroundings() -> tuple[str, ...]:
    """All that a traced function depends on beside the network and the shapes of its inputs."""
    package = Path(latentddpm.__file__).parent
    sources = hashlib.sha256()
    for file in sorted([*package.glob("models/**/*.py"), *package.glob("clip/t*.py")]):
        sources.update(file.read_bytes())
    versions = []
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{name} {importlib.metadata.version(name)}")
    variables = [f"{name}={os.environ[name]}" for name in VARIABLES if name in os.environ]
    units = sorted(processor_flags())
    return sources.hexdigest(), *versions, *variables, processor_name(), *units
