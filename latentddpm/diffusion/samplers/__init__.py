"""Samplers: the reverse process, from noise to latents in n of the T training timesteps.

| name | class | calls of the network per step | |
|---|---|---|---|
| ddpm | `DDPMSampler` | 1 | stochastic, with either variance of Ho 2020 or a learned one |
| ddim | `DDIMSampler` | 1 | first order, deterministic with eta = 0 |
| dpmpp_2m | `DPMSolverMultistepSampler` | 1 | second order |
| dpmpp_2m_sde | `DPMSolverMultistepSDESampler` | 1 | second order, stochastic |
| euler | `EulerSampler` | 1 | first order |
| euler_ancestral | `EulerAncestralSampler` | 1 | stochastic |
| heun | `HeunSampler` | 2 (last step 1) | second order |
| lcm | `LCMSampler` | 1 | stochastic, few steps of a network distilled for them |
| pc | `PredictorCorrectorSampler` | 2 (1 + corrector steps) | stochastic, corrects each level |
| pndm | `PNDMSampler` | 1 (first step 2) | multistep, combines up to four predictions |
| unipc | `UniPCSampler` | 1 | second order, corrects each step with the next prediction |

All take (schedule, num_steps, timestep_spacing) and have `timesteps`, `sample` and
`add_noise`. Their base class is in `base`, the levels they visit in `spacing` and `sigma`.
"""

from __future__ import annotations

from latentddpm.choices import SIGMA_SPACINGS, TIMESTEP_SPACINGS
from latentddpm.diffusion.samplers.base import Denoiser, Noise, Sampler
from latentddpm.diffusion.samplers.ddpm import DDIMSampler, DDPMSampler, posterior_variance
from latentddpm.diffusion.samplers.dpm_solver import (
    DPMSolverMultistepSampler,
    DPMSolverMultistepSDESampler,
)
from latentddpm.diffusion.samplers.euler import EulerAncestralSampler, EulerSampler, HeunSampler
from latentddpm.diffusion.samplers.lcm import LCMSampler
from latentddpm.diffusion.samplers.pndm import PNDMSampler
from latentddpm.diffusion.samplers.predictor_corrector import PredictorCorrectorSampler
from latentddpm.diffusion.samplers.sigma import SigmaSampler
from latentddpm.diffusion.samplers.unipc import UniPCSampler
from latentddpm.errors import check_choice

__all__ = [
    "NAMES",
    "SIGMA_SPACINGS",
    "TIMESTEP_SPACINGS",
    "DDIMSampler",
    "DDPMSampler",
    "DPMSolverMultistepSDESampler",
    "DPMSolverMultistepSampler",
    "Denoiser",
    "EulerAncestralSampler",
    "EulerSampler",
    "HeunSampler",
    "LCMSampler",
    "Noise",
    "PNDMSampler",
    "PredictorCorrectorSampler",
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
    "dpmpp_2m_sde": DPMSolverMultistepSDESampler,
    "euler": EulerSampler,
    "euler_ancestral": EulerAncestralSampler,
    "heun": HeunSampler,
    "lcm": LCMSampler,
    "pc": PredictorCorrectorSampler,
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
