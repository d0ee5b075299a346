"""Which sampler `generate` uses: a name, the options given and the model's defaults."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from typing import Any

from latentddpm.diffusion import samplers
from latentddpm.diffusion.schedule import NoiseSchedule
from latentddpm.errors import UserError, nearest

# What every sampler is given; all others of its arguments are `sampler_options`.
COMMON = ("schedule", "num_steps", "timestep_spacing")


def make_sampler(
    schedule: NoiseSchedule,
    defaults: Mapping[str, Any],
    sampler: str | samplers.Sampler | None = None,
    num_steps: int | None = None,
    timestep_spacing: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> samplers.Sampler:
    """The sampler that was asked for; None means the default, as in `LatentDiffusion.generate`.

    Raises:
        UserError: an unknown sampler, an option that it does not take, a value out of range, or
            anything given beside a `Sampler`, which has it all.
    """
    if isinstance(sampler, samplers.Sampler):
        given = {
            "num_steps": num_steps,
            "timestep_spacing": timestep_spacing,
            "sampler_options": options,
        }
        for name, value in given.items():
            if value is not None:
                raise UserError(f"{name}: {value!r} beside a sampler that has its own")
        return sampler
    name = sampler or defaults["sampler"]
    made = samplers.get(name)
    options = default_options(name, defaults) if options is None else options
    known = [key for key in signature(made).parameters if key not in COMMON]
    for option in options:
        if option not in known:
            raise UserError(
                f"{option}: the sampler {name!r} has no such option{nearest(option, known)}; "
                f"it takes {', '.join(known)}"
            )
    return made(
        schedule,
        defaults["num_steps"] if num_steps is None else num_steps,
        timestep_spacing or defaults["timestep_spacing"],
        **options,
    )


def default_options(sampler: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The model's own `sampler_options`; they belong to its own sampler only."""
    if sampler != defaults["sampler"]:
        return {}
    return dict(defaults.get("sampler_options", {}))
