"""Options of samplers and guidance: checks of their names and values.

Samplers and guidance call these functions themselves. They do not need Keras, so the command line
refuses a wrong option with the same message before it loads a model.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

from latentddpm.choices import (
    NOT_FOR_FLOW,
    SAMPLER_OPTIONS,
    SAMPLERS,
    SIGMA_SPACINGS,
    VARIANCES,
)
from latentddpm.errors import UserError, check_choice, check_type, nearest

ORIGINAL_STEPS = 50
"""Default of `original_steps`, as of diffusers' `LCMScheduler`."""


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


def check_guidance_scale(guidance_scale: float, name: str = "guidance_scale") -> None:
    """Check a guidance scale: at least 0.

    Args:
        guidance_scale: any number.
        name: of the setting, for the message.

    Raises:
        UserError: `guidance_scale` is negative or not finite.
    """
    if not (math.isfinite(guidance_scale) and guidance_scale >= 0):
        raise UserError(f"{name}: expected a number of at least 0, got {guidance_scale!r}")


def check_guidance_interval(guidance_interval: Sequence[float]) -> list[float]:
    """Check an interval of timesteps as shares t / T, and return it as [lowest, highest].

    Args:
        guidance_interval: two numbers in 0 (clean) .. 1 (pure noise), in order.

    Raises:
        UserError: not two numbers, another order, or outside of that.
    """
    values = list(guidance_interval)
    if len(values) != 2 or not all(isinstance(one, Real) for one in values):
        raise UserError(
            "guidance_interval: expected two numbers, the lowest and the highest t / T, such as "
            f"0.2 and 0.8, got {guidance_interval!r:.80}"
        )
    low, high = map(float, values)
    if low > high:
        raise UserError(
            f"guidance_interval: the lowest comes first; {low:g} is above {high:g} (did you mean "
            f"{high:g} and {low:g}?)"
        )
    if not 0 <= low <= high <= 1:
        raise UserError(
            f"guidance_interval: expected shares of the timesteps, from 0 (clean) to 1 (pure "
            f"noise), got {low:g} and {high:g}"
        )
    return [low, high]


def check_condition_scales(
    condition_scales: Mapping[str, float], conditions: Iterable[str]
) -> dict[str, float]:
    """Check guidance scales of single conditions, and return them in the model's order.

    Args:
        condition_scales: name of a condition → its scale, at least 0.
        conditions: names of those that the model can be told or not, in its order.

    Raises:
        UserError: a condition that the model does not have, or a scale that is none.
    """
    conditions = tuple(conditions)
    for name, scale in condition_scales.items():
        if name not in conditions:
            known = f"it has {', '.join(conditions)}" if conditions else "it has none"
            raise UserError(
                f"condition_scales: {name!r} is no condition of this model that may be left out"
                f"{nearest(name, conditions)}; {known}"
            )
        where = f"condition_scales: {name}"
        check_guidance_scale(check_type(where, scale, float), where)
    return {name: float(condition_scales[name]) for name in conditions if name in condition_scales}


def check_guidance_rescale(guidance_rescale: float) -> None:
    """Check a guidance rescale: 0 .. 1.

    Raises:
        UserError: `guidance_rescale` is outside of that.
    """
    if not 0 <= guidance_rescale <= 1:
        raise UserError(
            f"guidance_rescale: expected 0 (none) to 1 (all), got {guidance_rescale!r}"
        )


def check_eta(eta: float | Sequence[float], num_steps: int | None = None) -> list[float]:
    """Check DDIM's share of noise: 0 .. 1, one for all steps or a list with that of each.

    Args:
        eta: a number, or a list.
        num_steps: of the sampler; None for one that is not known yet.

    Returns:
        That of each step; one of all steps without `num_steps`.

    Raises:
        UserError: a number outside of that, or a list of another length than `num_steps`.
    """
    several = not isinstance(eta, Real)
    for one in eta if several else [eta]:
        if not isinstance(one, Real) or not 0 <= one <= 1:
            raise UserError(f"eta: expected 0 (deterministic) to 1 (DDPM), got {one!r}")
    if not several:
        return [float(eta)] * (num_steps or 1)
    if num_steps is not None and len(eta) != num_steps:
        raise UserError(
            f"eta: {len(eta)} values for {num_steps} steps; expected one for each, or a number"
        )
    return [float(one) for one in eta]


def check_variance(sampler: str, variance: str, eta: float | Sequence[float] = 1.0) -> str:
    """Check the variance of the noise of a sampler, and return it.

    Args:
        sampler: its name, one of `choices.VARIANCES`.
        variance: one of `choices.VARIANCES` of that sampler.
        eta: of DDIM; 1 of others.

    Raises:
        UserError: an unknown one; or "large" where there is no noise that could be larger.
    """
    check_choice("variance", variance, VARIANCES[sampler])
    if variance != "small" and not any(check_eta(eta)):
        raise UserError(
            f"variance: {variance!r} with eta 0, which draws no noise; expected eta 1, or another "
            "above 0"
        )
    return variance


