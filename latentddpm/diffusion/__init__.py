"""The mathematics of diffusion: schedule (forward), samplers (reverse), guidance."""

from latentddpm.diffusion import samplers
from latentddpm.diffusion.guidance import ClassifierFreeGuidance
from latentddpm.diffusion.samplers import DDIMSampler, DDPMSampler, Sampler
from latentddpm.diffusion.schedule import NoiseSchedule

__all__ = [
    "ClassifierFreeGuidance",
    "DDIMSampler",
    "DDPMSampler",
    "NoiseSchedule",
    "Sampler",
    "samplers",
]
