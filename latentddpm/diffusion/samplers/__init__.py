"""The reverse process: from noise to latents in n of the T training timesteps.

| name | class | calls of the network a step | |
|---|---|---|---|
| ddpm | `DDPMSampler` | 1 | stochastic |
| ddim | `DDIMSampler` | 1 | first order, deterministic with eta = 0 |
| dpmpp_2m | `DPMSolverMultistepSampler` | 1 | second order |
| euler | `EulerSampler` | 1 | first order |
| euler_ancestral | `EulerAncestralSampler` | 1 | stochastic |
| heun | `HeunSampler` | 2 (last step 1) | second order |
| pndm | `PNDMSampler` | 1 (first step 2) | up to four steps' noise in one |
| unipc | `UniPCSampler` | 1 | second order, corrected |

All take (schedule, num_steps, timestep_spacing, steps_offset) and have `timesteps`, `sample`,
`add_noise`; what they share is in `base`, which levels they visit in `spacing` and `sigma`.
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


def get(name: str) -> type[Sampler]:
    """The sampler class called `name`, one of `NAMES`.

    Raises:
        UserError: an unknown name.
    """
    return _SAMPLERS[check_choice("sampler", name, NAMES)]
