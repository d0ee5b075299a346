"""Names of CLIP's tensors in transformers, and the variables of our encoders that hold them."""

from __future__ import annotations

from collections.abc import Iterator

Shape = tuple[int, ...]

RENAMED = {
    "query_dense": "query",
    "key_dense": "key",
    "value_dense": "value",
    "output_dense": "attention_output",
}
"""Attribute of KerasHub's attention → name of the layer in the paths of its variables."""


def clip_variables(sizes: dict[str, int]) -> Iterator[tuple[str, Shape, str, str]]:
    """Map of the tensors of a text encoder of some `sizes`.

    Yields:
        transformers' name without prefix, shape, our layer, and the attribute of the layer.
    """
    width = sizes["hidden_dim"]
    for part, rows, attribute in (
        ("token_embedding", sizes["vocabulary_size"], "token_embedding.embeddings"),
        ("position_embedding", sizes["context_length"], "position_embedding.embeddings"),
    ):
        yield f"embeddings.{part}.weight", (rows, width), "embedding", attribute
    yield from block_variables(sizes)
    yield "final_layer_norm.weight", (width,), "layer_norm", "gamma"
    yield "final_layer_norm.bias", (width,), "layer_norm", "beta"


def block_variables(sizes: dict[str, int]) -> Iterator[tuple[str, Shape, str, str]]:
    """Map of the tensors of the transformer blocks, in encoders of text and of images."""
    width, inner = sizes["hidden_dim"], sizes["intermediate_dim"]
    for i in range(sizes["num_layers"]):
        block, ours = f"encoder.layers.{i}", f"encoder_block_{i}"
        for k in (1, 2):
            yield f"{block}.layer_norm{k}.weight", (width,), ours, f"layer_norm_{k}.gamma"
            yield f"{block}.layer_norm{k}.bias", (width,), ours, f"layer_norm_{k}.beta"
        for part, shape, attribute in (
            ("self_attn.q_proj", (width, width), "attention.query_dense"),
            ("self_attn.k_proj", (width, width), "attention.key_dense"),
            ("self_attn.v_proj", (width, width), "attention.value_dense"),
            ("self_attn.out_proj", (width, width), "attention.output_dense"),
            ("mlp.fc1", (inner, width), "dense_1"),
            ("mlp.fc2", (width, inner), "dense_2"),
        ):
            yield f"{block}.{part}.weight", shape, ours, f"{attribute}.kernel"
            yield f"{block}.{part}.bias", shape[:1], ours, f"{attribute}.bias"


def linear_maps(sizes: dict[str, int]) -> Iterator[tuple[str, Shape, str]]:
    """Linear maps of a text encoder of some `sizes`.

    Yields:
        transformers' name without prefix and ".weight", shape (out, in), and the path of the
        kernel's variable.
    """
    for name, shape, layer, attribute in block_variables(sizes):
        *parts, kind = attribute.split(".")
        if kind == "kernel":
            inner = "/".join(RENAMED.get(part, part) for part in parts)
            yield name.removesuffix(".weight"), shape, f"{layer}/{inner}/kernel"
