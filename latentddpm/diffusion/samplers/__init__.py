"""Samplers: the reverse process, from noise to latents in n of the T training timesteps.

| name | class | calls of the network per step | |
|---|---|---|---|
| ddpm | `DDPMSampler` | 1 | stochastic |
| ddim | `DDIMSampler` | 1 | first order, deterministic with eta = 0 |
| dpmpp_2m | `DPMSolverMultistepSampler` | 1 | second order |
| euler | `EulerSampler` | 1 | first order |
| euler_ancestral | `EulerAncestralSampler` | 1 | stochastic |
| heun | `HeunSampler` | 2 (last step 1) | second order |
| pndm | `PNDMSampler` | 1 (first step 2) | multistep, combines up to four predictions |
| unipc | `UniPCSampler` | 1 | second order, corrects each step with the next prediction |

All take (schedule, num_steps, timestep_spacing, steps_offset) and have `timesteps`, `sample` and
`add_noise`. Their base class is in `base`, the levels they visit in `spacing` and `sigma`.
"""

from __future__ import annotations

from latentddpm.choices import SIGMA_SPACINGS, TIMESTEP_SPACINGS
from latentddpm.diffusion.samplers.base import Denoiser, Noise, Sampler
from latentddpm.diffusion.samplers.ddpm import DDIMSampler, DDPMSampler, posterior_variance
from latentddpm.diffusion.samplers.dpm_solver import DPMSolverMultistepSampler
from latentddpm.diffusion.samplers.euler import EulerAncestralSampler, EulerSampler, HeunSampler
from latentddpm.diffusion.samplers.pndm import PNDMSampler
from latentddpm.diffusion.samplers.sigma import SigmaSampler
from latentddpm.diffusion.samplers.unipc import UniPCSampler
from latentddpm.errors import check_choice

__all__ = [
    "NAMES",
    "SIGMA_SPACINGS",
    "TIMESTEP_SPACINGS",
    "DDIMSampler",
    "DDPMSampler",
    "DPMSolverMultistepSampler",
    "Denoiser",
    "EulerAncestralSampler",
    "EulerSampler",
    "HeunSampler",
    "Noise",
    "PNDMSampler",
    "Sampler",
    "SigmaSampler",
    "UniPCSampler",
    "get",
    "posterior_variance",
]

_SAMPLERS: dict[str, type[Sampler]] = {
    "ddpm": DDPMSampler,
    "ddim": DDIMSampler,
    "dpmpp_2m": DPMSolverMultistepSampler,
    "euler": EulerSampler,
    "euler_ancestral": EulerAncestralSampler,
    "heun": HeunSampler,
    "pndm": PNDMSampler,
    "unipc": UniPCSampler,
}
NAMES = tuple(_SAMPLERS)
"""Names of all samplers."""


def get(name: str) -> type[Sampler]:
    """Class of a sampler.

    Args:
        name: one of `NAMES`, such as "ddim".

    Returns:
        The subclass of `Sampler`.

    Raises:
        UserError: an unknown name.
    """
    return _SAMPLERS[check_choice("sampler", name, NAMES)]
