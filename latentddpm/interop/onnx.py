"""ONNX: one file for each part, that ONNX Runtime and others run.

    function ─trace─► TensorFlow graph ─tf2onnx─► ONNX graph ─► PART.onnx [+ PART.onnx.data]

tf2onnx's one-call converters do not serve here, so its steps are taken one by one:

- its pass that merges neighbouring reshapes (`remove_back_to_back`) breaks those whose sizes
  are free: a 0 in an ONNX shape means "as in the input", and afterwards the input is another
  one. Only the passes in `PASSES` run;
- it knows no `Erfc`, in which TensorFlow writes the exact GELU: erfc(x) = 1 − erf(x);
- weights never pass through a serialised graph, which may not exceed 2 GB. The file may not
  either: a part that would goes without its weights, which lie beside it (`EXTERNAL_ABOVE`).
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from latentddpm.interop.endpoints import AXES, Arrays, Endpoint, Run

TOOLS = ("onnx", "tf2onnx", "onnxruntime")
SUFFIX = ".onnx"
OPSET = 18  # ONNX Runtime ≥ 1.14
EXTERNAL_ABOVE = 1_900_000_000  # bytes of weights; a protobuf ends at 2³¹
PASSES = (  # of tf2onnx's optimizer, in its order
    "optimize_transpose",
    "fold_constants",
    "merge_duplication",
    "reshape_optimizer",
    "remove_identity",
)


def write(endpoint: Endpoint, file: Path) -> Run:
    """Convert `endpoint`, write `file`, and open it with ONNX Runtime."""
    import onnx
    import onnxruntime

    proto = convert(endpoint)
    external = {}
    if endpoint.bytes > EXTERNAL_ABOVE:
        external = {"save_as_external_data": True, "location": f"{file.name}.data"}
    onnx.save_model(proto, str(file), **external)
    del proto  # as large as the network
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors; its warnings are about its own optimisations
    session = onnxruntime.InferenceSession(str(file), options, ["CPUExecutionProvider"])

    def run(inputs: Arrays) -> Arrays:
        return dict(zip(endpoint.outputs, session.run(endpoint.outputs, inputs), strict=True))

    return run


def convert(endpoint: Endpoint) -> Any:
    """The ONNX `ModelProto` of an endpoint, inputs and outputs by their names."""
    import tf2onnx
    from tf2onnx import optimizer, tf_loader, tf_utils, tfonnx

    logging.getLogger("tf2onnx").setLevel(logging.ERROR)
    traced = tf.function(endpoint.function, input_signature=endpoint.inputs)
    concrete = traced.get_concrete_function()
    inputs = [tensor.name for tensor in concrete.inputs if tensor.dtype != tf.resource]
    # A dictionary's tensors come in the order of its sorted keys.
    by_name = dict(zip(sorted(endpoint.outputs), concrete.outputs, strict=True))
    outputs = [by_name[name].name for name in endpoint.outputs]
    names = [*(spec.name for spec in endpoint.inputs), *endpoint.outputs]

    graph_def = tf_loader.from_function(concrete, inputs, outputs, large_model=True)
    weights = tf_utils.compress_graph_def(graph_def)
    with tf.Graph().as_default() as tf_graph:
        tf.import_graph_def(graph_def, name="")
        graph = tfonnx.process_tf_graph(
            tf_graph,
            opset=OPSET,
            custom_op_handlers={"Erfc": (_erfc, [])},
            input_names=inputs,
            output_names=outputs,
            tensors_to_rename=dict(zip([*inputs, *outputs], names, strict=True)),
            const_node_values=weights,
        )
    passes = optimizer._get_optimizers()
    graph = optimizer.optimize_graph(
        graph, catch_errors=False, optimizers={name: passes[name] for name in PASSES}
    )
    proto = graph.make_model(f"latentddpm {endpoint.part}, by tf2onnx {tf2onnx.__version__}")
    for value in (*proto.graph.input, *proto.graph.output):
        for axis, dimension in zip(
            AXES[value.name], value.type.tensor_type.shape.dim, strict=False
        ):
            dimension.dim_param = axis
    return proto


def _erfc(context: Any, node: Any, name: str, args: Any) -> None:
    """tf2onnx's handler of an operation: erfc(x) = 1 − erf(x)."""
    node.type = "Erf"
    one = context.make_const(f"{name}_one", np.array(1.0, np.float32)).output[0]
    context.insert_new_node_on_output("Sub", node.output[0], inputs=[one, node.output[0]])
