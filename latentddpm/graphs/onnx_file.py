"""ONNX file: a graph of nodes as the bytes of a `ModelProto`, written without the package onnx.

    message   = (field number · 8 + wire type) value, for each field        (protobuf's encoding)
    wire type   0 a varint, 2 length and bytes, 5 four bytes

Field numbers are those of `onnx.proto3`. Weights are not in the file: an initializer has a name,
a shape and the location "weights", and the program that opens the graph hands over its values.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

IR_VERSION = 8
OPSETS = {"": 18, "com.microsoft": 1}  # ONNX Runtime ≥ 1.14, and its own operators
LOCATION = "weights"
FLOAT, INT32, INT64 = 1, 6, 7
TYPES = {"float32": FLOAT, "int32": INT32, "int64": INT64}
EXTERNAL = 1


@dataclass(frozen=True)
class Node:
    """Node of a graph.

    Attributes:
        kind: operator, such as "Conv".
        inputs, outputs: names of tensors; "" for an input that is left out.
        attributes: values by name: whole numbers, floats, text, or lists of whole numbers.
        domain: "" for ONNX's own operators.
    """

    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    domain: str = ""


@dataclass(frozen=True)
class Tensor:
    """Tensor that goes in or out of a graph.

    Attributes:
        name: of the tensor.
        shape: sizes of its axes; a text names a free one.
        dtype: a key of `TYPES`.
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: str = "float32"


def model_bytes(
    name: str,
    nodes: Iterable[Node],
    inputs: Iterable[Tensor],
    outputs: Iterable[Tensor],
    constants: Mapping[str, np.ndarray],
    weights: Mapping[str, Sequence[int]],
    properties: Mapping[str, str],
) -> bytes:
    """Bytes of an ONNX model.

    Args:
        name: of the graph.
        nodes: in the order of computation.
        inputs, outputs: of the graph.
        constants: values by name, kept in the file.
        weights: shapes of float32 tensors by name, whose values are not in the file.
        properties: of the model, text by name.
    """
    graph = b"".join(
        (
            *(_field(1, _node(node)) for node in nodes),
            _field(2, name),
            *(_field(5, _constant(key, value)) for key, value in constants.items()),
            *(_field(5, _weight(key, shape)) for key, shape in weights.items()),
            *(_field(11, _tensor(tensor)) for tensor in inputs),
            *(_field(12, _tensor(tensor)) for tensor in outputs),
        )
    )
    opsets = (_field(1, domain) + _field(2, version) for domain, version in OPSETS.items())
    return b"".join(
        (
            _field(1, IR_VERSION),
            _field(2, "latentddpm"),
            _field(7, graph),
            *(_field(8, opset) for opset in opsets),
            *(_field(14, _field(1, key) + _field(2, text)) for key, text in properties.items()),
        )
    )


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1  # negative numbers as two's complement
    groups = bytearray()
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    groups.append(value)
    return bytes(groups)


def _field(number: int, value: int | float | str | bytes) -> bytes:
    if isinstance(value, float):
        return _varint(number << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    data = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _node(node: Node) -> bytes:
    return b"".join(
        (
            *(_field(1, name) for name in node.inputs),
            *(_field(2, name) for name in node.outputs),
            _field(4, node.kind),
            *(_field(5, _attribute(*each)) for each in node.attributes.items()),
            *([_field(7, node.domain)] if node.domain else []),
        )
    )


def _attribute(name: str, value: Any) -> bytes:
    """Attribute: field 20 is its type, and its value is in a field of its own for each type."""
    if isinstance(value, float):
        content = _field(2, value) + _field(20, 1)
    elif isinstance(value, int):
        content = _field(3, value) + _field(20, 2)
    elif isinstance(value, str):
        content = _field(4, value) + _field(20, 3)
    else:
        content = b"".join(_field(8, int(each)) for each in value) + _field(20, 7)
    return _field(1, name) + content


def _dimensions(shape: Iterable[int]) -> bytes:
    return b"".join(_field(1, int(size)) for size in shape)


def _constant(name: str, value: np.ndarray) -> bytes:
    value = np.asarray(value)
    kind, data = TYPES[value.dtype.name], value.astype(value.dtype.newbyteorder("<")).tobytes()
    return _dimensions(value.shape) + _field(2, kind) + _field(8, name) + _field(9, data)


def _weight(name: str, shape: Sequence[int]) -> bytes:
    place = _field(1, "location") + _field(2, LOCATION)
    head = _dimensions(shape) + _field(2, FLOAT) + _field(8, name)
    return head + _field(13, place) + _field(14, EXTERNAL)


def _tensor(tensor: Tensor) -> bytes:
    sizes = b"".join(
        _field(1, _field(2 if isinstance(size, str) else 1, size)) for size in tensor.shape
    )
    kind = _field(1, TYPES[tensor.dtype]) + _field(2, sizes)
    return _field(1, tensor.name) + _field(2, _field(1, kind))
