"""Settings of distillation: a finished model becomes one that needs few steps."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from latentddpm.config.section import Section, Window


class DistillConfig(Section):
    """Distillation of the finished model of `init`; the rest of the run is as ever."""

    kind: Literal["none", "lcm"] = Field(
        "none",
        description="lcm: a latent consistency model, for the sampler lcm at 1 to 8 steps without "
        "guidance (--distill)",
    )
    solver_steps: int = Field(
        50, ge=2, description="of DDIM, from noise to latents; the teacher takes one at a time"
    )
    guidance_scale: Window | None = Field(
        None,
        description="lowest and highest of the teacher's, drawn per example; null: that of init",
    )
    huber: float = Field(1e-3, gt=0, description="errors below it count less, by their squares")
