"""Choices of options: samplers with their options and spacings, formats; without Keras.

`--help` lists them and options are checked against them before Keras is loaded. The meaning of
those of sampling is defined in `diffusion.samplers`; a test compares the two.
"""

SAMPLERS = {
    "ddpm": ("steps_offset",),
    "ddim": ("steps_offset", "eta", "set_alpha_to_one"),
    "dpmpp_2m": ("steps_offset", "sigma_spacing"),
    "euler": ("steps_offset", "sigma_spacing"),
    "euler_ancestral": ("steps_offset", "sigma_spacing"),
    "heun": ("steps_offset", "sigma_spacing"),
    "pndm": ("steps_offset", "set_alpha_to_one"),
    "unipc": ("steps_offset", "sigma_spacing"),
}
"""Name of each sampler → the options that it takes."""

SAMPLER_OPTIONS = {
    "steps_offset": int,
    "eta": float,
    "set_alpha_to_one": bool,
    "sigma_spacing": str,
}
"""Type of each sampler option."""

TIMESTEP_SPACINGS = ("leading", "trailing", "linspace")
SIGMA_SPACINGS = ("timesteps", "karras")

FIRST_STAGES = ("autoencoder", "none")
"""What is between pixels and latents; with "none" the model diffuses pixels."""

DENOISERS = {
    "unet": (
        *("channels", "channel_multipliers", "num_res_blocks", "attention_levels", "num_heads"),
        *("norm_groups", "dropout", "recompute"),
    ),
    "classic": ("channels", "channel_multipliers"),
    "basic": (),
}
"""Kind of each network that denoises, `unet.kind` → the settings of `unet:` that it takes. Their
classes are in `models.denoisers.kinds`; a test compares the two."""
CONDITIONAL = ("unet",)
"""Kinds of networks that take text."""

STORAGE = ("float32", "float16")
"""Precisions in which weights are stored."""

CONVERSIONS = ("diffusers",)
"""Formats of other libraries that `convert --to` writes."""

EXPORTS = {
    "keras": (),
    "saved-model": (),
    "onnx": ("onnx", "tf2onnx", "onnxruntime"),
    "litert": ("ai_edge_litert",),
}
"""Format of `export` → the packages that write it, beside those that are always there."""

PROJECTIONS = ("tsne", "umap")
"""Projections of latents to the plane, for `evaluate --latents`."""
