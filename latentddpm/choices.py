"""Choices of options: samplers with their options and spacings, formats; without Keras.

`--help` lists them and options are checked against them before Keras is loaded. The meaning of
those of sampling is defined in `diffusion.samplers`; a test compares the two.
"""

SAMPLERS = {
    "ddpm": ("steps_offset", "variance", "clip_sample"),
    "ddim": ("steps_offset", "eta", "set_alpha_to_one", "variance", "clip_sample"),
    "dpmpp_2m": ("steps_offset", "sigma_spacing", "shift"),
    "dpmpp_2m_sde": ("steps_offset", "sigma_spacing", "shift", "clip_sample"),
    "euler": ("steps_offset", "sigma_spacing", "shift"),
    "euler_ancestral": ("steps_offset", "sigma_spacing", "shift"),
    "heun": ("steps_offset", "sigma_spacing", "shift"),
    "lcm": ("original_steps", "clip_sample"),
    "pc": ("steps_offset", "variance", "clip_sample", "corrector_steps", "snr"),
    "pndm": ("steps_offset", "set_alpha_to_one"),
    "unipc": ("steps_offset", "sigma_spacing", "shift"),
}
"""Name of each sampler → the options that it takes."""

SAMPLER_OPTIONS = {
    "steps_offset": int,
    "eta": float | list,
    "set_alpha_to_one": bool,
    "variance": str,
    "clip_sample": bool,
    "sigma_spacing": str,
    "corrector_steps": int,
    "original_steps": int,
    "snr": float,
    "shift": float,
}
"""Type of each sampler option; of two types either."""

VARIANCES = {
    "ddpm": ("small", "large", "learned_range"),
    "ddim": ("small", "large"),
    "pc": ("small", "large", "learned_range"),
}
"""Name of each sampler with the option `variance` → the values of it."""

SCHEDULES = ("ddpm", "flow")
"""Kinds of schedule."""

PREDICTIONS = {
    "ddpm": ("epsilon", "v_prediction", "sample"),
    "flow": ("velocity", "sample"),
}
"""Kind of schedule → what its network may predict."""

NOT_FOR_FLOW = {"pndm": "dpmpp_2m", "lcm": "dpmpp_2m"}
"""Samplers that a flow schedule cannot take → the nearest that it can."""

TIMESTEP_SAMPLINGS = ("uniform", "logit_normal", "mode")
"""Densities of the timesteps in training."""

TIMESTEP_SPACINGS = ("leading", "trailing", "linspace")
SIGMA_SPACINGS = ("timesteps", "karras")

FIRST_STAGES = ("autoencoder", "none")
"""First stages: between pixels and latents; with "none" the model diffuses pixels."""

DENOISERS = {
    "unet": (
        *("channels", "channel_multipliers", "num_res_blocks", "attention_levels", "num_heads"),
        *("norm_groups", "dropout", "time_scale_shift", "recompute"),
    ),
    "classic": ("channels", "channel_multipliers"),
    "basic": (),
}
"""Kind of each network that denoises, `unet.kind` → the settings of `unet:` that it takes. Their
classes are in `models.denoisers.kinds`; a test compares the two."""
CONDITIONAL = ("unet",)
"""Kinds of networks that take text."""

CAPTION_RULES = ("files", "name", "folder", "auto")
"""Rules for the caption of an image that has none; `auto` is settled before training."""

CONDITIONS = {
    "class": ("column", "words"),
    "labels": ("column", "words", "combine"),
    "number": ("column",),
    "picture": ("column", "suffix", "through"),
    "edges": ("sigma", "low", "high"),
    "low_resolution": ("factor", "noise"),
    "inpainting": ("masks",),
}
"""Kind of each condition → the settings of `conditions:` that it takes, beside `dropout`. Their
classes are in `conditions.kinds`; a test compares the two."""

STORAGE = ("float32", "float16")
"""Precisions in which weights are stored."""

AUTO = "auto"
HALF = ("bfloat16", "float16")
PRECISIONS = ("float32", *HALF)
"""Precisions in which networks compute without training, and hold their weights."""

CONVERSIONS = ("diffusers",)
"""Formats of other libraries that `convert --to` writes."""

EXPORTS = {
    "keras": (),
    "graphs": ("onnxruntime",),
    "saved-model": (),
    "onnx": ("onnx", "tf2onnx", "onnxruntime"),
    "litert": ("ai_edge_litert",),
}
"""Format of `export` → the packages that write it, beside those that are always there."""

ENGINES = ("auto", "keras", "onnx")
"""Engines that compute the networks of a model."""

JIT = ("auto", "on", "off")
"""Settings of compilation with XLA."""

PROJECTIONS = ("tsne", "umap")
"""Projections of latents to the plane, for `evaluate --latents`."""

QUALITIES = ("draft", "good", "best")
"""Qualities of `train --quality`, whose numbers are in `recipe.rules`."""
