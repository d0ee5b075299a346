"""Progress of a sampler: a line while its first step compiles the networks, then a bar."""

from __future__ import annotations

import contextlib

from tqdm import tqdm

from latentddpm.utils import signals
from latentddpm.utils.console import activity


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
