"""ONNX: one file for each part, for ONNX Runtime and other programs.

    function of inputs and weights ─trace─► TensorFlow graph ─tf2onnx─► ONNX graph without weights
                                                      + weights ─► PART.onnx [+ PART.onnx.data]

tf2onnx has converters of a single call, but its steps are called one by one, for three reasons:

- Its passes keep many copies of every constant (20 were measured). So weights are inputs during
  the conversion, and become initializers afterwards.
- Its pass `remove_back_to_back`, which merges neighbouring reshapes, breaks those with free sizes:
  a 0 in an ONNX shape means "as in the input", and after merging the input is another one. Only
  the passes in `PASSES` run.
- It does not know `Erfc`, with which TensorFlow computes the exact GELU: erfc(x) = 1 − erf(x).

A file cannot be larger than 2 GB. Weights of a larger part are in a second file
(`EXTERNAL_ABOVE`).
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from latentddpm.export.endpoints import Arrays, Endpoint, Run

SUFFIX = ".onnx"
OPSET = 18  # ONNX Runtime ≥ 1.14
EXTERNAL_ABOVE = 1_900_000_000  # bytes of weights; a protobuf is smaller than 2³¹
PASSES = (  # of tf2onnx's optimizer, in its order
    "optimize_transpose",
    "fold_constants",
    "merge_duplication",
    "reshape_optimizer",
    "remove_identity",
)


def write(endpoint: Endpoint, file: Path) -> Run:
    """Convert `endpoint`, write it to `file`, and open that with ONNX Runtime.

    Returns:
        A function that runs the file.
    """
    import onnx
    import onnxruntime

    proto = convert(endpoint)
    external = {}
    if endpoint.bytes > EXTERNAL_ABOVE:
        external = {"save_as_external_data": True, "location": f"{file.name}.data"}
    onnx.save_model(proto, str(file), **external)
    for each in file.parent.glob(f"{file.name}*"):
        each.chmod(0o644)  # onnx makes the second file readable for its owner only
    del proto  # as large as the network
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only; warnings are about its own optimisations
    session = onnxruntime.InferenceSession(str(file), options, ["CPUExecutionProvider"])

    def run(inputs: Arrays) -> Arrays:
        return dict(zip(endpoint.outputs, session.run(endpoint.outputs, inputs), strict=True))

    return run


def convert(endpoint: Endpoint) -> Any:
    """Graph of an `endpoint` as an ONNX `ModelProto`, with named inputs and outputs."""
    import tf2onnx
    from tf2onnx import optimizer, tf_loader, tfonnx

    logging.getLogger("tf2onnx").setLevel(logging.ERROR)
    weights = {f"weight_{i}": variable for i, variable in enumerate(endpoint.network.weights)}
    concrete = _traced(endpoint, weights)
    inputs = [tensor.name for tensor in concrete.inputs]
    # Tensors of a dictionary are in the order of its sorted keys.
    by_name = dict(zip(sorted(endpoint.outputs), concrete.outputs, strict=True))
    outputs = [by_name[name].name for name in endpoint.outputs]
    names = [*(spec.name for spec in endpoint.inputs), *weights, *endpoint.outputs]

    graph_def = tf_loader.from_function(concrete, inputs, outputs)
    with tf.Graph().as_default() as tf_graph:
        tf.import_graph_def(graph_def, name="")
        graph = tfonnx.process_tf_graph(
            tf_graph,
            opset=OPSET,
            custom_op_handlers={"Erfc": (_erfc, [])},
            input_names=inputs,
            output_names=outputs,
            tensors_to_rename=dict(zip([*inputs, *outputs], names, strict=True)),
        )
    passes = optimizer._get_optimizers()
    graph = optimizer.optimize_graph(
        graph, catch_errors=False, optimizers={name: passes[name] for name in PASSES}
    )
    proto = graph.make_model(f"latentddpm {endpoint.part}, by tf2onnx {tf2onnx.__version__}")
    _put_in_weights(proto.graph, weights)
    for value in (*proto.graph.input, *proto.graph.output):
        for axis, dimension in zip(
            endpoint.axes(value.name), value.type.tensor_type.shape.dim, strict=False
        ):
            dimension.dim_param = axis
    return proto


def _traced(endpoint: Endpoint, weights: dict[str, keras.Variable]) -> Any:
    """Concrete function of an endpoint, of its inputs and then its weights."""
    count = len(endpoint.inputs)

    def function(*tensors: tf.Tensor) -> dict[str, tf.Tensor]:
        state = list(zip(weights.values(), tensors[count:], strict=True))
        with keras.StatelessScope(state_mapping=state):
            return endpoint.function(*tensors[:count])

    specs = [tf.TensorSpec(each.shape, each.dtype, name) for name, each in weights.items()]
    return tf.function(function).get_concrete_function(*endpoint.inputs, *specs)


def _put_in_weights(graph: Any, weights: dict[str, keras.Variable]) -> None:
    """Turn inputs that are weights into initializers; transposed weights are stored transposed."""
    from onnx import numpy_helper

    def store(name: str, values: np.ndarray) -> None:
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values), name))

    nodes = []
    for node in graph.node:
        if node.op_type == "Transpose" and node.input[0] in weights:
            values = keras.ops.convert_to_numpy(weights[node.input[0]])
            store(node.output[0], values.transpose(node.attribute[0].ints))
        else:
            nodes.append(node)
    used = {name for node in nodes for name in node.input}
    for name in used & set(weights):
        store(name, keras.ops.convert_to_numpy(weights[name]))
    inputs = [value for value in graph.input if value.name not in weights]
    for field, kept in ((graph.node, nodes), (graph.input, inputs)):
        del field[:]
        field.extend(kept)


def _erfc(context: Any, node: Any, name: str, args: Any) -> None:
    """Handler of the operation Erfc for tf2onnx: erfc(x) = 1 − erf(x)."""
    node.type = "Erf"
    one = context.make_const(f"{name}_one", np.array(1.0, np.float32)).output[0]
    context.insert_new_node_on_output("Sub", node.output[0], inputs=[one, node.output[0]])
