"""Graph file (`.onnx`): which weights it wants, read without a library of ONNX.

An ONNX file is a message of Protocol Buffers: pairs of a key and a value, where the key holds the
number of a field and how its value is written (protobuf.dev/programming-guides/encoding). Of
`onnx.proto` only these fields are read:

    ModelProto    7 graph, 14 metadata_props
    GraphProto    5 initializer
    TensorProto   1 dims, 8 name, 14 data_location (1: EXTERNAL)
    properties    1 key, 2 value

An initializer whose data is external is a weight: its name is that of the dataset in the `.keras`
archive, and its values are bound when the graph is opened.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
EXTERNAL = 1
PATHS = "paths"
"""Property of a graph: JSON of the path of each variable → name of its weight."""


class GraphFile(NamedTuple):
    """Graph file that was read.

    Attributes:
        content: of the file.
        weights: name → shape of each weight that it wants.
        properties: of the model, text by name.
    """

    content: bytes
    weights: dict[str, tuple[int, ...]]
    properties: dict[str, str]

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights in float32."""
        return 4 * sum(map(math.prod, self.weights.values()))


def read_graph_file(path: str | Path) -> GraphFile:
    """Graph file, with the names and shapes of the weights that it wants.

    Args:
        path: of the file.

    Raises:
        ValueError: it is damaged.
        OSError: it cannot be read.
    """
    content = Path(path).read_bytes()
    weights, properties = {}, {}
    try:
        for number, value in _fields(content):
            if number == 7:
                weights = dict(_weights(value))
            elif number == 14:
                pair = dict(_fields(value))
                properties[str(pair[1], "utf-8")] = str(pair.get(2, b""), "utf-8")
    except (IndexError, KeyError, TypeError, UnicodeError) as error:
        raise ValueError(f"{path}: not a graph of ONNX ({error})") from None
    return GraphFile(content, weights, properties)


def _weights(graph: memoryview) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the initializers without data."""
    for number, tensor in _fields(graph):
        if number != 5:
            continue
        dims, name, location = [], "", 0
        for field, value in _fields(tensor):
            if field == 1:
                dims += [value] if isinstance(value, int) else _varints(value)
            elif field == 8:
                name = str(value, "utf-8")
            elif field == 14:
                location = value
        if location == EXTERNAL:
            yield name, tuple(dims)


def _fields(message: bytes | memoryview) -> Iterator[tuple[int, Any]]:
    """Number and value of each field: a whole number, or the bytes of it."""
    message, at = memoryview(message), 0
    while at < len(message):
        key, at = _varint(message, at)
        number, kind = key >> 3, key & 7
        if kind == VARINT:
            value, at = _varint(message, at)
        elif kind == BYTES:
            size, at = _varint(message, at)
            value, at = message[at : at + size], at + size
            if len(value) != size:
                raise IndexError("it is cut off")
        elif kind in (FIXED64, FIXED32):
            size = 8 if kind == FIXED64 else 4
            value, at = message[at : at + size], at + size
        else:
            raise TypeError(f"field {number} of kind {kind}")
        yield number, value


def _varints(packed: memoryview) -> list[int]:
    """Whole numbers, one after the other."""
    found, at = [], 0
    while at < len(packed):
        value, at = _varint(packed, at)
        found.append(value)
    return found


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """Whole number of any length, 7 bits a byte, and where it ends."""
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
        if shift > 63:
            raise TypeError("a number of more than 64 bits")
