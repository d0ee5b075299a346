"""LiteRT (TensorFlow Lite): one `.tflite` file for each part.

    function ─trace─► TensorFlow graph with weights ─TFLiteConverter─► PART.tflite

TensorFlow's converter needs only built-in operations, no Flex delegate. From a SavedModel it loses
known shapes, and then refuses a convolution. From a function it keeps them, but writes no
signature, so the names are added afterwards.

All sizes are free. A signature runner resizes the inputs itself; with an interpreter
`resize_tensor_input` has to be called. Offsets in the file have 31 bits, so a part of over 2 GB is
refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tensorflow as tf

from latentddpm.errors import UserError
from latentddpm.export.endpoints import Arrays, Endpoint, Run

SUFFIX = ".tflite"
LARGEST = 2_000_000_000  # bytes of weights
FILE_IDENTIFIER = b"TFL3"


def write(endpoint: Endpoint, file: Path) -> Run:
    """Convert `endpoint`, write it to `file`, and open that with LiteRT.

    Returns:
        A function that runs the file.

    Raises:
        UserError: more than `LARGEST` bytes of weights.
    """
    from ai_edge_litert.interpreter import Interpreter

    if endpoint.bytes > LARGEST:
        raise UserError(
            f"format litert: {endpoint.part} has {endpoint.bytes / 1e9:.1f} GB of weights, a "
            ".tflite file holds 2 GB; use 'onnx' or 'saved-model'"
        )
    traced = tf.function(endpoint.function, input_signature=endpoint.inputs)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([traced.get_concrete_function()])
    file.write_bytes(with_signature(converter.convert(), endpoint))
    interpreter = Interpreter(model_path=str(file))
    interpreter.allocate_tensors()  # writes to stderr, which the caller hides
    runner = interpreter.get_signature_runner(endpoint.name)

    def run(inputs: Arrays) -> Arrays:
        return runner(**inputs)

    return run


def with_signature(content: bytes, endpoint: Endpoint) -> bytes:
    """Add the signature of an endpoint to a converted model.

    Args:
        content: of the `.tflite` file.
        endpoint: with the names of the inputs and outputs.

    Returns:
        The new content of the file.
    """
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(content)
    graph = model.subgraphs[0]

    def named(names: list[str], tensors: Any) -> list[Any]:
        entries = []
        for name, tensor in zip(names, tensors, strict=True):
            entry = schema.TensorMapT()
            entry.name, entry.tensorIndex = name, tensor
            entries.append(entry)
        return entries

    signature = schema.SignatureDefT()
    signature.signatureKey, signature.subgraphIndex = endpoint.name, 0
    signature.inputs = named([spec.name for spec in endpoint.inputs], graph.inputs)
    # Tensors of a dictionary are in the order of its sorted keys.
    signature.outputs = named(sorted(endpoint.outputs), graph.outputs)
    model.signatureDefs = [signature]
    builder = flatbuffers.Builder(len(content))
    builder.Finish(model.Pack(builder), file_identifier=FILE_IDENTIFIER)
    return bytes(builder.Output())
