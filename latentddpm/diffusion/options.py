"""Options of sampling and guidance: which there are, and the values they may have.

Samplers and guidance check by these functions themselves. They need no Keras, so that the same
option is refused in the same words before a model is read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Integral
from typing import Any

from latentddpm.choices import SAMPLER_OPTIONS, SAMPLERS, SIGMA_SPACINGS
from latentddpm.errors import UserError, check_choice, check_type, nearest


def check_num_steps(num_steps: int, num_train_timesteps: int) -> None:
    """Refuse a number of steps that is not in 1 .. T.

    Raises:
        UserError: it is outside, or no whole number.
    """
    if not isinstance(num_steps, Integral) or not 1 <= num_steps <= num_train_timesteps:
        raise UserError(
            f"num_steps: expected a whole number from 1 to {num_train_timesteps}, "
            f"got {num_steps!r}"
        )


def check_guidance_scale(guidance_scale: float) -> None:
    """Refuse what is no guidance scale.

    Raises:
        UserError: it is negative or not finite.
    """
    if not (math.isfinite(guidance_scale) and guidance_scale >= 0):
        raise UserError(f"guidance_scale: expected a number of at least 0, got {guidance_scale!r}")


def check_guidance_rescale(guidance_rescale: float) -> None:
    """Refuse what is no share.

    Raises:
        UserError: it is not in 0 .. 1.
    """
    if not 0 <= guidance_rescale <= 1:
        raise UserError(
            f"guidance_rescale: expected 0 (none) to 1 (all), got {guidance_rescale!r}"
        )


def check_eta(eta: float) -> None:
    """Refuse what is no share.

    Raises:
        UserError: it is not in 0 .. 1.
    """
    if not 0 <= eta <= 1:
        raise UserError(f"eta: expected 0 (deterministic) to 1 (DDPM), got {eta!r}")


def check_sampler_options(sampler: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a sampler, once it takes them all.

    Where `steps_offset` ends depends on the steps; the sampler itself checks that.

    Raises:
        UserError: an unknown sampler, an option that it does not take, or a wrong value.
    """
    known = SAMPLERS[check_choice("sampler", sampler, SAMPLERS)]
    checked = {}
    for option, value in options.items():
        if option not in known:
            raise UserError(
                f"{option}: the sampler {sampler!r} has no such option{nearest(option, known)}; "
                f"it takes {', '.join(known)}"
            )
        checked[option] = check_type(option, value, SAMPLER_OPTIONS[option])
    if "eta" in checked:
        check_eta(checked["eta"])
    if "sigma_spacing" in checked:
        check_choice("sigma_spacing", checked["sigma_spacing"], SIGMA_SPACINGS)
    return checked
