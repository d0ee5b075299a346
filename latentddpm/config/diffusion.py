"""Settings of the noise schedule, and of the samples that are drawn while training."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from latentddpm.config.section import Section

OF_KIND = {
    "ddpm": ("beta_schedule", "beta_start", "beta_end", "rescale_zero_terminal_snr"),
    "flow": ("shift",),
}
"""Kind of schedule → the settings that only it has."""


class ScheduleConfig(Section):
    """Noise schedule of the forward process, and the quantity that the UNet predicts."""

    kind: Literal["ddpm", "flow"] = Field(
        "ddpm", description="ddpm: noise is added by betas; flow: on a straight line"
    )
    beta_schedule: Literal["linear", "scaled_linear", "cosine"] = Field(
        "scaled_linear", description="how the betas rise; scaled_linear is Stable Diffusion's"
    )
    beta_start: float = Field(0.00085, gt=0, description="not used by cosine")
    beta_end: float = Field(0.012, gt=0, lt=1, description="not used by cosine")
    num_train_timesteps: int = Field(1000, gt=1, description="T")
    prediction_type: Literal["epsilon", "v_prediction", "sample", "velocity"] = Field(
        "epsilon",
        description="what the UNet predicts: the noise, v, or the clean latents; of flow: "
        "velocity (noise minus latents) or sample",
    )
    rescale_zero_terminal_snr: bool = Field(
        False, description="end in pure noise; not with epsilon"
    )
    shift: float = Field(
        1.0, gt=0, description="of flow: above 1 more training and sampling at high noise"
    )

    def arguments(self) -> dict[str, Any]:
        """Arguments of the schedule's class, with its `kind`."""
        others = {key for kind, keys in OF_KIND.items() if kind != self.kind for key in keys}
        return self.model_dump(exclude=others)


class SamplesConfig(Section):
    """Sample grid of every validation, always of the same prompts and seeds.

    Sampler, spacing, steps and guidance become the finished model's defaults.
    """

    prompts: list[str] = Field([], description="one for each row; none: captions of the data")
    images_per_prompt: int = Field(4, gt=0, description="columns of the grid")
    num_steps: int = Field(15, gt=0, description="of the sampler")
    sampler: str = Field("unipc", description="see latentddpm generate --sampler")
    timestep_spacing: Literal["leading", "trailing", "linspace"] = Field(
        "trailing", description="choice of the timesteps that the sampler visits"
    )
    guidance_scale: float = Field(4.0, ge=0, description="1: none")
    seed: int = Field(0, ge=0, description="of the first column")
