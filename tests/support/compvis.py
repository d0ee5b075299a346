"""A tiny Stable Diffusion 1.x under CompVis' names, written without the package's own tables.

Shapes come from the layers' sizes, one by one; weights from a generator that NumPy keeps the
same in all versions (`RandomState`), seeded by the tensor's name: so a golden file needs to
hold outputs only.
"""

import json
import zlib

import numpy as np

CHANNELS, CONTEXT, TOKENS, POSITIONS = 32, 64, 49_408, 77
SCHEDULE = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)


def weight(name, shape, dtype="float32"):
    numbers = np.random.RandomState(zlib.crc32(name.encode()))
    values = numbers.standard_normal(shape)
    if name.endswith("weight") and len(shape) == 1:  # of a norm
        values = 1 + values / 4
    elif name.endswith("bias"):
        values = values / 4
    elif "embedding" in name:
        values = values / 2
    else:
        values = values / np.sqrt(np.prod(shape[1:]))
    return values.astype(dtype)


class Shapes(dict):
    """Names and shapes of a network, layer by layer."""

    def conv(self, name, inputs, outputs, side=3):
        self.update({f"{name}.weight": (outputs, inputs, side, side), f"{name}.bias": (outputs,)})

    def dense(self, name, inputs, outputs, bias=True):
        self[f"{name}.weight"] = (outputs, inputs)
        if bias:
            self[f"{name}.bias"] = (outputs,)

    def norm(self, name, width):
        self.update({f"{name}.weight": (width,), f"{name}.bias": (width,)})


def unet_shapes(in_channels=4, linear=False, context=CONTEXT):
    """Two levels (32, 64), one block a level, attention in the first."""
    s = Shapes()
    c, d, t = CHANNELS, 2 * CHANNELS, 4 * CHANNELS

    def block(name, inputs, outputs):
        s.norm(f"{name}.in_layers.0", inputs)
        s.conv(f"{name}.in_layers.2", inputs, outputs)
        s.dense(f"{name}.emb_layers.1", t, outputs)
        s.norm(f"{name}.out_layers.0", outputs)
        s.conv(f"{name}.out_layers.3", outputs, outputs)
        if inputs != outputs:
            s.conv(f"{name}.skip_connection", inputs, outputs, 1)

    def transformer(name, width):
        s.norm(f"{name}.norm", width)
        for projection in ("proj_in", "proj_out"):
            if linear:
                s.dense(f"{name}.{projection}", width, width)
            else:
                s.conv(f"{name}.{projection}", width, width, 1)
        inner = f"{name}.transformer_blocks.0"
        for attention, source in (("attn1", width), ("attn2", context)):
            s.dense(f"{inner}.{attention}.to_q", width, width, bias=False)
            s.dense(f"{inner}.{attention}.to_k", source, width, bias=False)
            s.dense(f"{inner}.{attention}.to_v", source, width, bias=False)
            s.dense(f"{inner}.{attention}.to_out.0", width, width)
        s.dense(f"{inner}.ff.net.0.proj", width, 8 * width)
        s.dense(f"{inner}.ff.net.2", 4 * width, width)
        for norm in ("norm1", "norm2", "norm3"):
            s.norm(f"{inner}.{norm}", width)

    s.dense("time_embed.0", c, t)
    s.dense("time_embed.2", t, t)
    s.conv("input_blocks.0.0", in_channels, c)
    block("input_blocks.1.0", c, c)
    transformer("input_blocks.1.1", c)
    s.conv("input_blocks.2.0.op", c, c)
    block("input_blocks.3.0", c, d)
    block("middle_block.0", d, d)
    transformer("middle_block.1", d)
    block("middle_block.2", d, d)
    block("output_blocks.0.0", d + d, d)
    block("output_blocks.1.0", d + c, d)
    s.conv("output_blocks.1.1.conv", d, d)
    block("output_blocks.2.0", d + c, c)
    transformer("output_blocks.2.1", c)
    block("output_blocks.3.0", c + c, c)
    transformer("output_blocks.3.1", c)
    s.norm("out.0", c)
    s.conv("out.2", c, 4)
    return dict(s)


