"""Names that `--help` lists and options are checked by, where Keras must not be imported for it.

`diffusion.samplers` defines what they mean; a test holds the two together.
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
"""Each sampler, with the options of its own that it takes."""

SAMPLER_OPTIONS = {
    "steps_offset": int,
    "eta": float,
    "set_alpha_to_one": bool,
    "sigma_spacing": str,
}
TIMESTEP_SPACINGS = ("leading", "trailing", "linspace")
SIGMA_SPACINGS = ("timesteps", "karras")
