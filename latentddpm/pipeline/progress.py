"""Progress of a sampler: a line while its first step compiles the networks, then a bar."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

from latentddpm.utils import signals
from latentddpm.utils.console import activity

Callback = Callable[[int, float, Any, Any], None]
"""`callback(step_index, timestep, latents, x0)`, see `LatentDiffusion.generate`."""


def step_callback(bar: StepBar, starts: Any, callback: Callback | None) -> Callback:
    """Callback of a sampler that advances a bar, and tells another callback of each step.

    A sampler hands over the latents that a step ends with. The other callback gets those that it
    began with: x_t at the timestep, which x0 was estimated from.

    Args:
        bar: that counts the steps.
        starts: latents of the first step.
        callback: of `LatentDiffusion.generate`, or None.
    """
    before = starts

    def report(step_index: int, timestep: float, latents: Any, x0: Any) -> None:
        nonlocal before
        bar.advance()
        if callback is not None:
            callback(step_index, timestep, before, x0)
        before = latents

    return report


class StepBar(contextlib.ExitStack):
    """Bar that counts steps from the end of the first one on.

    The first step takes as long as many, so the rate and the time left are those of the others.

    Args:
        total: number of steps.
        quiet: show nothing.

    Example:
        >>> with StepBar(total=20) as bar:
        ...     for _ in range(20):
        ...         bar.advance()
    """

    def __init__(self, total: int, quiet: bool = False) -> None:
        super().__init__()
        self._total, self._quiet = total, quiet
        self._bar: tqdm | None = None
        self.enter_context(activity("compiling the sampler", quiet))

    def advance(self) -> None:
        """Count a step that has ended.

        Raises:
            signals.Stopped: a signal asks to stop.
        """
        signals.check()
        if self._bar is not None:
            self._bar.update()
            return
        self.close()  # the line, where it was not printed yet
        self._bar = self.enter_context(
            tqdm(total=self._total, initial=1, unit="step", disable=self._quiet)
        )