def check_corrector_steps(corrector_steps: int) -> int:
    """Check a number of Langevin steps at each level, at least 0, and return it.

    Raises:
        UserError: `corrector_steps` is negative, or not a whole number.
    """
    if not isinstance(corrector_steps, Integral) or corrector_steps < 0:
        raise UserError(
            f"corrector_steps: expected a whole number of at least 0, got {corrector_steps!r}"
        )
    return int(corrector_steps)


def check_original_steps(
    original_steps: int | None,
    num_steps: int | None = None,
    num_train_timesteps: int | None = None,
) -> int | None:
    """Check the number of timesteps that a consistency model was distilled along, and return it.

    Args:
        original_steps: at least 1; None for the default, 50, or T where there are more steps.
        num_steps: of the sampler, which visits some of them; None for one that is not known yet.
        num_train_timesteps: T, at most; None where it is not known yet.

    Raises:
        UserError: there are fewer of them than steps, or more than T.
    """
    if original_steps is None:
        few = (num_steps or 1) <= ORIGINAL_STEPS <= (num_train_timesteps or ORIGINAL_STEPS)
        return ORIGINAL_STEPS if few else num_train_timesteps
    if not isinstance(original_steps, Integral) or original_steps < 1:
        raise UserError(
            f"original_steps: expected a whole number of at least 1, got {original_steps!r}"
        )
    low, high = num_steps or 1, num_train_timesteps or original_steps
    if not low <= original_steps <= high:
        raise UserError(
            f"original_steps: {original_steps}, expected at least the {low} of num_steps"
            if original_steps < low
            else f"original_steps: {original_steps}, expected at most {high}, the timesteps of "
            "training"
        )
    return int(original_steps)


def check_snr(snr: float) -> float:
    """Check the ratio of signal to noise of a Langevin step, above 0 and below 1, and return it.

    Raises:
        UserError: `snr` is outside of that: steps of 1 and more do not settle.
    """
    if not 0 < snr < 1:
        raise UserError(f"snr: expected above 0 and below 1, such as 0.16, got {snr!r}")
    return float(snr)


def check_start_step(start_step: int, num_steps: int) -> None:
    """Check the step that a sampler starts at: 0 .. num_steps − 1.

    Args:
        start_step: 0 for the first.
        num_steps: of the sampler.

    Raises:
        UserError: `start_step` is outside of that.
    """
    if not 0 <= start_step < num_steps:
        raise UserError(
            f"start_step: expected 0 to {num_steps - 1} for {num_steps} steps, got {start_step!r}"
        )


def check_sampler_options(
    sampler: str, options: Mapping[str, Any], num_steps: int | None = None
) -> dict[str, Any]:
    """Check the options of a sampler.

    The largest `steps_offset` depends on the number of steps; the sampler itself checks that.

    Args:
        sampler: its name, one of `choices.SAMPLERS`.
        options: name → value.
        num_steps: of the sampler; None for one that is not known yet.

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
        check_eta(checked["eta"], num_steps)
    if "variance" in checked:
        eta = checked.get("eta", 0.0 if "eta" in known else 1.0)
        check_variance(sampler, checked["variance"], eta)
    if "corrector_steps" in checked:
        check_corrector_steps(checked["corrector_steps"])
    if "original_steps" in checked:
        check_original_steps(checked["original_steps"], num_steps)
    if "snr" in checked:
        check_snr(checked["snr"])
    if "sigma_spacing" in checked:
        check_choice("sigma_spacing", checked["sigma_spacing"], SIGMA_SPACINGS)
    if "shift" in checked:
        check_shift(checked["shift"])
    return checked


def check_shift(shift: float) -> None:
    """Check the shift of a flow schedule: above 0.

    Raises:
        UserError: `shift` is not.
    """
    if isinstance(shift, bool) or not (math.isfinite(shift) and shift > 0):
        raise UserError(f"shift: expected a number above 0, such as 3 (1: none), got {shift!r}")


def check_sampler_of_schedule(sampler: str, options: Mapping[str, Any], kind: str) -> None:
    """Check that a sampler and its options go with a kind of schedule.

    Args:
        sampler: its name, or "" for the options alone.
        options: name → value.
        kind: of the schedule, one of `choices.SCHEDULES`.

    Raises:
        UserError: naming the nearest that does.
    """
    if kind == "flow":
        if sampler in NOT_FOR_FLOW:
            raise UserError(
                f"sampler: {sampler!r} does not go with a flow schedule; the nearest that does is "
                f"{NOT_FOR_FLOW[sampler]!r}"
            )
        if options.get("sigma_spacing", "timesteps") != "timesteps":
            raise UserError(
                f"sigma_spacing: {options['sigma_spacing']!r} is not for a flow schedule, whose "
                "levels a shift moves; leave it out ('timesteps'), or set shift"
            )
    elif options.get("shift") is not None:
        raise UserError(
            f"shift: only a flow schedule has one, and this model's is {kind!r}; leave it out"
        )
