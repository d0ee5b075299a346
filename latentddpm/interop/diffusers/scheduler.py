"""Scheduler of diffusers, `scheduler_config.json` ⇄ the schedule and the default sampler.

A scheduler of diffusers is three things: the noise levels that the network was trained with, a
sampler with its options, and the spacing of its timesteps. Noise levels that are not supported are
refused. Options of the sampler or the spacing that are not supported give a warning, and the
nearest sampler becomes the default. It is only a default: every sampler works with the model.
`clip_sample` is for models of pixels, whose values end at −1 and 1; those of latents do not.

The betas are the same, but float32 in diffusers and float64 here: "linear", "scaled_linear", and
"squaredcos_cap_v2", which is "cosine" here.

Schedulers of flow matching are read and written by `flow_scheduler`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from latentddpm.choices import NOT_FOR_FLOW, SAMPLERS
from latentddpm.diffusion import samplers
from latentddpm.diffusion.flow import FlowSchedule
from latentddpm.diffusion.options import ORIGINAL_STEPS
from latentddpm.diffusion.samplers.lcm import TIMESTEP_SCALING
from latentddpm.diffusion.schedule import NoiseSchedule
from latentddpm.errors import UserError, check_choice
from latentddpm.interop.diffusers.flow_scheduler import (
    FLOW_SIGMAS,
    check_total,
    flow_config,
    flow_schedule,
)

Config = Mapping[str, Any]

BETA_SCHEDULES = {
    "linear": "linear",
    "scaled_linear": "scaled_linear",
    "squaredcos_cap_v2": "cosine",
}
FALLBACK = "ddim"
ZERO_SNR = "rescale_betas_zero_snr"
KARRAS = "use_karras_sigmas"
ALPHA_TO_ONE = "set_alpha_to_one"  # with the same name and meaning here
CLIP = "clip_sample"  # the same
CLIP_RANGE = "clip_sample_range"  # here always 1
VARIANCE = "variance_type"
VARIANCES = {"fixed_small": "small", "fixed_large": "large", "learned_range": "learned_range"}
ALGORITHM = "algorithm_type"
STOCHASTIC = "sde-dpmsolver++"
ORIGINAL = "original_inference_steps"
# Options that no sampler here has: key → the value that turns them off.
OFF = {
    "thresholding": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "use_lu_lambdas": False,
    "use_dynamic_shifting": False,
}


@dataclass(frozen=True)
class Kind:
    """Kind of scheduler in diffusers, with its defaults for keys that a file does not have.

    Attributes:
        sampler: the sampler here.
        spacing: default of `timestep_spacing`.
        options: key → (its default, the value that the sampler here has).
        beta_start: its default.
        beta_end: its default.
        beta_schedule: its default.
        zero_snr: True if it has the key `rescale_betas_zero_snr`.
        set_alpha_to_one: default; None if it has no such key.
        clip_sample: the same.
        stochastic: the sampler here of `algorithm_type: sde-dpmsolver++`; None if it has no such.
    """

    sampler: str
    spacing: str
    options: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    beta_start: float = 1e-4
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    zero_snr: bool = True
    set_alpha_to_one: bool | None = None
    clip_sample: bool | None = None
    stochastic: str | None = None


KINDS = {
    "DDPMScheduler": Kind(
        "ddpm", "leading", {VARIANCE: ("fixed_small", "fixed_small")}, clip_sample=True
    ),
    "DDIMScheduler": Kind("ddim", "leading", set_alpha_to_one=True, clip_sample=True),
    "PNDMScheduler": Kind(
        "pndm",
        "leading",
        {"skip_prk_steps": (False, True)},
        zero_snr=False,
        set_alpha_to_one=False,
    ),
    "DPMSolverMultistepScheduler": Kind(
        "dpmpp_2m",
        "linspace",
        {
            ALGORITHM: ("dpmsolver++", "dpmsolver++"),
            "solver_order": (2, 2),
            "solver_type": ("midpoint", "midpoint"),
            "euler_at_final": (False, False),
            "final_sigmas_type": ("zero", "zero"),
            "lambda_min_clipped": (-math.inf, -math.inf),
        },
        stochastic="dpmpp_2m_sde",
    ),
    "EulerDiscreteScheduler": Kind(
        "euler",
        "linspace",
        {
            "interpolation_type": ("linear", "linear"),
            "timestep_type": ("discrete", "discrete"),
            "final_sigmas_type": ("zero", "zero"),
            "sigma_min": (None, None),
            "sigma_max": (None, None),
        },
    ),
    "EulerAncestralDiscreteScheduler": Kind("euler_ancestral", "linspace"),
    "HeunDiscreteScheduler": Kind(
        "heun",
        "linspace",
        {CLIP: (False, False)},
        beta_start=0.00085,
        beta_end=0.012,
        zero_snr=False,
    ),
    "LCMScheduler": Kind(
        "lcm",
        "leading",
        {ORIGINAL: (ORIGINAL_STEPS, ORIGINAL_STEPS), "timestep_scaling": (10.0, TIMESTEP_SCALING)},
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
    ),
    "UniPCMultistepScheduler": Kind(
        "unipc",
        "linspace",
        {
            "solver_order": (2, 2),
            "solver_type": ("bh2", "bh2"),
            "predict_x0": (True, True),
            "final_sigmas_type": ("zero", "zero"),
            "disable_corrector": ([], []),
            "sigma_min": (None, None),
            "sigma_max": (None, None),
        },
    ),
}
FLOW_KINDS = {
    "FlowMatchEulerDiscreteScheduler": Kind(
        "euler",
        "linspace",
        {"shift_terminal": (None, None), "stochastic_sampling": (False, False)},
    ),
    "FlowMatchHeunDiscreteScheduler": Kind("heun", "linspace"),
}
# Schedulers with the same noise levels, but without a sampler here.
OTHERS = (
    "DDIMInverseScheduler",
    "DDPMParallelScheduler",
    "DDIMParallelScheduler",
    "DEISMultistepScheduler",
    "DPMSolverSDEScheduler",
    "DPMSolverSinglestepScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LMSDiscreteScheduler",
)


class SchedulerNote(UserWarning):
    """Warning about a setting of a scheduler that is not supported."""


def read_scheduler(
    config: Config, source: str, pixels: bool = False
) -> tuple[NoiseSchedule | FlowSchedule, dict[str, Any]]:
    """Schedule and default sampler of a scheduler.

    Settings of the sampler that are not supported give a `SchedulerNote`, a warning.

    Args:
        config: of diffusers.
        source: its file, for messages.
        pixels: the model has no autoencoder: `clip_sample` applies.

    Returns:
        The schedule, and defaults of `generate`: `sampler`, `timestep_spacing` and, if there are
        any, `sampler_options`.

    Raises:
        UserError: noise levels or a prediction type that no schedule here has.
    """
    name = config.get("_class_name")
    if not isinstance(name, str):
        raise UserError(f"{source}: _class_name: {name!r:.80}, expected a scheduler's name")
    check_choice(f"{source}: _class_name", name, (*KINDS, *FLOW_KINDS, *OTHERS))
    kind = KINDS.get(name) or FLOW_KINDS.get(name)
    flow = name in FLOW_KINDS or bool(config.get(FLOW_SIGMAS))
    schedule = flow_schedule(config, source) if flow else _schedule(config, source, kind)
    left_out = [] if kind else [f"{name} itself (the default sampler is {FALLBACK})"]
    for key, value in OFF.items():
        if config.get(key, value) not in (value, None):
            left_out.append(f"{key}: {config[key]!r:.40}")
    sampler = kind.sampler if kind else FALLBACK
    options: dict[str, Any] = {}
    for key, (default, ours) in (kind.options if kind else {}).items():
        value = config.get(key, default)
        if key == ALGORITHM and value == STOCHASTIC:
            sampler = kind.stochastic
        elif key == VARIANCE and value in VARIANCES:
            options |= {} if value == ours else {"variance": VARIANCES[value]}
        elif key == ORIGINAL and type(value) is int and value > 0:
            options |= {} if value == ours else {"original_steps": value}
        elif value != ours:
            left_out.append(f"{key}: {value!r:.40} (here {ours!r})")
    if kind and kind.clip_sample is not None and config.get(CLIP, kind.clip_sample):
        if not pixels:
            left_out.append(f"{CLIP}: True (here False for latents)")
        elif (limit := config.get(CLIP_RANGE, 1)) != 1:
            left_out.append(f"{CLIP_RANGE}: {limit!r:.40} (here 1)")
        else:
            options[CLIP] = True
    if flow and sampler in NOT_FOR_FLOW:
        left_out.append(f"{name} itself (the default sampler is {NOT_FOR_FLOW[sampler]})")
        sampler = NOT_FOR_FLOW[sampler]
    spacing = config.get("timestep_spacing", kind.spacing if kind else "leading")
    if flow:  # their levels do not depend on timestep_spacing
        spacing = "linspace" if name in FLOW_KINDS else "trailing"
    check_choice(f"{source}: timestep_spacing", spacing, samplers.TIMESTEP_SPACINGS)
    takes_offset = spacing == "leading" and "steps_offset" in SAMPLERS[sampler]
    if takes_offset and config.get("steps_offset", 0) != 1:  # 1 is the default here
        options["steps_offset"] = _steps_offset(config, source, schedule.num_train_timesteps)
    knows_end = kind is not None and kind.set_alpha_to_one is not None
    if knows_end and not config.get(ALPHA_TO_ONE, kind.set_alpha_to_one):
        options[ALPHA_TO_ONE] = False
    if config.get(KARRAS):
        if issubclass(samplers.get(sampler), samplers.SigmaSampler) and not flow:
            options["sigma_spacing"] = "karras"
        else:
            left_out.append(f"{KARRAS}: true")
    if left_out:
        warnings.warn(
            f"{source}: without a counterpart here, left out: {'; '.join(left_out)}",
            SchedulerNote,
            stacklevel=2,
        )
    defaults = {"sampler": sampler, "timestep_spacing": spacing}
    return schedule, defaults | ({"sampler_options": options} if options else {})


def scheduler_config(
    schedule: NoiseSchedule | FlowSchedule, defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """Configuration of the scheduler of diffusers for a schedule and a default sampler.

    A sampler that diffusers does not have, or has without zero terminal SNR for such a schedule,
    becomes DDIM. One that diffusers does not have for flow matching becomes Euler, or DPM-Solver++
    where x0 is predicted. Its schedulers of flow matching have one spacing of their own.

    Args:
        schedule: of the model.
        defaults: of `generate`, with `sampler` and `timestep_spacing`.
    """
    if isinstance(schedule, FlowSchedule):
        return flow_config(schedule, defaults)
    sampler = defaults["sampler"]
    names = {kind.sampler: name for name, kind in KINDS.items()}
    names |= {kind.stochastic: name for name, kind in KINDS.items() if kind.stochastic}
    kind = KINDS.get(names.get(sampler))
    if kind is None or (schedule.rescale_zero_terminal_snr and not kind.zero_snr):
        sampler = FALLBACK
    name = names[sampler]
    kind = KINDS[name]
    options = defaults.get("sampler_options", {}) if sampler == defaults["sampler"] else {}
    ours = schedule.get_config()
    config = {
        "_class_name": name,
        "num_train_timesteps": ours["num_train_timesteps"],
        "beta_schedule": {v: k for k, v in BETA_SCHEDULES.items()}[ours["beta_schedule"]],
        "beta_start": ours["beta_start"],
        "beta_end": ours["beta_end"],
        "trained_betas": None,
        "prediction_type": ours["prediction_type"],
        "timestep_spacing": defaults["timestep_spacing"],
        "steps_offset": options.get("steps_offset", 1),
    }
    for key, (_, value) in kind.options.items():
        if value is not None and value != -math.inf:  # those are the defaults, and −∞ is not JSON
            config[key] = value
    if sampler == kind.stochastic:
        config[ALGORITHM] = STOCHASTIC
    if "variance" in options and VARIANCE in kind.options:
        config[VARIANCE] = {v: k for k, v in VARIANCES.items()}[options["variance"]]
    if "original_steps" in options and ORIGINAL in kind.options:
        config[ORIGINAL] = options["original_steps"]
    if kind.clip_sample is not None:
        config[CLIP] = options.get(CLIP, False)
    if kind.zero_snr:
        config[ZERO_SNR] = schedule.rescale_zero_terminal_snr
    if options.get("sigma_spacing") == "karras":
        config[KARRAS] = True
    if kind.set_alpha_to_one is not None:
        config[ALPHA_TO_ONE] = options.get(ALPHA_TO_ONE, True)
    return config


def _schedule(config: Config, source: str, kind: Kind | None) -> NoiseSchedule:
    if config.get("trained_betas") is not None:
        raise UserError(f"{source}: trained_betas are not supported; expected null")
    defaults: dict[str, Any] = {"num_train_timesteps": 1000, "prediction_type": "epsilon"}
    if kind:
        betas = {"beta_start": kind.beta_start, "beta_end": kind.beta_end}
        defaults |= {"beta_schedule": kind.beta_schedule, **betas}
    values = {}
    for key in ("beta_schedule", "beta_start", "beta_end", *defaults):
        values[key] = config.get(key, defaults.get(key))
        kinds = str if key in ("beta_schedule", "prediction_type") else int | float
        if not isinstance(values[key], kinds) or isinstance(values[key], bool):
            kinds = "text" if kinds is str else "a number"
            raise UserError(f"{source}: {key}: {values[key]!r:.80}, expected {kinds}")
    name = check_choice(f"{source}: beta_schedule", values["beta_schedule"], BETA_SCHEDULES)
    values["beta_schedule"] = BETA_SCHEDULES[name]
    check_total(values["num_train_timesteps"], source)
    if config.get(ZERO_SNR):
        values["rescale_zero_terminal_snr"] = True
    try:
        return NoiseSchedule(**values)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None


def _steps_offset(config: Config, source: str, total: int) -> int:
    offset = config.get("steps_offset", 0)
    if type(offset) is not int or not 0 <= offset < total:
        raise UserError(
            f"{source}: steps_offset: {offset!r:.80}, expected a whole number from 0 to "
            f"{total - 1}"
        )
    return offset