def vae_shapes():
    """Three levels (32, 64, 64), one block a level."""
    s = Shapes()
    c, d = CHANNELS, 2 * CHANNELS

    def block(name, inputs, outputs):
        s.norm(f"{name}.norm1", inputs)
        s.conv(f"{name}.conv1", inputs, outputs)
        s.norm(f"{name}.norm2", outputs)
        s.conv(f"{name}.conv2", outputs, outputs)
        if inputs != outputs:
            s.conv(f"{name}.nin_shortcut", inputs, outputs, 1)

    def middle(name):
        block(f"{name}.mid.block_1", d, d)
        s.norm(f"{name}.mid.attn_1.norm", d)
        for layer in ("q", "k", "v", "proj_out"):
            s.conv(f"{name}.mid.attn_1.{layer}", d, d, 1)
        block(f"{name}.mid.block_2", d, d)

    s.conv("encoder.conv_in", 3, c)
    block("encoder.down.0.block.0", c, c)
    s.conv("encoder.down.0.downsample.conv", c, c)
    block("encoder.down.1.block.0", c, d)
    s.conv("encoder.down.1.downsample.conv", d, d)
    block("encoder.down.2.block.0", d, d)
    middle("encoder")
    s.norm("encoder.norm_out", d)
    s.conv("encoder.conv_out", d, 8)
    s.conv("quant_conv", 8, 8, 1)
    s.conv("post_quant_conv", 4, 4, 1)
    s.conv("decoder.conv_in", 4, d)
    middle("decoder")
    for level, inputs, outputs in ((2, d, d), (1, d, d), (0, d, c)):
        block(f"decoder.up.{level}.block.0", inputs, outputs)
        block(f"decoder.up.{level}.block.1", outputs, outputs)
        if level:
            s.conv(f"decoder.up.{level}.upsample.conv", outputs, outputs)
    s.norm("decoder.norm_out", c)
    s.conv("decoder.conv_out", c, 3)
    return dict(s)


def text_shapes(layers=1, width=CONTEXT, inner=2 * CONTEXT):
    """CLIP's text encoder; one layer, one head of 64."""
    s = Shapes()
    s["embeddings.token_embedding.weight"] = (TOKENS, width)
    s["embeddings.position_embedding.weight"] = (POSITIONS, width)
    for layer in range(layers):
        block = f"encoder.layers.{layer}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            s.dense(f"{block}.self_attn.{name}", width, width)
        s.norm(f"{block}.layer_norm1", width)
        s.dense(f"{block}.mlp.fc1", width, inner)
        s.dense(f"{block}.mlp.fc2", inner, width)
        s.norm(f"{block}.layer_norm2", width)
    s.norm("final_layer_norm", width)
    return dict(s)


PREFIXES = {
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "text": "cond_stage_model.transformer.text_model.",
}
SHAPES = {"unet": unet_shapes, "vae": vae_shapes, "text": text_shapes}


def tensors(*parts, dtype="float32", **unet):
    """The tensors of some of "unet", "vae", "text" (all: the whole checkpoint)."""
    found = {}
    for part in parts or PREFIXES:
        shapes = unet_shapes(**unet) if part == "unet" else SHAPES[part]()
        for name, shape in shapes.items():
            name = PREFIXES[part] + name
            found[name] = weight(name, shape, dtype)
    return found


def whole(**changes):
    """A checkpoint as they are found: with the buffers that belong to no network."""
    return {
        **tensors(**changes),
        "cond_stage_model.transformer.text_model.embeddings.position_ids": np.arange(77)[None],
        "betas": (np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2).astype("float32"),
        "alphas_cumprod": SCHEDULE.astype("float32"),
        "model_ema.decay": np.array(0.9999, "float32"),
        "model_ema.num_updates": np.array(1, "int32"),
        "model_ema.diffusion_modelout2bias": np.zeros(4, "float32"),
        "first_stage_model.loss.logvar": np.array(0, "float32"),
    }


def write_sparse(path, shapes, dtype="F32", size=4):
    """A safetensors file of zeros that takes no place on the disk, however large it says it is."""
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + size * int(np.prod(shape))
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
