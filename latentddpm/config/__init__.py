"""Configuration of a run: its settings, with defaults, types and ranges.

Every field has a default, so a file holds only what differs (see `config_file`). A size whose
default is null follows from what a run is given: its data, its autoencoder, the model that it
starts from (see `training.plan.resolve`). Sections follow the constructors that they are passed
to: `autoencoder:` has arguments of `Autoencoder`, `unet:` of `UNet`, `schedule:` of
`NoiseSchedule`, `adversarial:` of `Adversary`.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from latentddpm.config.augment import AugmentConfig
from latentddpm.config.autoencoder import (
    AdversarialConfig,
    AutoencoderConfig,
    DiscriminatorConfig,
    PerceptualConfig,
)
from latentddpm.config.conditions import ConditionConfig, check_names
from latentddpm.config.control import ControlConfig
from latentddpm.config.data import DataConfig, DiffusionData
from latentddpm.config.denoiser import LoraConfig, TextConfig, UNetConfig
from latentddpm.config.diffusion import SamplesConfig, ScheduleConfig
from latentddpm.config.distillation import DistillConfig
from latentddpm.config.prior import PriorConfig
from latentddpm.config.section import Section
from latentddpm.config.training import AutoencoderTraining, DiffusionTraining, TrainingConfig

__all__ = [
    "COMMANDS",
    "AdversarialConfig",
    "AugmentConfig",
    "AutoencoderConfig",
    "AutoencoderRun",
    "AutoencoderTraining",
    "ConditionConfig",
    "ControlConfig",
    "DataConfig",
    "DiffusionData",
    "DiffusionRun",
    "DiffusionTraining",
    "DiscriminatorConfig",
    "DistillConfig",
    "LoraConfig",
    "PerceptualConfig",
    "PriorConfig",
    "SamplesConfig",
    "ScheduleConfig",
    "Section",
    "TextConfig",
    "TrainingConfig",
    "UNetConfig",
]

INIT = Field("", description="model folder to start from instead of random weights (--init)")


class AutoencoderRun(Section):
    """Configuration of `train-vae`."""

    init: str = INIT
    data: DataConfig = DataConfig()
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    perceptual: PerceptualConfig = PerceptualConfig()
    adversarial: AdversarialConfig = AdversarialConfig()
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    training: AutoencoderTraining = AutoencoderTraining()


class DiffusionRun(Section):
    """Configuration of `train-diffusion`."""

    init: str = INIT
    data: DiffusionData = DiffusionData()
    schedule: ScheduleConfig = ScheduleConfig()
    unet: UNetConfig = UNetConfig()
    text: TextConfig = TextConfig()
    conditions: Annotated[dict[str, ConditionConfig], AfterValidator(check_names)] = Field(
        {}, description="what the network is told beside text: a name and settings for each"
    )
    lora: LoraConfig = LoraConfig()
    control: ControlConfig = ControlConfig()
    distill: DistillConfig = DistillConfig()
    prior: PriorConfig = PriorConfig()
    training: DiffusionTraining = DiffusionTraining()
    samples: SamplesConfig = SamplesConfig()


COMMANDS: dict[str, type[AutoencoderRun] | type[DiffusionRun]] = {
    "train-vae": AutoencoderRun,
    "train-diffusion": DiffusionRun,
}
