"""Budget of time: the seconds of a whole run → the steps of its trainings, and back.

    total = before + encoding + Σ trainings (compiling + steps · seconds of a step + validations)
            + saving

`before` is the time until the plan stands. The time that is left is shared between autoencoder
and UNet by `AUTOENCODER_SHARE`.
"""

from __future__ import annotations

from dataclasses import dataclass

from latentddpm.errors import UserError
from latentddpm.utils.timing import clock

AUTOENCODER_SHARE = 1 / 3
"""Share of the autoencoder in the time for steps, where it is trained."""
LEAST_STEPS = 100
"""Steps of a training, at least: fewer leave noise."""
VALIDATIONS, GRIDS_SHARE = 4, 0.1
"""Validations of a training at most, and the share of a limited time that they may take."""
KEPT_BACK = 0.05
"""Share of the time that no step is planned for: machines do not run evenly."""
SAVING = 10.0
"""Seconds for writing the finished model and its card."""
JUDGED_STEPS, JUDGED_SECONDS = 10, 20.0
"""Real steps of a training, and seconds, after which its pace is compared with the plan."""
WRONG = 0.25
"""Deviation from the planned number of steps from which on it is corrected."""
LATE = 1.1
"""Length of a training in that of its plan, after which it is ended where time is limited."""


@dataclass(frozen=True)
class Speed:
    """Speed of a training.

    Attributes:
        step: seconds of a step.
        compiling: seconds from building the networks to the end of the first step.
    """

    step: float
    compiling: float

    def of_batch(self, size: int) -> float:
        """Seconds of an example.

        Args:
            size: examples of a step.
        """
        return self.step / size


@dataclass
class Pace:
    """Pace of a training whose time is limited, which may say that its number of steps is wrong.

    Attributes:
        planned: number of its steps.
        deadline: end of its time, as of `time.monotonic`.
        most: steps, whatever the time.
        reserved: seconds that no step is taken in: validations, and compiling once more.
        correcting: its number of steps may still be corrected.
        steps: corrected number of steps; None where the training goes on as planned.
    """

    planned: int
    deadline: float
    most: int
    reserved: float = 0.0
    correcting: bool = True
    steps: int | None = None
    began: tuple[int, float] | None = None

    def ends(self, step: int, now: float) -> bool:
        """True where the training has to stop, for good or to go on with another `steps`.

        Args:
            step: that was done.
            now: as of `time.monotonic`.
        """
        if now > self.deadline:
            self.steps = step
            return True
        if self.began is None:
            self.began = step, now  # the first step, which compiles, is done
        done, seconds = step - self.began[0], now - self.began[1]
        if not self.correcting or done < JUDGED_STEPS or seconds < JUDGED_SECONDS:
            return False
        self.correcting = False
        left = (self.deadline - now) * (1 - KEPT_BACK) - self.reserved
        fitting = min(step + int(left * done / seconds), self.most)
        if abs(fitting - self.planned) > WRONG * self.planned:
            self.steps = max(fitting, step + 1)
            return True
        return False


@dataclass(frozen=True)
class Times:
    """Times of a whole run, in seconds, as far as they do not depend on the number of steps.

    Attributes:
        before: until the plan stands.
        unet: speed of its training.
        autoencoder: speed of its training; None where none is trained.
        encoding: of all images into latents.
        grid: of one validation of the UNet, most of it for the grid of samples.
        check: of one validation of the autoencoder.
        validations: of each training, how many.
    """

    before: float
    unet: Speed
    autoencoder: Speed | None = None
    encoding: float = 0.0
    grid: float = 0.0
    check: float = 0.0
    validations: int = VALIDATIONS

    @property
    def fixed(self) -> float:
        """Seconds that pass whatever the number of steps."""
        fixed = self.before + self.encoding + self.unet.compiling + self.validations * self.grid
        if self.autoencoder is not None:
            fixed += self.autoencoder.compiling + self.validations * self.check
        return fixed + SAVING

    def total(self, unet_steps: int, autoencoder_steps: int = 0) -> float:
        """Seconds of the whole run.

        Args:
            unet_steps, autoencoder_steps: of both trainings.
        """
        own = self.autoencoder.step * autoencoder_steps if self.autoencoder else 0.0
        return self.fixed + self.unet.step * unet_steps + own

    @property
    def least(self) -> float:
        """Seconds of the shortest run there is a plan for."""
        steps = LEAST_STEPS * (self.unet.step + (self.autoencoder.step if self.autoencoder else 0))
        return (self.fixed + steps) / (1 - KEPT_BACK)


def validations_in(seconds: float | None, grid: float) -> int:
    """Validations of a training.

    Args:
        seconds: of the whole run; None for no limit.
        grid: seconds of one validation.
    """
    if seconds is None or not grid:
        return VALIDATIONS
    return min(max(int(GRIDS_SHARE * seconds / grid), 1), VALIDATIONS)


def steps_in(seconds: float, times: Times) -> tuple[int, int]:
    """Steps of UNet and autoencoder that fit into a time.

    Args:
        seconds: of the whole run.
        times: of the machine.

    Returns:
        (steps of the UNet, steps of the autoencoder), the latter 0 where none is trained.

    Raises:
        UserError: the time is too short for any plan; the message names the least.
    """
    left = seconds * (1 - KEPT_BACK) - times.fixed
    if seconds < times.least:
        raise UserError(
            f"--time {clock(seconds)}: too short for any plan on this machine; the least is about "
            f"{clock(60 * -(-times.least // 60))}"
        )
    if times.autoencoder is None:
        return int(left / times.unet.step), 0
    own = max(int(left * AUTOENCODER_SHARE / times.autoencoder.step), LEAST_STEPS)
    left -= own * times.autoencoder.step
    return max(int(left / times.unet.step), LEAST_STEPS), own


def steps_left(seconds: float, spent: float, times: Times, slower: float) -> int:
    """Steps of the UNet for the time that is left once the autoencoder is trained.

    Args:
        seconds: of the whole run.
        spent: of them.
        times: as planned.
        slower: seconds of a step in those that were planned, of the autoencoder's training.
    """
    left = seconds * (1 - KEPT_BACK) - spent - SAVING
    left -= slower * (times.encoding + times.unet.compiling + times.validations * times.grid)
    return max(int(left / (times.unet.step * slower)), LEAST_STEPS)
