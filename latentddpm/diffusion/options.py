"""Options of samplers and guidance: checks of their names and values.

Samplers and guidance call these functions themselves. They do not need Keras, so the command line
refuses a wrong option with the same message before it loads a model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Integral
from typing import Any

from latentddpm.choices import SAMPLER_OPTIONS, SAMPLERS, SIGMA_SPACINGS
from latentddpm.errors import UserError, check_choice, check_type, nearest


def check_num_steps(num_steps: int, num_train_timesteps: int) -> None:
    """Check a sampler's number of steps.

    Args:
        num_steps: a whole number, 1 .. T.
        num_train_timesteps: T.

    Raises:
        UserError: `num_steps` is outside of that, or not a whole number.
    """
    if not isinstance(num_steps, Integral) or not 1 <= num_steps <= num_train_timesteps:
        raise UserError(
            f"num_steps: expected a whole number from 1 to {num_train_timesteps}, "
            f"got {num_steps!r}"
        )


def check_guidance_scale(guidance_scale: float) -> None:
    """Check a guidance scale: at least 0.

    Raises:
        UserError: `guidance_scale` is negative or not finite.
    """
    if not (math.isfinite(guidance_scale) and guidance_scale >= 0):
        raise UserError(f"guidance_scale: expected a number of at least 0, got {guidance_scale!r}")


def check_guidance_rescale(guidance_rescale: float) -> None:
    """Check a guidance rescale: 0 .. 1.

    Raises:
        UserError: `guidance_rescale` is outside of that.
    """
    if not 0 <= guidance_rescale <= 1:
        raise UserError(
            f"guidance_rescale: expected 0 (none) to 1 (all), got {guidance_rescale!r}"
        )


def check_eta(eta: float) -> None:
    """Check DDIM's share of noise: 0 .. 1.

    Raises:
        UserError: `eta` is outside of that.
    """
    if not 0 <= eta <= 1:
        raise UserError(f"eta: expected 0 (deterministic) to 1 (DDPM), got {eta!r}")


def check_sampler_options(sampler: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Check the options of a sampler.

    The largest `steps_offset` depends on the number of steps; the sampler itself checks that.

    Args:
        sampler: its name, one of `choices.SAMPLERS`.
        options: name → value.

    Returns:
        The options, with values of Python's own types.

    Raises:
        UserError: an unknown sampler, an option that it does not take, or a wrong value.
    """
    known = SAMPLERS[check_choice("sampler", sampler, SAMPLERS)]
    checked = {}
    for option, value in options.items():
        if option not in known:
            others = [name for name, taken in SAMPLERS.items() if option in taken]
            takes = f"{', '.join(others)} take it" if others else f"it takes {', '.join(known)}"
            raise UserError(
                f"{option}: the sampler {sampler!r} has no such option{nearest(option, known)}; "
                f"{takes}"
            )
        checked[option] = check_type(option, value, SAMPLER_OPTIONS[option])
    if "eta" in checked:
        check_eta(checked["eta"])
    if "sigma_spacing" in checked:
        check_choice("sigma_spacing", checked["sigma_spacing"], SIGMA_SPACINGS)
    return checked
