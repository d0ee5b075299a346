"""Layers as operators: for each class of layer the function that adds its operators to a graph.

A function takes the builder, the layer and the names of its inputs, and returns the name of its
output. Operators are ONNX's own, but for two of ONNX Runtime: `MultiHeadAttention`, whose memory
does not grow with the square of the positions, and `QuickGelu`, x · sigmoid(a · x), a SiLU in one
pass. A layer without a function here has no graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from keras import layers

from latentddpm.graphs.builder import GraphBuilder, NoGraph
from latentddpm.models.attention import AttentionBlock
from latentddpm.models.denoisers.time_embedding import TimestepEmbedding
from latentddpm.models.denoisers.transformer import Attention, TransformerBlock
from latentddpm.models.layers import GroupNormalization, PaddedConv2D, ResnetBlock
from latentddpm.models.resample import Upsample

Emit = Callable[..., str]
LAST, ROWS, COLUMNS = 3, 2, 3
TO_MAP, TO_LAST = (0, 3, 1, 2), (0, 2, 3, 1)
KERNEL = (3, 2, 0, 1)  # (H, W, in, out) → (out, in, H, W)
HALVES = (((1, 0, 0), (0, 1, 1)), ((1, 1, 0), (0, 0, 1)))
"""Rows of a 3×3 kernel that meet the same input row, for even and for odd output rows."""


def emit(graph: GraphBuilder, layer: Any, *inputs: Any, **named: Any) -> str:
    """Add the operators of a layer.

    Args:
        graph: to add to.
        layer: of a network.
        inputs, named: of the layer's call; names of tensors, or lists of them.

    Returns:
        Name of the layer's output.

    Raises:
        NoGraph: the layer, or a setting of it, has no operators here.
    """
    # A subclass may compute something else, and a layer of others may have the same name.
    kind = type(layer)
    name = f"{kind.__module__.split('.')[0]}.{kind.__name__}"
    if name not in EMITTERS:
        raise NoGraph(f"layer {layer.name} is a {name}")
    named = {key: value for key, value in named.items() if key not in ("training", "mask")}
    return EMITTERS[name](graph, layer, *inputs, **named)


# --- Convolutions and maps of another size -------------------------------------------------------


def _convolve(graph: GraphBuilder, layer: Any, hidden: str, **padding: Any) -> str:
    """Convolution by the weights of a Keras layer, with the padding as attributes."""
    kernel = graph.op("Transpose", graph.weight(layer.kernel), perm=KERNEL)
    bias = [graph.weight(layer.bias)] if layer.use_bias else []
    if layer.groups != 1 or set(layer.dilation_rate) != {1} or layer.data_format[-4:] != "last":
        raise NoGraph(f"layer {layer.name}: groups, dilation or channels first")
    return graph.op("Conv", hidden, kernel, *bias, strides=layer.strides, **padding)


def _conv2d(graph: GraphBuilder, layer: layers.Conv2D, hidden: str) -> str:
    padding = {"auto_pad": "SAME_UPPER" if layer.padding == "same" else "VALID"}
    return _activate(graph, layer.activation, _convolve(graph, layer, hidden, **padding))


def _padded_conv(graph: GraphBuilder, layer: PaddedConv2D, hidden: str) -> str:
    if layer.padding == "same":
        return _convolve(graph, layer.conv, hidden, auto_pad="SAME_UPPER")
    before, after = zip(*layer.sides, strict=True)
    return _convolve(graph, layer.conv, hidden, pads=(*before, *after))


def _conv_transpose(graph: GraphBuilder, layer: layers.Conv2DTranspose, hidden: str) -> str:
    if layer.padding != "valid" or layer.kernel_size != layer.strides:
        raise NoGraph(f"layer {layer.name}: a transposed convolution that overlaps")
    kernel = graph.op("Transpose", graph.weight(layer.kernel), perm=KERNEL)
    bias = graph.weight(layer.bias)
    hidden = graph.op("ConvTranspose", hidden, kernel, bias, strides=layer.strides)
    return _activate(graph, layer.activation, hidden)


def _max_pool(graph: GraphBuilder, layer: layers.MaxPooling2D, hidden: str) -> str:
    padding = "SAME_UPPER" if layer.padding == "same" else "VALID"
    return graph.op(
        "MaxPool", hidden, kernel_shape=layer.pool_size, strides=layer.strides, auto_pad=padding
    )


def _repeat(graph: GraphBuilder, layer: layers.UpSampling2D, hidden: str) -> str:
    if layer.interpolation != "nearest":
        raise NoGraph(f"layer {layer.name}: interpolation {layer.interpolation}")
    return _nearest(graph, hidden, *layer.size)


def _nearest(graph: GraphBuilder, hidden: str, rows: int, columns: int) -> str:
    scales = graph.constant((1, 1, rows, columns))
    return graph.op(
        "Resize",
        hidden,
        "",
        scales,
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )


def _upsample(graph: GraphBuilder, layer: Upsample, hidden: str, like: str | None = None) -> str:
    """Nearest ×2, then 3×3.

    To the size of another map it is computed as that. Else by one 2×2 convolution that gives the
    four pixels which an input pixel becomes, with 16 instead of 36 multiplications for each. With
    a row of zeros around the input, its position p is over the input rows p − 1 and p: those of
    the even output row 2p and of the odd output row 2p − 1. So `DepthToSpace` puts the odd one
    first, and a row at each side is over.
    """
    conv = layer.conv.conv
    if like is not None:
        repeated = _crop(graph, None, _nearest(graph, hidden, 2, 2), like)
        return _convolve(graph, conv, repeated, pads=(1, 1, 1, 1))
    kernel = graph.op("Transpose", graph.weight(conv.kernel), perm=KERNEL)
    parts = []
    for rows in HALVES[::-1]:
        for columns in HALVES[::-1]:
            half = graph.op("MatMul", graph.constant(rows), kernel)
            half = graph.op("MatMul", half, graph.constant(list(zip(*columns, strict=True))))
            parts.append(half)
    kernel = graph.op("Concat", *parts, axis=0)
    bias = graph.op("Concat", *[graph.weight(conv.bias)] * 4, axis=0)
    hidden = graph.op("Conv", hidden, kernel, bias, pads=(1, 1, 1, 1))
    hidden = graph.op("DepthToSpace", hidden, blocksize=2)
    inner = graph.sizes(1, 1), graph.sizes(-1, -1), graph.sizes(ROWS, COLUMNS)
    return graph.op("Slice", hidden, *inner)


def _crop(graph: GraphBuilder, layer: Any, hidden: str, like: str) -> str:
    ends = graph.op("Shape", like, start=ROWS, end=COLUMNS + 1)
    return graph.op("Slice", hidden, graph.sizes(0, 0), ends, graph.sizes(ROWS, COLUMNS))


# --- Norms, activations, dense layers ------------------------------------------------------------


def _group_norm(graph: GraphBuilder, layer: GroupNormalization, hidden: str) -> str:
    groups, shape = layer.groups, graph.op("Shape", hidden)
    grouped = graph.op("Reshape", hidden, graph.sizes(0, groups, -1))
    ones, zeros = graph.constant([1.0] * groups), graph.constant([0.0] * groups)
    grouped = graph.op("InstanceNormalization", grouped, ones, zeros, epsilon=float(layer.epsilon))
    hidden = graph.op("Reshape", grouped, shape)
    by_channel = graph.sizes(-1, 1, 1)
    scale = graph.op("Reshape", graph.weight(layer.gamma), by_channel)
    shift = graph.op("Reshape", graph.weight(layer.beta), by_channel)
    return graph.op("Add", graph.op("Mul", hidden, scale), shift)


def _layer_norm(graph: GraphBuilder, layer: layers.LayerNormalization, hidden: str) -> str:
    scale, shift = graph.weight(layer.gamma), graph.weight(layer.beta)
    return graph.op(
        "LayerNormalization", hidden, scale, shift, axis=-1, epsilon=float(layer.epsilon)
    )


def _dense(graph: GraphBuilder, layer: layers.Dense, hidden: str) -> str:
    hidden = graph.op("MatMul", hidden, graph.weight(layer.kernel))
    if layer.use_bias:
        hidden = graph.op("Add", hidden, graph.weight(layer.bias))
    return _activate(graph, layer.activation, hidden)


def _activation(graph: GraphBuilder, layer: layers.Activation, hidden: str) -> str:
    return _activate(graph, layer.activation, hidden)


def _activate(graph: GraphBuilder, function: Callable, hidden: str) -> str:
    name = function.__name__
    if name not in ACTIVATIONS:
        raise NoGraph(f"activation {name}")
    return ACTIVATIONS[name](graph, hidden)


def _silu(graph: GraphBuilder, hidden: str) -> str:
    return graph.op("QuickGelu", hidden, alpha=1.0)


def _gelu(graph: GraphBuilder, hidden: str) -> str:
    """x · (1 + erf(x / √2)) / 2, which ONNX Runtime computes in one pass."""
    error = graph.op("Erf", graph.op("Div", hidden, graph.constant(2**0.5)))
    error = graph.op("Add", error, graph.constant(1.0))
    return graph.op("Mul", graph.op("Mul", hidden, error), graph.constant(0.5))


ACTIVATIONS: dict[str, Callable[[GraphBuilder, str], str]] = {
    "linear": lambda graph, hidden: hidden,
    "relu": lambda graph, hidden: graph.op("Relu", hidden),
    "silu": _silu,
    "gelu": _gelu,
    "quick_gelu": lambda graph, hidden: graph.op("QuickGelu", hidden, alpha=1.702),
}


# --- Blocks --------------------------------------------------------------------------------------


def _resnet_block(
    graph: GraphBuilder, layer: ResnetBlock, inputs: str, time_embedding: str | None = None
) -> str:
    hidden = _silu(graph, _group_norm(graph, layer.norm1, inputs))
    hidden = _padded_conv(graph, layer.conv1, hidden)
    time = None
    if time_embedding is not None:
        time = _dense(graph, layer.time, _silu(graph, time_embedding))
        time = graph.op("Unsqueeze", time, graph.sizes(ROWS, COLUMNS))
    if time is not None and not layer.time_scale_shift:
        hidden = graph.op("Add", hidden, time)
    hidden = _group_norm(graph, layer.norm2, hidden)
    if time is not None and layer.time_scale_shift:
        scale, shift = _halves(graph, time, layer.channels, 1)
        scale = graph.op("Add", scale, graph.constant(1.0))
        hidden = graph.op("Add", graph.op("Mul", hidden, scale), shift)
    hidden = _silu(graph, hidden)
    hidden = _padded_conv(graph, layer.conv2, hidden)
    if layer.shortcut is not None:
        inputs = _padded_conv(graph, layer.shortcut, inputs)
    return graph.op("Add", hidden, inputs)


def _halves(graph: GraphBuilder, hidden: str, width: int, axis: int) -> list[str]:
    """Halves of 2 · width channels, along their axis."""
    return [
        graph.op("Slice", hidden, *(graph.sizes(each) for each in (start, start + width, axis)))
        for start in (0, width)
    ]


def _tokens(graph: GraphBuilder, hidden: str) -> str:
    """Map (B, C, H, W) → tokens (B, H · W, C)."""
    hidden = graph.op("Reshape", hidden, graph.sizes(0, 0, -1))
    return graph.op("Transpose", hidden, perm=(0, 2, 1))


def _from_tokens(graph: GraphBuilder, tokens: str, like: str) -> str:
    tokens = graph.op("Transpose", tokens, perm=(0, 2, 1))
    return graph.op("Reshape", tokens, graph.op("Shape", like))


def _attend(graph: GraphBuilder, layer: Any, inputs: str, context: str | None = None) -> str:
    """Attention by the query, key, value and out of a layer."""
    source = inputs if context is None else context
    projected = (
        _dense(graph, layer.query, inputs),
        _dense(graph, layer.key, source),
        _dense(graph, layer.value, source),
    )
    mixed = graph.op("MultiHeadAttention", *projected, num_heads=layer.num_heads)
    return _dense(graph, layer.out, mixed)


def _attention_block(graph: GraphBuilder, layer: AttentionBlock, inputs: str) -> str:
    tokens = _tokens(graph, _group_norm(graph, layer.norm, inputs))
    return graph.op("Add", inputs, _from_tokens(graph, _attend(graph, layer, tokens), inputs))


def _attention(
    graph: GraphBuilder, layer: Attention, inputs: str, context: str | None = None
) -> str:
    return _attend(graph, layer, inputs, context)


def _transformer_block(
    graph: GraphBuilder, layer: TransformerBlock, inputs: str, context: str
) -> str:
    tokens = _tokens(graph, _group_norm(graph, layer.norm, inputs))
    tokens = _dense(graph, layer.proj_in, tokens)
    attended = _attend(graph, layer.self_attention, _layer_norm(graph, layer.norm1, tokens))
    tokens = graph.op("Add", tokens, attended)
    normed = _layer_norm(graph, layer.norm2, tokens)
    tokens = graph.op("Add", tokens, _attend(graph, layer.cross_attention, normed, context))
    hidden = _dense(graph, layer.ff_in, _layer_norm(graph, layer.norm3, tokens))
    width = layer.ff_in.units // 2
    values, gates = _halves(graph, hidden, width, 2)
    hidden = graph.op("Mul", values, _gelu(graph, gates))
    tokens = graph.op("Add", tokens, _dense(graph, layer.ff_out, hidden))
    tokens = _dense(graph, layer.proj_out, tokens)
    return graph.op("Add", inputs, _from_tokens(graph, tokens, inputs))


def _timestep_embedding(graph: GraphBuilder, layer: TimestepEmbedding, timesteps: str) -> str:
    column = graph.op("Unsqueeze", timesteps, graph.sizes(1))
    angles = graph.op("Mul", column, graph.constant(layer.frequencies[None]))
    halves = [graph.op("Cos", angles), graph.op("Sin", angles)]
    return graph.op("Concat", *(halves[::-1] if layer.original else halves), axis=1)


# --- Layers without weights ----------------------------------------------------------------------


def _concatenate(graph: GraphBuilder, layer: layers.Concatenate, inputs: Sequence[str]) -> str:
    if layer.axis not in (-1, LAST):
        raise NoGraph(f"layer {layer.name}: axis {layer.axis}")
    return graph.op("Concat", *inputs, axis=1)


def _add(graph: GraphBuilder, layer: layers.Add, inputs: Sequence[str]) -> str:
    first, *others = inputs
    for other in others:
        first = graph.op("Add", first, other)
    return first


def _reshape(graph: GraphBuilder, layer: layers.Reshape, hidden: str) -> str:
    """One number of a vector of size 1, or a vector as a map of one position."""
    if not layer.target_shape:
        return graph.op("Reshape", hidden, graph.sizes(-1))
    *sides, channels = layer.target_shape
    if sides != [1, 1]:
        raise NoGraph(f"layer {layer.name}: shape {layer.target_shape}")
    return graph.op("Reshape", hidden, graph.sizes(0, channels, 1, 1))


# --- CLIP's text transformer --------------------------------------------------------


def _token_embedding(graph: GraphBuilder, layer: Any, ids: str) -> str:
    table = graph.weight(layer.token_embedding.embeddings)
    positions = graph.weight(layer.position_embedding.embeddings)
    length = graph.op("Shape", ids, start=1, end=2)
    positions = graph.op("Slice", positions, graph.sizes(0), length, graph.sizes(0))
    return graph.op("Add", graph.op("Gather", table, ids), positions)


def _clip_block(graph: GraphBuilder, layer: Any, inputs: str) -> str:
    normed = _layer_norm(graph, layer.layer_norm_1, inputs)
    attention = layer.attention
    projected = []
    for dense in (attention.query_dense, attention.key_dense, attention.value_dense):
        kernel = graph.op("Reshape", graph.weight(dense.kernel), graph.sizes(0, -1))
        bias = graph.op("Reshape", graph.weight(dense.bias), graph.sizes(-1))
        projected.append(graph.op("Add", graph.op("MatMul", normed, kernel), bias))
    mixed = graph.op("MultiHeadAttention", *projected, num_heads=layer.num_heads, unidirectional=1)
    out = attention.output_dense
    kernel = graph.op("Reshape", graph.weight(out.kernel), graph.sizes(-1, layer.hidden_dim))
    mixed = graph.op("Add", graph.op("MatMul", mixed, kernel), graph.weight(out.bias))
    hidden = graph.op("Add", inputs, mixed)
    normed = _layer_norm(graph, layer.layer_norm_2, hidden)
    inner = ACTIVATIONS[layer.activation](graph, _dense(graph, layer.dense_1, normed))
    return graph.op("Add", hidden, _dense(graph, layer.dense_2, inner))


EMITTERS: dict[str, Emit] = {
    "latentddpm.PaddedConv2D": _padded_conv,
    "keras.Conv2D": _conv2d,
    "keras.Conv2DTranspose": _conv_transpose,
    "keras.MaxPooling2D": _max_pool,
    "keras.UpSampling2D": _repeat,
    "latentddpm.Upsample": _upsample,
    "latentddpm.CropLike": _crop,
    "latentddpm.GroupNormalization": _group_norm,
    "keras.LayerNormalization": _layer_norm,
    "keras.Dense": _dense,
    "latentddpm.Dense": _dense,
    "keras.Activation": _activation,
    "latentddpm.ResnetBlock": _resnet_block,
    "latentddpm.AttentionBlock": _attention_block,
    "latentddpm.Attention": _attention,
    "latentddpm.TransformerBlock": _transformer_block,
    "latentddpm.TimestepEmbedding": _timestep_embedding,
    "keras.Concatenate": _concatenate,
    "keras.Add": _add,
    "keras.Reshape": _reshape,
    "latentddpm.TokenAndPositionEmbedding": _token_embedding,
    "latentddpm.CLIPEncoderLayer": _clip_block,
}
"""Package and name of a layer's class → its function."""
