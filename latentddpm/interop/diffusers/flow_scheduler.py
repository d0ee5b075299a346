"""Scheduler of flow matching in diffusers, `scheduler_config.json` ⇄ `FlowSchedule`.

There are two for it alone, `FlowMatchEulerDiscreteScheduler` and `FlowMatchHeunDiscreteScheduler`,
whose `shift` and spacing ("linspace") are those here. The multistep solvers do it with
`use_flow_sigmas` and `flow_shift`; their levels are those of "trailing" times 1 − 1/T, and they
can predict x0, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from latentddpm.diffusion.flow import FlowSchedule
from latentddpm.errors import UserError, check_choice

MAX_TIMESTEPS = 1_000_000
FLOW_SIGMAS = "use_flow_sigmas"
PREDICTIONS = {"flow_prediction": "velocity", "sample": "sample"}
LEVELS = {"use_dynamic_shifting": False, "invert_sigmas": False}
"""Options of the levels themselves that no schedule here has → the value that turns them off."""

SAMPLERS = {
    "euler": "FlowMatchEulerDiscreteScheduler",
    "heun": "FlowMatchHeunDiscreteScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
}
"""Sampler → the scheduler that is written; the last two with `use_flow_sigmas`."""

MULTISTEP = ("dpmpp_2m", "unipc")


def flow_schedule(config: Mapping[str, Any], source: str) -> FlowSchedule:
    """Flow schedule of a scheduler of diffusers.

    Args:
        config: of diffusers.
        source: its file, for messages.

    Returns:
        The schedule.

    Raises:
        UserError: levels or a prediction type that `FlowSchedule` does not have.
    """
    for key, off in LEVELS.items():
        if config.get(key, off) != off:
            raise UserError(
                f"{source}: {key}: {config[key]!r:.40} is not supported, because the levels then "
                f"depend on more than shift; expected {str(off).lower()}"
            )
    key = "flow_shift" if config.get(FLOW_SIGMAS) else "shift"
    shift, total = config.get(key, 1.0), config.get("num_train_timesteps", 1000)
    if isinstance(shift, bool) or not isinstance(shift, int | float):
        raise UserError(f"{source}: {key}: {shift!r:.80}, expected a number")
    check_total(total, source)
    said = config.get("prediction_type", "flow_prediction")
    name = check_choice(f"{source}: prediction_type", said, PREDICTIONS)
    try:
        return FlowSchedule(total, PREDICTIONS[name], shift)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None


def flow_config(schedule: FlowSchedule, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Configuration of the scheduler of diffusers for a flow schedule and a default sampler.

    A sampler that diffusers does not have for flow matching becomes Euler, or DPM-Solver++ where
    x0 is predicted.

    Args:
        schedule: of the model.
        defaults: of `generate`, with `sampler`.
    """
    sampler, options = defaults["sampler"], defaults.get("sampler_options", {})
    config = {"num_train_timesteps": schedule.num_train_timesteps}
    shift = options.get("shift", schedule.shift)
    if schedule.prediction_type == "velocity" and sampler not in MULTISTEP:
        return {"_class_name": SAMPLERS.get(sampler, SAMPLERS["euler"]), **config, "shift": shift}
    predictions = {ours: theirs for theirs, ours in PREDICTIONS.items()}
    return {
        "_class_name": SAMPLERS[sampler if sampler in MULTISTEP else MULTISTEP[0]],
        **config,
        "prediction_type": predictions[schedule.prediction_type],
        FLOW_SIGMAS: True,
        "flow_shift": shift,
        "final_sigmas_type": "zero",
    }


def check_total(total: Any, source: str) -> None:
    """Check the number of training timesteps of a scheduler of diffusers.

    Args:
        total: as in the file.
        source: the file, for the message.

    Raises:
        UserError: it is no number, or outside 1 … `MAX_TIMESTEPS`.
    """
    if type(total) not in (int, float) or not 0 < total <= MAX_TIMESTEPS:
        raise UserError(
            f"{source}: num_train_timesteps: {total!r:.80}, expected 1 to {MAX_TIMESTEPS:,}"
        )
