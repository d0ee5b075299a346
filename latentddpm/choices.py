"""Names that `--help` lists, where listing them must not import Keras.

`diffusion.samplers` defines what they mean; a test holds the two together.
"""

SAMPLERS = (
    "ddpm",
    "ddim",
    "dpmpp_2m",
    "euler",
    "euler_ancestral",
    "heun",
    "pndm",
    "unipc",
)
TIMESTEP_SPACINGS = ("leading", "trailing", "linspace")
SIGMA_SPACINGS = ("timesteps", "karras")
